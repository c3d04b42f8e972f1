"""torch.compile of the VAE's residual blocks, for training."""

import lightning.pytorch as pl
import torch

from longlive.models.vae_layers import ResidualBlock

_SHAPES = 64
"""Widths, resolutions and clip lengths that share one piece of code; torch gives up after eight."""


class CompileVAEBlocks(pl.Callback):
    """Compiles each residual block that is trained, in place, before the first step.

    The channel norms are a row of memory-bound operations; compiled they are one. The first steps
    take about a minute longer. Numerics: fused kernels round differently.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, _SHAPES)
        for module in pl_module.modules():
            if isinstance(module, ResidualBlock) and next(module.parameters()).requires_grad:
                module.compile(dynamic=False)
