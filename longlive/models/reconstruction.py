"""What training a decoder by reconstruction needs: losses and a measure."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


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
