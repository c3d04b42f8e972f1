"""What training a decoder by reconstruction needs: losses, a measure, a learning-rate schedule."""

import math
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


class FramePair(NamedTuple):
    """What a VAE is shown and what it is to give back; they differ in what it should drop.

    Attributes:
        frames: ``[B, T, 3, H, W]`` in [0, 1].
        target: The same shape and range.
    """

    frames: Tensor
    target: Tensor


def psnr_db(frames: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of frames in [0, 1], in dB, over the whole batch."""
    return -10 * torch.log10(F.mse_loss(frames.float(), target.float()).clamp_min(1e-10))


def pixel_loss(frames: Tensor, target: Tensor, mse_weight: float) -> Tensor:
    """Return the mean absolute error plus ``mse_weight`` times the mean squared one, in float32.

    The first keeps edges sharp; the second pulls at the few pixels that are far off.
    """
    frames, target = frames.float(), target.float()
    return F.l1_loss(frames, target) + mse_weight * F.mse_loss(frames, target)


def standard_normal_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the KL divergence of a diagonal normal from the standard one, mean over elements."""
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def warmup_cosine(step: int, warmup_steps: int, progress: float) -> float:
    """Return the factor on the learning rate: a linear rise, then half a cosine down to zero.

    Args:
        step: Training steps so far.
        warmup_steps: Steps of the rise.
        progress: How much of the training is done, in [0, 1].
    """
    rise = min(1.0, (step + 1) / max(1, warmup_steps))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def adamw_with_schedule(
    module: nn.Module,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    warmup_steps: int,
    max_steps: int | None = None,
    max_seconds: float | None = None,
) -> tuple[AdamW, LambdaLR]:
    """Return AdamW over all parameters and its ``warmup_cosine`` schedule, stepped every step.

    Weight decay is off: weights in front of a norm have no scale that it could act on.

    Args:
        module: Its parameters are trained.
        learning_rate: At the top of the schedule.
        betas: Of AdamW.
        warmup_steps: Steps of the rise.
        max_steps: Steps after which the rate is zero; None for no such end.
        max_seconds: Seconds from the first step after which it is zero, for a machine that is lent
            by the minute; None for no such end.
    """
    optimizer = AdamW(module.parameters(), lr=learning_rate, betas=betas, weight_decay=0.0)
    started: list[float] = []

    def factor(step: int) -> float:
        now = time.monotonic()
        # The schedule is asked once while it is made, before anything is trained.
        if step == 1:
            started.append(now)
        seconds = now - started[0] if started else 0.0
        by_steps = step / max_steps if max_steps else 0.0
        by_seconds = seconds / max_seconds if max_seconds else 0.0
        return warmup_cosine(step, warmup_steps, max(by_steps, by_seconds))

    return optimizer, LambdaLR(optimizer, factor)
