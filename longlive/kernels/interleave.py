"""Channels that are moved between frames, rows or columns, in one copy with the bias added.

A convolution that makes several outputs of a position at once has their channels side by side.
``interleave_frames`` gives each half of the channels a frame of its own; ``interleave_phases``
gives each quarter a pixel of its own.

Shapes: B batch, C channels of the result, T frames, H rows, W columns; N pictures.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def interleave_frames(halves_BCTHW: Tensor, bias_C: Tensor | None) -> Tensor:
    """Return ``[B, C, 2 T, H, W]``, channels-last, of ``[B, 2 C, T, H, W]``.

    Args:
        halves_BCTHW: The first half of the channels is the even frames, the second the odd ones.
        bias_C: Of all ``2 C`` channels.
    """
    frames_BCTHW: Tensor = _frames(
        halves_BCTHW.contiguous(memory_format=torch.channels_last_3d), bias_C
    )
    return frames_BCTHW


def interleave_phases(phases_NCHW: Tensor, bias_C: Tensor | None) -> Tensor:
    """Return ``[N, C, 2 H, 2 W]``, channels-last, of ``[N, 4 C, H + 1, W + 1]``.

    Args:
        phases_NCHW: A quarter of the channels for each of the phases (even, even), (even, odd),
            (odd, even), (odd, odd) of rows and columns. Odd rows lack the first one of the input
            and even rows the last one; columns likewise.
        bias_C: Of all ``4 C`` channels.
    """
    pictures_NCHW: Tensor = _phases(
        phases_NCHW.contiguous(memory_format=torch.channels_last), bias_C
    )
    return pictures_NCHW


def plain_interleave_frames(halves_BCTHW: Tensor, bias_C: Tensor | None) -> Tensor:
    """Compute what the kernel does, in steps."""
    if bias_C is not None:
        halves_BCTHW = _plus(halves_BCTHW, bias_C)
    even_BCTHW, odd_BCTHW = halves_BCTHW.chunk(2, dim=1)
    doubled_BCTHW = torch.stack([even_BCTHW, odd_BCTHW], dim=3).flatten(2, 3)
    return doubled_BCTHW.contiguous(memory_format=torch.channels_last_3d)


def plain_interleave_phases(phases_NCHW: Tensor, bias_C: Tensor | None) -> Tensor:
    """Compute what the kernel does, in steps."""
    if bias_C is not None:
        phases_NCHW = _plus(phases_NCHW, bias_C)
    # Without its first row or column, or without its last.
    crops = [(0, -1), (-1, 0)]
    quarters = phases_NCHW.chunk(4, dim=1)
    cropped = [
        F.pad(quarters[2 * row + column], (*crops[column], *crops[row]))
        for row in range(2)
        for column in range(2)
    ]
    # [N, C, a b, H, W]; pixel_shuffle wants the phases behind each channel.
    pictures_NCHW = F.pixel_shuffle(torch.stack(cropped, dim=2).flatten(1, 2), 2)
    return pictures_NCHW.contiguous(memory_format=torch.channels_last)


def _plus(x: Tensor, bias_C: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    shape = (-1, *[1] * (x.ndim - 2))
    return (x.to(wide) + bias_C.to(wide).view(shape)).to(x.dtype)


_frames = torch.library.custom_op(
    "longlive::interleave_frames", plain_interleave_frames, mutates_args=()
)
_phases = torch.library.custom_op(
    "longlive::interleave_phases", plain_interleave_phases, mutates_args=()
)


@_frames.register_fake
def empty_frames(halves_BCTHW: Tensor, bias_C: Tensor | None) -> Tensor:
    """The result of :func:`interleave_frames`, before it is written."""
    batch, channels, frames, height, width = halves_BCTHW.shape
    return torch.empty(
        (batch, channels // 2, 2 * frames, height, width),
        dtype=halves_BCTHW.dtype,
        device=halves_BCTHW.device,
        memory_format=torch.channels_last_3d,
    )


@_phases.register_fake
def empty_phases(phases_NCHW: Tensor, bias_C: Tensor | None) -> Tensor:
    """The result of :func:`interleave_phases`, before it is written."""
    pictures, channels, height, width = phases_NCHW.shape
    return torch.empty(
        (pictures, channels // 4, 2 * (height - 1), 2 * (width - 1)),
        dtype=phases_NCHW.dtype,
        device=phases_NCHW.device,
        memory_format=torch.channels_last,
    )


@_frames.register_kernel("cuda")
def _(halves_BCTHW: Tensor, bias_C: Tensor | None) -> Tensor:
    from longlive.kernels.interleave_triton import triton_interleave_frames

    return triton_interleave_frames(halves_BCTHW, bias_C)


@_phases.register_kernel("cuda")
def _(phases_NCHW: Tensor, bias_C: Tensor | None) -> Tensor:
    from longlive.kernels.interleave_triton import triton_interleave_phases

    return triton_interleave_phases(phases_NCHW, bias_C)
