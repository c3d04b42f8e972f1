"""Noise levels: the time shift, the steps a block visits, and velocity to clean latents and back.

Rectified flow (arXiv:2209.03003): ``x_t = (1 - sigma) * x0 + sigma * noise``, and the network
predicts the velocity ``noise - x0``. Its timestep input is ``1000 * sigma``.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from longlive.errors import UserError

TRAIN_STEPS = 1000

Level = TypeVar("Level", float, Tensor)


def shift_sigma(u: Level, shift: float) -> Level:
    """Warp a uniform noise level ``u`` in [0, 1] by the time shift (arXiv:2403.03206, eq. 23)."""
    return shift * u / (1 + (shift - 1) * u)


def _as_float32(value: float) -> float:
    """Round to float32, in which the reference keeps its tables; without a tensor to wait for."""
    return ctypes.c_float(value).value


@dataclass(frozen=True, slots=True)
class DenoisingSchedule:
    """Noise levels a block visits, from pure noise to clean.

    Attributes:
        sigmas: One noise level per denoising step, in (0, 1], strictly falling; float32 values.
    """

    sigmas: tuple[float, ...]

    @classmethod
    def from_steps(
        cls, steps: Sequence[int], *, shift: float, train_steps: int = TRAIN_STEPS
    ) -> "DenoisingSchedule":
        """Warp integer steps by the time shift used in training.

        Args:
            steps: Denoising steps in [1, train_steps], for example ``[1000, 750, 500, 250]``.
            shift: Time shift; 1 changes nothing.
            train_steps: Steps of the schedule the network was trained with.

        Raises:
            UserError: If the steps do not fall strictly inside [1, train_steps].
        """
        falling = all(high > low for high, low in pairwise(steps))
        if not steps or not falling or steps[0] > train_steps or steps[-1] < 1:
            raise UserError(
                f"denoising steps must fall strictly from at most {train_steps} to at least 1, "
                f"got {list(steps)}"
            )
        return cls(tuple(_as_float32(shift_sigma(step / train_steps, shift)) for step in steps))

    @classmethod
    def uniform(cls, steps: int, *, shift: float) -> "DenoisingSchedule":
        """``steps`` equal steps of the unwarped time, for many-step sampling.

        Raises:
            UserError: If ``steps`` is not in [1, 1000].
        """
        if not 1 <= steps <= TRAIN_STEPS:
            raise UserError(f"the number of denoising steps must be in [1, 1000], got {steps}")
        return cls(tuple(_as_float32(shift_sigma(1 - i / steps, shift)) for i in range(steps)))

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The network's input per step, ``1000 * sigma`` in float32."""
        return tuple(timestep_of(sigma) for sigma in self.sigmas)

    @property
    def transitions(self) -> list[tuple[float, float]]:
        """(sigma, next sigma) per step; the last step ends at 0.0, the clean latents."""
        return list(pairwise((*self.sigmas, 0.0)))


def timestep_of(sigma: float) -> float:
    """The network's timestep for a noise level."""
    return _as_float32(TRAIN_STEPS * sigma)


def _levels(sigma: float | Tensor, like: Tensor, dtype: torch.dtype) -> float | Tensor:
    """Noise levels of the leading dimensions of ``like``, shaped to broadcast over the rest."""
    if isinstance(sigma, Tensor):
        sigma = sigma.to(like.device, dtype)
        return sigma.reshape(sigma.shape + (1,) * (like.ndim - sigma.ndim))
    return sigma


def add_noise(x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """Return ``(1 - sigma) * x0 + sigma * noise``, summed in float32 at least, in x0's type.

    Args:
        x0: Clean latents of any shape.
        noise: Standard normal, of the same shape.
        sigma: One level, or levels for the leading dimensions (``[B]``, ``[B, F]``).
    """
    wide = torch.promote_types(x0.dtype, torch.float32)
    level = _levels(sigma, x0, wide)
    return ((1 - level) * x0.to(wide) + level * noise.to(wide)).to(x0.dtype)


def x0_from_velocity(x: Tensor, velocity: Tensor, sigma: float | Tensor) -> Tensor:
    """Return ``x - sigma * velocity``, in float64 as the reference does, in x's type.

    Args:
        x: Noisy latents of any shape.
        velocity: The network's answer, of the same shape.
        sigma: The level of ``x``, or levels for its leading dimensions (``[B]``, ``[B, F]``).
    """
    level = _levels(sigma, x, torch.float64)
    return (x.double() - level * velocity.double()).to(x.dtype)


def velocity_from_x0(x: Tensor, x0: Tensor, sigma: float | Tensor) -> Tensor:
    """Return ``(x - x0) / sigma``, in float64, in x's type; shapes as in ``x0_from_velocity``.

    ``sigma`` must not be 0.
    """
    level = _levels(sigma, x, torch.float64)
    return ((x.double() - x0.double()) / level).to(x.dtype)


def euler_step(
    x: Tensor, velocity: Tensor, sigma: float | Tensor, next_sigma: float | Tensor
) -> Tensor:
    """Follow the velocity from one noise level to the next, in float32 at least, in x's type.

    Args:
        x: Latents at ``sigma``, of any shape.
        velocity: The network's answer, of the same shape.
        sigma: One level, or levels for the leading dimensions (``[B]``, ``[B, F]``).
        next_sigma: Likewise; below ``sigma`` on the way to clean latents.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    change = _levels(next_sigma - sigma, x, wide)
    return (x.to(wide) + change * velocity.to(wide)).to(x.dtype)


class NoiseTable:
    """The reference's table of 1000 noise levels, looked up by the nearest timestep.

    Training draws from it; inference uses the closed form of :class:`DenoisingSchedule`. Timestep 0
    is not in the table: it maps to the last entry (sigma 0.00498 at shift 5), not to sigma 0.

    Args:
        shift: Time shift; the student uses 5, the reference leaves teacher and critic at 8.
    """

    def __init__(self, shift: float) -> None:
        u = torch.linspace(1, 0, TRAIN_STEPS + 1)[:-1]
        self.shift = shift
        self.sigmas = shift * u / (1 + (shift - 1) * u)
        self.timesteps = TRAIN_STEPS * self.sigmas
        bell = torch.exp(-2 * ((self.timesteps - TRAIN_STEPS / 2) / TRAIN_STEPS) ** 2)
        bell = bell - bell.min()
        self.training_weights = bell * (TRAIN_STEPS / bell.sum())

    def nearest_index(self, timesteps: Tensor) -> Tensor:
        """Index of the nearest entry, the first on ties; same shape as ``timesteps``, int64."""
        table = self.timesteps.to(timesteps.device, torch.float64)
        return (table - timesteps.double().unsqueeze(-1)).abs().argmin(-1)

    def sigma_at(self, timesteps: Tensor) -> Tensor:
        """Noise level of the nearest entry, float32, same shape as ``timesteps``."""
        return self.sigmas.to(timesteps.device)[self.nearest_index(timesteps)]
