"""torch.compile of the transformer layers, one region that all layers share."""

from typing import Literal

import lightning.pytorch as pl

from longlive.models.layers import DiTLayer
from longlive.rollout.denoiser import Denoiser
from longlive.rollout.hooks import RolloutCallback, WrapOrder


class CompileLayers(RolloutCallback):
    """Compiles each transformer layer in place, in training and in a rollout.

    In training all layers run the same code, and the first one's compilation serves the others. In
    a rollout it does not yet: the cache is indexed by the layer, so every layer and fill level of
    the window is compiled anew, and past torch's limit of 8 the rest runs eagerly. Numerics: fused
    kernels round differently.

    Args:
        mode: Passed to ``torch.compile``.
    """

    wrap_order = WrapOrder.COMPILE

    def __init__(self, mode: Literal["default", "max-autotune-no-cudagraphs"] = "default") -> None:
        self.mode = mode

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._compile(pl_module)

    def configure_denoiser(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, denoiser: Denoiser
    ) -> Denoiser:
        self._compile(pl_module)
        return denoiser

    def _compile(self, pl_module: pl.LightningModule) -> None:
        for module in pl_module.modules():
            if isinstance(module, DiTLayer):
                module.compile(mode=self.mode, dynamic=False)
