"""The Triton kernels of ``longlive.kernels.interleave``.

A program takes some positions of one frame, or of one row of one picture, of the result.
"""

# Triton reads the annotations of a kernel itself.
# mypy: disallow-untyped-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from longlive.kernels.interleave import empty_frames, empty_phases
from longlive.kernels.tiles import padded_channels, tile_of


@triton.jit
def _interleave_frames(
    halves,
    bias,
    out,
    positions,
    CHANNELS: tl.constexpr,
    PADDED_CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    frame = tl.program_id(1) // 2
    half = tl.program_id(1) % 2
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.arange(0, PADDED_CHANNELS)
    has_channel = channel < CHANNELS
    inside = (position < positions)[:, None] & has_channel[None, :]
    size = tl.cast(positions, tl.int64) * CHANNELS
    source = halves + frame * 2 * size + half * CHANNELS
    offset = position[:, None] * (2 * CHANNELS) + channel[None, :]
    value = tl.load(source + offset, mask=inside)
    if bias is not None:
        own = tl.load(bias + half * CHANNELS + channel, mask=has_channel, other=0.0)
        value = value.to(tl.float32) + own.to(tl.float32)[None, :]
    target = out + tl.program_id(1) * size
    tl.store(target + position[:, None] * CHANNELS + channel[None, :], value, mask=inside)


@triton.jit
def _interleave_phases(
    phases,
    bias,
    out,
    height,
    width,
    CHANNELS: tl.constexpr,
    PADDED_CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    # Of the result; there may be more rows than the second axis of a grid can have.
    row = tl.program_id(0) % (2 * height)
    picture = tl.program_id(0) // (2 * height)
    column = tl.program_id(1) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.arange(0, PADDED_CHANNELS)
    has_channel = channel < CHANNELS
    inside = (column < 2 * width)[:, None] & has_channel[None, :]
    # Even rows begin with the first row of the input, odd ones with the second; columns likewise.
    source_row = picture * (height + 1) + row // 2 + row % 2
    source_column = column // 2 + column % 2
    phase = 2 * (row % 2) + column % 2
    source = phases + tl.cast(source_row, tl.int64) * (width + 1) * (4 * CHANNELS)
    start = source_column * (4 * CHANNELS) + phase * CHANNELS
    value = tl.load(source + start[:, None] + channel[None, :], mask=inside)
    if bias is not None:
        own = tl.load(bias + (phase * CHANNELS)[:, None] + channel[None, :], mask=inside, other=0.0)
        value = value.to(tl.float32) + own.to(tl.float32)
    target = out + tl.cast(tl.program_id(0), tl.int64) * (2 * width) * CHANNELS
    tl.store(target + column[:, None] * CHANNELS + channel[None, :], value, mask=inside)


def triton_interleave_frames(halves_BCTHW: Tensor, bias_C: Tensor | None) -> Tensor:
    """Compute what ``plain_interleave_frames`` does; the input must be channels-last."""
    assert halves_BCTHW.is_contiguous(memory_format=torch.channels_last_3d)
    out_BCTHW = empty_frames(halves_BCTHW, bias_C)
    batch, channels, frames, height, width = out_BCTHW.shape
    tile = tile_of(channels)
    programs = triton.cdiv(height * width, tile.positions)
    assert programs * tile.positions * 2 * channels < 2**31, "offsets of 32 bits"
    with torch.cuda.device_of(halves_BCTHW):
        _interleave_frames[programs, batch * frames](
            halves_BCTHW,
            bias_C,
            out_BCTHW,
            height * width,
            CHANNELS=channels,
            PADDED_CHANNELS=padded_channels(channels),
            POSITIONS=tile.positions,
            num_warps=tile.warps,
        )
    return out_BCTHW


def triton_interleave_phases(phases_NCHW: Tensor, bias_C: Tensor | None) -> Tensor:
    """Compute what ``plain_interleave_phases`` does; the input must be channels-last."""
    assert phases_NCHW.is_contiguous(memory_format=torch.channels_last)
    out_NCHW = empty_phases(phases_NCHW, bias_C)
    pictures, channels, height, width = out_NCHW.shape
    tile = tile_of(channels)
    with torch.cuda.device_of(phases_NCHW):
        _interleave_phases[pictures * height, triton.cdiv(width, tile.positions)](
            phases_NCHW,
            bias_C,
            out_NCHW,
            height // 2,
            width // 2,
            CHANNELS=channels,
            PADDED_CHANNELS=padded_channels(channels),
            POSITIONS=tile.positions,
            num_warps=tile.warps,
        )
    return out_NCHW
