"""A 3x3x3 convolution of frames that have their history before them, for the decoder's last level.

There the frames are largest and have 96 channels, which no tile of cuDNN's kernels fits: half of
what they compute is thrown away, and these few convolutions were half of a decode. The kernel here
takes what it is given; all others are left to cuDNN.

Shapes: B batch, C channels, O = 96 channels of the result, S = 2 + T frames with the two before
them, H rows, W columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive.kernels.conv_input import HISTORY

CHANNELS = 96
"""Of the result."""
CHUNK = 32
"""Channels of the input that a tile takes at a time."""
_KERNEL = (3, 3, 3)
_DTYPES = (torch.bfloat16, torch.float16)
_ARCHITECTURES = (9, 10)
"""That fetch tiles by themselves, zeros beyond the edges included, and have room for 126 KiB of
them; GPUs for desktops (12) have less."""


def fits(x_BCSHW: Tensor, conv: nn.Conv3d) -> bool:
    """Whether :func:`convolve_frames` is for such a convolution; nothing is said of the GPU."""
    return (
        x_BCSHW.is_cuda
        and x_BCSHW.dtype == conv.weight.dtype
        and x_BCSHW.dtype in _DTYPES
        and conv.out_channels == CHANNELS
        and conv.in_channels % CHUNK == 0
        and (conv.kernel_size, conv.padding) == (_KERNEL, (0, 1, 1))
        and (conv.stride, conv.dilation, conv.groups) == ((1, 1, 1), (1, 1, 1), 1)
    )


def plain_convolve_frames(x_BCSHW: Tensor, weight_OC333: Tensor) -> Tensor:
    """Compute what the kernel does by what torch has."""
    out_BOTHW = F.conv3d(x_BCSHW, weight_OC333, padding=(0, 1, 1))
    return out_BOTHW.contiguous(memory_format=torch.channels_last_3d)


def empty_result(x_BCSHW: Tensor, weight_OC333: Tensor) -> Tensor:
    """What :func:`convolve_frames` returns, before it is written."""
    batch, _, stored, height, width = x_BCSHW.shape
    return torch.empty(
        (batch, weight_OC333.shape[0], stored - HISTORY, height, width),
        dtype=x_BCSHW.dtype,
        device=x_BCSHW.device,
        memory_format=torch.channels_last_3d,
    )


@torch.library.custom_op("longlive::convolve_frames", mutates_args=())
def convolve_frames(x_BCSHW: Tensor, weight_OC333: Tensor) -> Tensor:
    """Return ``[B, O, T, H, W]``, channels-last, without a bias.

    Args:
        x_BCSHW: Frames behind their history.
        weight_OC333: Both are fastest with their channels last.
    """
    return plain_convolve_frames(x_BCSHW, weight_OC333)


@convolve_frames.register_kernel("cuda")
def _(x_BCSHW: Tensor, weight_OC333: Tensor) -> Tensor:
    if torch.cuda.get_device_capability(x_BCSHW.device)[0] not in _ARCHITECTURES:
        return plain_convolve_frames(x_BCSHW, weight_OC333)
    from longlive.kernels.convolve_frames_triton import triton_convolve_frames

    return triton_convolve_frames(x_BCSHW, weight_OC333)


@convolve_frames.register_fake
def _(x_BCSHW: Tensor, weight_OC333: Tensor) -> Tensor:
    return empty_result(x_BCSHW, weight_OC333)
