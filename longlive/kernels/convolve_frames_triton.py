"""The Triton kernel of :mod:`longlive.kernels.convolve_frames`; imports Triton.

The convolution is a product for each of its 27 entries, of positions by channels. A program makes
the same few positions of some neighboring frames: each frame that it fetches is used for up to
three of them. Tiles come by tensor descriptors, which give zeros beyond the edges of a frame.
The 96 channels of the result are products of 64 and of 32, since sides are powers of two.
"""

# What a kernel is given has no type that Python knows.
# mypy: disable-error-code="no-untyped-def,var-annotated,assignment"

# Shape suffixes: those of the plain version; E = B S frames in a row, P = B T of the result, K 27
# entries.

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longlive.kernels.conv_input import HISTORY
from longlive.kernels.convolve_frames import CHANNELS, CHUNK, empty_result

_WIDE = 64
_REST = CHANNELS - _WIDE
_HISTORY = tl.constexpr(HISTORY)


class Tile(NamedTuple):
    """The part of one program.

    Attributes:
        frames: Of the result, which divide those of the call.
        rows: A power of two.
        columns: Likewise; 64 positions for each four warps.
        warps: Of a program.
        stages: Sets of tiles that are on their way or in use.
    """

    frames: int
    rows: int
    columns: int
    warps: int
    stages: int


TILES = (Tile(4, 4, 16, 4, 3), Tile(2, 4, 16, 4, 2), Tile(1, 8, 16, 4, 3))
"""The first whose frames divide those of a call is used."""


def triton_convolve_frames(
    x_BCSHW: Tensor, weight_OC333: Tensor, tile: Tile | None = None
) -> Tensor:
    """Compute ``plain_convolve_frames`` in one launch, of 96 channels from whole chunks."""
    out_BOTHW = empty_result(x_BCSHW, weight_OC333)
    batch, _, frames, height, width = out_BOTHW.shape
    if tile is None:
        tile = next(one for one in TILES if frames % one.frames == 0)
    x_EHWC = _channels_last(x_BCSHW).flatten(0, 1)
    out_PHWO = _channels_last(out_BOTHW).flatten(0, 1)
    weight_OKC = _channels_last(weight_OC333).flatten(1, 3)
    assert out_PHWO.data_ptr() == out_BOTHW.data_ptr()
    positions = [1, tile.rows, tile.columns]
    tiles_across = triton.cdiv(width, tile.columns)
    grid = (tiles_across * triton.cdiv(height, tile.rows), batch * frames // tile.frames)
    _convolve_frames[grid](
        TensorDescriptor.from_tensor(x_EHWC, [*positions, CHUNK]),
        TensorDescriptor.from_tensor(weight_OKC, [_WIDE, 1, CHUNK]),
        TensorDescriptor.from_tensor(weight_OKC, [_REST, 1, CHUNK]),
        TensorDescriptor.from_tensor(out_PHWO, [*positions, _WIDE]),
        TensorDescriptor.from_tensor(out_PHWO, [*positions, _REST]),
        *(frames, tiles_across),
        CHUNKS=x_EHWC.shape[-1] // CHUNK,
        CHUNK=CHUNK,
        WIDE=_WIDE,
        REST=_REST,
        FRAMES=tile.frames,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out_BOTHW


def _channels_last(x_BCTHW: Tensor) -> Tensor:
    """``[B, T, H, W, C]`` as it lies in memory; copied if it lies otherwise."""
    return x_BCTHW.contiguous(memory_format=torch.channels_last_3d).permute(0, 2, 3, 4, 1)


# A program more for each number of frames would gain nothing.
@triton.jit(do_not_specialize=["frames", "tiles_across"])
def _convolve_frames(  # noqa: PLR0913 - a kernel has no structures.
    x_tiles,
    wide_weights,
    rest_weights,
    wide_out,
    rest_out,
    frames,
    tiles_across,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDE: tl.constexpr,
    REST: tl.constexpr,
    FRAMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    positions: tl.constexpr = ROWS * COLUMNS
    row = tl.program_id(0) // tiles_across * ROWS
    column = tl.program_id(0) % tiles_across * COLUMNS
    groups = frames // FRAMES
    video = tl.program_id(1) // groups
    made = tl.program_id(1) * FRAMES
    given = made + video * _HISTORY

    wide_sums = ()
    rest_sums = ()
    for _ in tl.static_range(FRAMES):
        wide_sums = wide_sums + (tl.zeros([positions, WIDE], tl.float32),)
        rest_sums = rest_sums + (tl.zeros([positions, REST], tl.float32),)
    for step in tl.range(0, 9 * CHUNKS):
        entry = step // CHUNKS
        channel = step % CHUNKS * CHUNK
        place_row = row + entry // 3 - 1
        place_column = column + entry % 3 - 1
        wide = ()
        rest = ()
        for before in tl.static_range(3):
            place = 9 * before + entry
            wide = wide + (wide_weights.load([0, place, channel]).reshape(WIDE, CHUNK).T,)
            rest = rest + (rest_weights.load([WIDE, place, channel]).reshape(REST, CHUNK).T,)
        x = ()
        for frame in tl.static_range(2):
            x_tile = x_tiles.load([given + frame, place_row, place_column, channel])
            x = x + (x_tile.reshape(positions, CHUNK),)
        new_wide = ()
        new_rest = ()
        for frame in tl.static_range(FRAMES):
            x_tile = x_tiles.load([given + frame + 2, place_row, place_column, channel])
            x = x + (x_tile.reshape(positions, CHUNK),)
            wide_sum = wide_sums[frame]
            for before in tl.static_range(3):
                wide_sum = tl.dot(x[frame + before], wide[before], wide_sum)
            rest_sum = rest_sums[frame]
            for before in tl.static_range(3):
                rest_sum = tl.dot(x[frame + before], rest[before], rest_sum)
            new_wide = new_wide + (wide_sum,)
            new_rest = new_rest + (rest_sum,)
        wide_sums = new_wide
        rest_sums = new_rest
    for frame in tl.static_range(FRAMES):
        wide_tile = wide_sums[frame].to(wide_out.dtype).reshape(1, ROWS, COLUMNS, WIDE)
        rest_tile = rest_sums[frame].to(rest_out.dtype).reshape(1, ROWS, COLUMNS, REST)
        wide_out.store([made + frame, row, column, 0], wide_tile)
        rest_out.store([made + frame, row, column, WIDE], rest_tile)
