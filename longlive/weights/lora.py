"""Low-rank adapters (LoRA, arXiv:2106.09685): read, merge into weights, or run beside them.

Merged and un-merged are equal in mathematics and not in bfloat16: merging rounds the weight once,
running beside rounds after each factor and after the sum. The reference does the latter.

Shape suffixes: R rank, I inputs, O outputs.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longlive.errors import UserError

_FILE_PREFIX = "base_model.model."
_NAMES_SHOWN = 5


class Adapter(NamedTuple):
    """The two factors of one linear layer's update.

    Attributes:
        a_RI: From the inputs to the rank.
        b_OR: From the rank to the outputs.
    """

    a_RI: Tensor
    b_OR: Tensor

    @property
    def rank(self) -> int:
        return self.a_RI.shape[0]

    def update(self, alpha: float, device: torch.device) -> Tensor:
        """Return what it adds to the weight, float32 ``[O, I]``."""
        a_RI, b_OR = (factor.to(device, torch.float32) for factor in self)
        return (b_OR @ a_RI) * (alpha / self.rank)


def adapters_of(
    content: Mapping[str, Any], source: str, entry: str = "generator_lora"
) -> dict[str, Adapter]:
    """Pair the factors in a LoRA file.

    Args:
        content: What ``read_checkpoint`` gave: a checkpoint that holds ``entry``, or the factors
            themselves, named as PEFT does.
        source: Name of the file, for messages.
        entry: Which adapters of a checkpoint are wanted; ``critic_lora`` is the other.

    Returns:
        Module name in the bare transformer (``blocks.0.self_attn.q``) to its factors.

    Raises:
        UserError: If there is no adapter, or a factor is alone or does not fit its partner.
    """
    if isinstance(content.get(entry), Mapping):
        content = content[entry]
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in content.items():
        target, side = _parse(name)
        if side and isinstance(tensor, Tensor):
            factors.setdefault(target, {})[side] = tensor
    if not factors:
        names = ", ".join(map(str, list(content)[:_NAMES_SHOWN])) or "nothing"
        raise UserError(f"{source} holds no LoRA adapters under {entry}; it has {names}")
    adapters = {}
    for target, pair in factors.items():
        if pair.keys() != {"A", "B"}:
            raise UserError(f"{source} has only one factor for {target}; it is incomplete")
        adapters[target] = Adapter(pair["A"], pair["B"])
        if adapters[target].b_OR.shape[1] != adapters[target].rank:
            raise UserError(f"{source}: the factors of {target} are of different ranks")
    return adapters


def _parse(name: str) -> tuple[str, str]:
    name = name.removeprefix(_FILE_PREFIX)
    for side in ("A", "B"):
        for suffix in (f".lora_{side}.weight", f".lora_{side}.default.weight"):
            if name.endswith(suffix):
                return name.removesuffix(suffix), side
    return name, ""


def merge_lora(
    tensors: Mapping[str, Tensor],
    adapters: Mapping[str, Adapter],
    alpha: float,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Add ``alpha / rank * B A`` to the weights that have an adapter, computed in float32.

    Args:
        tensors: State dict of the bare transformer.
        adapters: From ``adapters_of``.
        alpha: Numerator of the scale; LongLive's is 256 at rank 256.
        dtype: Type of all results; by default each keeps its own. Sums are rounded once.

    Returns:
        A new dictionary. What needs no change is shared with ``tensors``.

    Raises:
        UserError: If an adapter has no weight, or one of another shape.
    """
    shapes = {
        name.removesuffix(".weight"): tuple(tensor.shape)
        for name, tensor in tensors.items()
        if name.endswith(".weight")
    }
    _check_targets(adapters, shapes)
    merged = {}
    for name, tensor in tensors.items():
        adapter = adapters.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        value = tensor if adapter is None else tensor.float() + adapter.update(alpha, tensor.device)
        merged[name] = value.to(dtype or tensor.dtype)
    return merged


class LoRALinear(nn.Module):
    """A linear layer with an adapter beside it: ``base(x) + B(A(x)) * scale``.

    Args:
        base: The layer; its parameters are frozen.
        rank: Width between the two factors.
        alpha: Numerator of the scale ``alpha / rank``.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, **like)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, **like)
        nn.init.zeros_(self.lora_B.weight)
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x)) * self.scale


def lora_targets(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield name and module of every linear layer inside the transformer layers."""
    for name, child in module.named_modules():
        if name.startswith("blocks.") and isinstance(child, nn.Linear):
            yield name, child


def inject_lora(module: nn.Module, adapters: Mapping[str, Adapter], alpha: float) -> None:
    """Put adapters beside the layers of a transformer that holds its weights already.

    Everything but the adapters is frozen afterwards, as for further training.

    Args:
        module: The bare transformer; its layers are replaced in place.
        adapters: From ``adapters_of``. Layers without one are left alone.
        alpha: Numerator of the scale ``alpha / rank``.

    Raises:
        UserError: If an adapter has no layer, or one of another shape.
    """
    layers = _plain_targets(module)
    _check_targets(adapters, {name: tuple(base.weight.shape) for name, base in layers.items()})
    module.requires_grad_(False)
    for target, adapter in adapters.items():
        wrapped = LoRALinear(layers[target], adapter.rank, alpha)
        with torch.no_grad():
            wrapped.lora_A.weight.copy_(adapter.a_RI)
            wrapped.lora_B.weight.copy_(adapter.b_OR)
        module.set_submodule(target, wrapped)


def add_lora(module: nn.Module, rank: int, alpha: float) -> None:
    """Put fresh adapters beside every layer; until trained they change nothing.

    Everything but the adapters is frozen afterwards.

    Args:
        module: The bare transformer; its layers are replaced in place.
        rank: Width between the two factors.
        alpha: Numerator of the scale ``alpha / rank``.
    """
    if rank < 1:
        raise UserError(f"the rank of a LoRA must be at least 1, got {rank}")
    layers = _plain_targets(module)
    module.requires_grad_(False)
    for target, base in layers.items():
        module.set_submodule(target, LoRALinear(base, rank, alpha))


def lora_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return a transformer's adapters under the names of a LoRA file."""
    return {
        f"{_FILE_PREFIX}{name}": tensor
        for name, tensor in module.state_dict().items()
        if ".lora_A." in name or ".lora_B." in name
    }


def _plain_targets(module: nn.Module) -> dict[str, nn.Linear]:
    if any(isinstance(child, LoRALinear) for child in module.modules()):
        raise UserError("this transformer already has LoRA adapters; load the base weights anew")
    return dict(lora_targets(module))


def _check_targets(adapters: Mapping[str, Adapter], shapes: Mapping[str, tuple[int, ...]]) -> None:
    strange = [target for target in adapters if target not in shapes]
    if strange:
        names = ", ".join(strange[:_NAMES_SHOWN])
        raise UserError(
            f"the LoRA is for another model: {len(strange)} of its {len(adapters)} adapters have "
            f"no layer here ({names}{', ...' if len(strange) > _NAMES_SHOWN else ''})"
        )
    for target, adapter in adapters.items():
        shape = (adapter.b_OR.shape[0], adapter.a_RI.shape[1])
        if shapes[target] != shape:
            raise UserError(
                f"the LoRA is for another model: its update of {target} is "
                f"{shape[0]}x{shape[1]}, the layer is {'x'.join(map(str, shapes[target]))}"
            )
