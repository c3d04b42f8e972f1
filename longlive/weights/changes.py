"""A network trained on from another one, stored as its change in four bits.

A student of a few minutes differs from its teacher by some two percent of the weights, so that four
bits of the difference are closer to it than eight bits of the weights, in half the room. Large
matrices are stored so, with a float16 scale for every 64 values of a row; everything else as it is.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from longlive.weights.compact import is_large

CHANGE_SUFFIX, SCALE_SUFFIX = ".change", ".change_scale"
_GROUP = 64
_LARGEST = 7


def pack_change(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Store what is different from a base.

    Args:
        tensors: A state dict of floating-point weights.
        base: The one it was trained from, as it will be read again, with the same names and shapes.

    Returns:
        Two values a byte under ``name + ".change"``, scales under ``name + ".change_scale"``,
        small tensors in float32 under their own names.
    """
    packed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.detach().float().cpu()
        if not is_large(value) or value.numel() % 2:
            packed[name] = value.contiguous()
            continue
        change = _grouped(value - base[name].float())
        largest = change.abs().amax(-1, keepdim=True)
        # A scale below what float16 can hold means a change below every rounding: none.
        scale = (largest / _LARGEST).half()
        steps = (change / scale.float().clamp_min(1e-12)).round().clamp(-_LARGEST, _LARGEST)
        low, high = (steps + 8).to(torch.uint8).flatten().view(-1, 2).unbind(1)
        packed[name + CHANGE_SUFFIX] = low + 16 * high
        packed[name + SCALE_SUFFIX] = scale.flatten().contiguous()
    return packed


def unpack_change(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`pack_change`.

    Args:
        tensors: What it returned.
        base: The same base. What else it holds is no part of the result.
    """
    unpacked: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        if not name.endswith(CHANGE_SUFFIX):
            unpacked[name] = value
            continue
        name = name.removesuffix(CHANGE_SUFFIX)
        scale = tensors[name + SCALE_SUFFIX].float().unsqueeze(-1)
        steps = torch.stack([value % 16, value // 16], 1).float() - 8
        change = steps.view(len(scale), -1) * scale
        unpacked[name] = base[name].float() + change.view(base[name].shape)
    return unpacked


def holds_change(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is a change."""
    return any(name.endswith(CHANGE_SUFFIX) for name in tensors)


def _grouped(change: Tensor) -> Tensor:
    """Rows of a matrix, cut into groups that share a scale, ``[groups, values]``."""
    rows = change.flatten(1)
    # A row that is no multiple is one group.
    group = _GROUP if rows.shape[1] % _GROUP == 0 else rows.shape[1]
    return rows.reshape(-1, group)
