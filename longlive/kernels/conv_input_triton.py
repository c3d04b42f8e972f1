"""The Triton kernel of ``longlive.kernels.conv_input``.

A program takes some positions of one frame of the result, with all channels: to it a frame is
either history, which is copied, or new.
"""

# Triton reads the annotations of a kernel itself.
# mypy: disallow-untyped-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from longlive.kernels.conv_input import HISTORY, LEAST_LENGTH, empty_results
from longlive.kernels.tiles import padded_channels, tile_of


@triton.jit
def _conv_input(  # noqa: PLR0913
    x,
    residual,
    bias,
    history,
    gamma,
    padded,
    total,
    frames,
    positions,
    root_of_channels,
    least_length,
    CHANNELS: tl.constexpr,
    PADDED_CHANNELS: tl.constexpr,
    HISTORY: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    frame = tl.program_id(1) % (HISTORY + frames)
    batch = tl.program_id(1) // (HISTORY + frames)
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.arange(0, PADDED_CHANNELS)
    has_channel = channel < CHANNELS
    inside = (position < positions)[:, None] & has_channel[None, :]
    # Within a frame 32 bits suffice, which the caller checks; from frame to frame they do not.
    offset = position[:, None] * CHANNELS + channel[None, :]
    size = tl.cast(positions, tl.int64) * CHANNELS
    target = padded + tl.program_id(1) * size + offset
    if frame < HISTORY:
        if history is None:
            tl.store(target, tl.zeros([POSITIONS, PADDED_CHANNELS], tl.float32), mask=inside)
        else:
            source = history + (batch * HISTORY + frame) * size + offset
            tl.store(target, tl.load(source, mask=inside), mask=inside)
    else:
        start = (batch * frames + frame - HISTORY) * size
        # Channels that do not exist are zeros and add nothing to the length.
        value = tl.load(x + start + offset, mask=inside, other=0.0).to(tl.float32)
        if residual is not None:
            value += tl.load(residual + start + offset, mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            value += tl.load(bias + channel, mask=has_channel, other=0.0).to(tl.float32)[None, :]
        if total is not None:
            tl.store(total + start + offset, value, mask=inside)
        if gamma is not None:
            length = tl.maximum(tl.sqrt(tl.sum(value * value, axis=1)), least_length)
            scale = tl.load(gamma + channel, mask=has_channel, other=0.0).to(tl.float32)
            value *= (root_of_channels / length)[:, None] * scale[None, :]
            value = value / (1.0 + tl.exp(-value))
        tl.store(target, value, mask=inside)


def triton_conv_input(
    x_BCTHW: Tensor,
    residual_BCTHW: Tensor | None,
    bias_C: Tensor | None,
    history_BCTHW: Tensor | None,
    gamma_C: Tensor | None,
    pads: bool,
    keeps_sum: bool,
) -> list[Tensor]:
    """Compute what ``plain_conv_input`` does, in one kernel; tensors must be channels-last."""
    batch, channels, frames, height, width = x_BCTHW.shape
    positions = height * width
    for each in (x_BCTHW, residual_BCTHW, history_BCTHW):
        assert each is None or each.is_contiguous(memory_format=torch.channels_last_3d)
    tile = tile_of(channels)
    programs = triton.cdiv(positions, tile.positions)
    assert programs * tile.positions * padded_channels(channels) < 2**31, "offsets of 32 bits"
    results = empty_results(x_BCTHW, pads=pads, keeps_sum=keeps_sum)
    history = HISTORY if pads else 0
    with torch.cuda.device_of(x_BCTHW):
        _conv_input[programs, batch * (history + frames)](
            x_BCTHW,
            residual_BCTHW,
            bias_C,
            history_BCTHW,
            gamma_C,
            results[0],
            results[1] if keeps_sum else None,
            frames,
            positions,
            channels**0.5,
            LEAST_LENGTH,
            CHANNELS=channels,
            PADDED_CHANNELS=padded_channels(channels),
            HISTORY=history,
            POSITIONS=tile.positions,
            num_warps=tile.warps,
        )
    return results
