"""Tensors into a module: every name must fit, and every misfit is named."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from longlive.errors import UserError
from longlive.weights.recognize import recognize

NAMES_SHOWN = 10


def load_strict(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Fill a module with weights, without room for a name that does not fit.

    A module on the meta device receives the tensors themselves where type and device already
    agree, else a converted copy of each in turn; no second copy of the whole is ever held.

    Args:
        module: Any module, on the meta device or not. Weights given to a meta module share memory
            with ``tensors``.
        tensors: Names and values, for example of ``read_state_dict``. Nothing is changed in it.
        source: Name of the file, for messages.
        dtype: Type of the floating-point weights; by default the module's own, one by one.
        device: Where the weights are wanted; by default where the module is, or where the tensors
            are for a module on the meta device.

    Raises:
        UserError: If a tensor is missing, left over, or of another shape. One line names them.
    """
    expected = module.state_dict()
    check_fit(expected, tensors, source)
    if dtype is None and device is None and not any(t.is_meta for t in expected.values()):
        module.load_state_dict(tensors)
        return
    converted = {
        name: _convert(tensors[name], like, dtype, device) for name, like in expected.items()
    }
    module.load_state_dict(converted, assign=True)
    if device is not None:
        module.to(device)  # Buffers that are in no checkpoint.
    left = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if left:
        raise RuntimeError(
            f"{type(module).__name__} keeps {', '.join(left)} on the meta device: buffers that are "
            "in no checkpoint must be made on a named device"
        )


def check_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    """Compare names and shapes with those a module expects.

    Raises:
        UserError: If they differ.
    """
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    misshapen = [
        f"{name} (file {_shape(tensors[name])}, model {_shape(like)})"
        for name, like in expected.items()
        if name in tensors and tensors[name].shape != like.shape
    ]
    problems = [
        f"{len(names)} {what}: {_listed(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        hint = _mix_up(expected, tensors)
        raise UserError(f"{source} does not fit the model{hint}; {'; '.join(problems)}")


def _mix_up(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    given, wanted = (
        recognize({name: tuple(tensor.shape) for name, tensor in some.items()})
        for some in (tensors, expected)
    )
    if given is None or given == wanted:
        return ""
    return f": it looks like {given}" + (f", the model takes {wanted}" if wanted else "")


def _listed(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _convert(
    tensor: Tensor, like: Tensor, dtype: torch.dtype | None, device: torch.device | str | None
) -> Tensor:
    if device is None:
        device = tensor.device if like.is_meta else like.device
    if not like.is_floating_point():
        dtype = None
    # A module that is on a device keeps its own memory apart from the caller's.
    return tensor.to(device=device, dtype=dtype or like.dtype, copy=not like.is_meta)
