"""Eight-bit linear layers in the transformer: FP8 on GPUs that multiply it, int8 for comparison.

What is replaced is chosen layer by layer. Of what is outside the transformer layers nothing is: the
patch, text and time embeddings, the time projection and the head are small, and the modulation is
no product. Inside, ``keeps`` names what stays as it is; by default keys and values of the
cross-attention, which are computed once a prompt and not in every pass. A layer whose sides are no
multiples of 16 stays as well, since the kernels cannot take it.

The layers are replaced in place when a first rollout is set up, and stay so: the memory of the
large weights is free then, and a later rollout of this model is quantized even without the
callback. See docs/optimizations.md.
"""

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase

import lightning.pytorch as pl
import torch
from torch import nn

from longlive.callbacks.optimization import Optimization, check_final, parts_of
from longlive.callbacks.quantized_linear import MULTIPLE, Granularity, Kind, QuantizedLinear
from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.rollout.hooks import MakeCaches, WrapOrder

log = logging.getLogger(__name__)

TEXT_KEYS_VALUES = ("*.cross_attn.k", "*.cross_attn.v")
_CAPABILITY: dict[Kind, tuple[int, int]] = {"fp8": (8, 9), "int8": (7, 5)}


class QuantizeLinears(Optimization):
    """Replaces linear layers of the transformer layers by eight-bit ones, in place.

    Numerics: different. Eight bits have an error of some percent in every product.

    Args:
        kind: ``fp8`` (e4m3), or ``int8``.
        keeps: Layers that stay as they are, by name (``blocks.0.ffn.2``) or pattern
            (``*.self_attn.*``, ``blocks.0.*``).
        granularity: ``row`` has a scale for each output row and each token, ``tensor`` one for each
            weight and each activation.
        emulates: Compute with the rounded numbers in float32, on any device: the quality of the
            quantized model, at less than the speed of the plain one.
        required: Whether it is an error if the device cannot multiply such numbers.
    """

    wrap_order = WrapOrder.WEIGHTS
    replaces_layers = True

    def __init__(
        self,
        kind: Kind = "fp8",
        keeps: Sequence[str] = TEXT_KEYS_VALUES,
        granularity: Granularity = "row",
        emulates: bool = False,
        required: bool = True,
    ) -> None:
        super().__init__(required)
        self.kind = kind
        self.keeps = tuple(keeps)
        self.granularity = granularity
        self.emulates = emulates

    def missing(self, device: torch.device) -> str | None:
        if self.emulates or (self.kind == "int8" and device.type == "cpu"):
            return None
        least = _CAPABILITY[self.kind]
        if device.type == "cuda" and torch.cuda.get_device_capability(device) >= least:
            return None
        return (
            f"a GPU of compute capability {least[0]}.{least[1]} or more to multiply {self.kind} "
            "(emulates: true computes the same anywhere, for quality and not for speed)"
        )

    # The first hook with weights in it. A capture notes their addresses in the same one, later.
    def configure_caches(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, make: MakeCaches
    ) -> MakeCaches:
        if self.is_usable(pl_module):
            for dit in list(parts_of(pl_module, DiT)):
                self._replace(dit)
        return make

    def chosen(self, dit: DiT) -> list[str]:
        """Name the layers of a transformer that are to multiply in eight bits.

        Args:
            dit: Its layers may be replaced already.

        Raises:
            UserError: If a pattern of ``keeps`` names no layer, or no layer is left.
        """
        layers = {
            name: module
            for name, module in dit.named_modules()
            if name.startswith("blocks.") and isinstance(module, nn.Linear | QuantizedLinear)
        }
        for pattern in self.keeps:
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise UserError(
                    f"keeps has {pattern!r}, which names no linear layer: they are called "
                    "blocks.0.ffn.0, blocks.0.self_attn.q and so on"
                )
        names = [
            name
            for name, layer in layers.items()
            if not any(fnmatchcase(name, pattern) for pattern in self.keeps)
            and layer.in_features % MULTIPLE == layer.out_features % MULTIPLE == 0
        ]
        if not names:
            raise UserError(
                f"there is nothing to quantize: keeps names every layer with sides of whole "
                f"{MULTIPLE}s, so leave the overlay out"
            )
        return names

    def _replace(self, dit: DiT) -> None:
        check_final(dit, "quantization")
        names = self.chosen(dit)
        done = {n: m for n, m in dit.named_modules() if isinstance(m, QuantizedLinear)}
        wanted = (self.kind, self.granularity, self.emulates)
        if done:
            if set(done) != set(names) or any(m.settings != wanted for m in done.values()):
                raise UserError("the model is quantized in another way already: load it anew")
            return
        for name in names:
            linear = dit.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            dit.set_submodule(name, QuantizedLinear(linear, *wanted))
        emulated = ", emulated: a test of quality, and no faster" if self.emulates else ""
        log.info("%d linear layers multiply in %s%s", len(names), self.kind, emulated)
