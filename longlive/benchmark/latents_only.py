"""Rollouts of the transformer alone."""

from dataclasses import replace

import lightning.pytorch as pl

from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.state import RolloutSpec


class LatentsOnly(RolloutCallback):
    """Decodes nothing: whatever the decoder would share the device with has it to itself.

    Numerics: exact, the latents are the same.
    """

    def configure_rollout(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, spec: RolloutSpec
    ) -> RolloutSpec:
        return replace(spec, is_shown=False)
