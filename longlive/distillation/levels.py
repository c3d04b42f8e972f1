"""The noise levels at which teacher and critic look at a clip of the student."""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns.

from typing import NamedTuple

import torch
from torch import Tensor

from longlive.distillation.decisions import Decisions
from longlive.errors import UserError
from longlive.schedule import TRAIN_STEPS, NoiseTable, add_noise, shift_sigma

LOWEST, HIGHEST = 20, 980
"""Timesteps are kept within these: below, nothing is left to judge; above, nothing to see."""


class NoisyClip(NamedTuple):
    """A clip with noise, as teacher and critic see it.

    Attributes:
        latents: Noisy latents ``[B, F, C, H, W]``.
        noise: The noise, same shape.
        timestep: 1000 sigma of each latent frame, ``[B, F]`` float32.
    """

    latents: Tensor
    noise: Tensor
    timestep: Tensor


class ScoreLevels:
    """Draws noise levels for scores, and says what a timestep means.

    Args:
        shift: Time shift of the student.
        score_shift: Time shift of the tables of teacher and critic; read only where
            ``decisions.score_levels`` is ``tables``.
        decisions: Whether levels are exact or looked up.
        lowest: Least timestep.
        highest: Greatest timestep.

    Raises:
        UserError: If the limits are not inside (0, 1000], in order.
    """

    def __init__(
        self,
        shift: float,
        decisions: Decisions,
        *,
        score_shift: float = 8.0,
        lowest: float = LOWEST,
        highest: float = HIGHEST,
    ) -> None:
        if not 0 < lowest < highest <= TRAIN_STEPS:
            raise UserError(
                f"score timesteps must rise inside (0, {TRAIN_STEPS}], got {lowest} to {highest}"
            )
        self.shift = shift
        self.lowest = lowest
        self.highest = highest
        self.uses_tables = decisions.score_levels == "tables"
        self.student_table = NoiseTable(shift)
        self.score_table = NoiseTable(score_shift)

    def draw(self, batch: int, blocks: int, generator: torch.Generator) -> Tensor:
        """Draw whole timesteps before the shift, uniform in [0, 1000), ``[B, blocks]`` int64."""
        shape = (batch, blocks)
        return torch.randint(TRAIN_STEPS, shape, generator=generator, device=generator.device)

    def timestep(self, raw: Tensor) -> Tensor:
        """Shift drawn timesteps as the student's are, and keep them within the limits, float32."""
        shifted = TRAIN_STEPS * shift_sigma(raw.float() / TRAIN_STEPS, self.shift)
        return shifted.clamp(self.lowest, self.highest)

    def noise_sigma(self, timestep: Tensor) -> Tensor:
        """How much noise a clip has at a timestep; same shape."""
        return self.student_table.sigma_at(timestep) if self.uses_tables else timestep / TRAIN_STEPS

    def score_sigma(self, timestep: Tensor) -> Tensor:
        """How much noise teacher and critic believe a clip to have; same shape."""
        return self.score_table.sigma_at(timestep) if self.uses_tables else timestep / TRAIN_STEPS

    def add_noise(self, x0_BFCHW: Tensor, noise_BFCHW: Tensor, raw: Tensor) -> NoisyClip:
        """Put a clip to the levels that were drawn.

        Args:
            x0_BFCHW: Clean latents.
            noise_BFCHW: Standard normal, same shape.
            raw: Drawn timesteps ``[B, blocks]``, each for an equal share of the latent frames.
        """
        frames = x0_BFCHW.shape[1]
        timestep_BF = self.timestep(raw).repeat_interleave(frames // raw.shape[1], 1)
        noisy = add_noise(x0_BFCHW, noise_BFCHW, self.noise_sigma(timestep_BF))
        return NoisyClip(noisy, noise_BFCHW, timestep_BF)
