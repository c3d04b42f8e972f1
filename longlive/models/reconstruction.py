"""What training a decoder by reconstruction needs: losses and a measure."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_DIFFERS = 0.05  # of [-1, 1]
_AROUND_PX = 5


class FramePair(NamedTuple):
    """What a VAE is shown and what it is to give back; they differ in what it should drop.

    Attributes:
        frames: ``[B, T, 3, H, W]`` in [0, 1].
        target: The same shape and range.
    """

    frames: Tensor
    target: Tensor


@dataclass(frozen=True, slots=True)
class LossWeights:
    """What the terms of a VAE's loss weigh beside the mean absolute error.

    Attributes:
        squared: The mean squared error.
        kl: The KL divergence of the posterior from the standard normal, a mean over latent values.
        objects: The same errors once more, of the pixels in and around objects, summed over these
            and divided by all pixels: an object is a twentieth of the picture, and the outline that
            it is known by is less.
    """

    squared: float = 1.0
    kl: float = 1e-4
    objects: float = 0.0


def psnr_db(frames: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of frames in [0, 1], in dB, over the whole batch."""
    return -10 * torch.log10(F.mse_loss(frames.float(), target.float()).clamp_min(1e-10))


def pixel_loss(frames: Tensor, target: Tensor, mse_weight: float) -> Tensor:
    """Return the mean absolute error plus ``mse_weight`` times the mean squared one, in float32.

    The first keeps edges sharp; the second pulls at the few pixels that are far off.
    """
    frames, target = frames.float(), target.float()
    return F.l1_loss(frames, target) + mse_weight * F.mse_loss(frames, target)


def around_objects(frames_BTCHW: Tensor) -> Tensor:
    """Return a mask ``[B, T, 1, H, W]`` of what is not background, and of the pixels around it.

    Args:
        frames_BTCHW: Clips in [-1, 1] whose backgrounds have one color that covers most of a frame.
    """
    colors_BTC11 = frames_BTCHW.flatten(-2).median(-1).values[..., None, None]
    differs_BT1HW = (frames_BTCHW - colors_BTC11).abs().amax(2, keepdim=True) > _DIFFERS
    grown = F.max_pool2d(differs_BT1HW.flatten(0, 1).float(), _AROUND_PX, 1, _AROUND_PX // 2)
    return grown.unflatten(0, differs_BT1HW.shape[:2])


def standard_normal_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the KL divergence of a diagonal normal from the standard one, mean over elements."""
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
