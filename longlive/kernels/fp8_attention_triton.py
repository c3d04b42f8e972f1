"""The Triton kernel of :mod:`longlive.kernels.fp8_attention`; imports Triton.

A program holds the queries of a tile and walks over all keys, with the running maximum and sum of a
softmax that is never whole (arXiv:2112.05682, arXiv:2205.14135). Keys and values come by tensor
descriptors: the copy engine of Hopper fills the tiles, and no thread computes their addresses.
Whole tiles lie within the cache, which is padded; of the last one the scores of what is not to be
seen are put out.

A GPU runs some hundred programs at a time, a wave, and all take as long as each other: a last wave
that is mostly empty costs as much as a full one. Its programs can be divided, each part walking
over its share of the keys, and what the parts have gathered is put together afterwards.
"""

# What a kernel is given has no type that Python knows.
# mypy: disable-error-code="no-untyped-def"

# Shape suffixes: B batch, L queries, N heads, D head dim, T tokens the cache has room for, K two
# kinds: keys and values.

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longlive.kernels.fp8_attention import WEIGHT_BITS, score_scale
from longlive.kernels.fp8_write import LARGEST, SMALLEST_SCALE

_LARGEST = tl.constexpr(LARGEST)
_SMALLEST_SCALE = tl.constexpr(SMALLEST_SCALE)
_WEIGHT_BITS = tl.constexpr(WEIGHT_BITS)


class Tile(NamedTuple):
    """How the work is divided; the result does not depend on it, but for the order of sums.

    Attributes:
        queries: Of one program, a power of two; 64 for each four warps.
        keys: That it takes at a time, a power of two of at most 128.
        warps: Of a program.
        stages: Tiles of keys and values that are on their way or in use.
        wide_sums: Whether the products of a tile are summed by themselves and added in float32.
            The tensor cores of Hopper keep some 14 bits of a sum of eight-bit products, and a sum
            over all keys loses more of them.
        parts: Into how many each program of the last wave is divided at most; 1 leaves it whole.
        resident: Programs that a multiprocessor runs at a time.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    wide_sums: bool = True
    parts: int = 1
    resident: int = 2


TILES = (
    Tile(64, 128, 4, 3, wide_sums=False, parts=2),
    Tile(64, 128, 4, 3, wide_sums=False),
    Tile(64, 128, 4, 3, wide_sums=False, parts=4),
    Tile(64, 128, 4, 3),
    Tile(64, 128, 4, 2, wide_sums=False),
    Tile(64, 128, 4, 4, wide_sums=False),
    Tile(64, 64, 4, 4, wide_sums=False),
    Tile(64, 64, 4, 4),
    Tile(128, 128, 8, 3, wide_sums=False),
    Tile(128, 128, 8, 3),
    Tile(128, 64, 8, 4, wide_sums=False),
)
"""Worth trying on Hopper; the first one is used. ``tools/time_attention.py`` times them all."""


class Division(NamedTuple):
    """How programs are divided.

    Attributes:
        whole: Leading ones that are not.
        rest: Of the last wave, each in several parts.
        parts: How many.
    """

    whole: int
    rest: int
    parts: int


def division_of(programs: int, wave: int, most_parts: int) -> Division:
    """Divide the programs of the last wave, if there is room for their parts in a wave.

    Args:
        programs: All of them.
        wave: How many run at a time.
        most_parts: Into how many parts one may be divided.
    """
    rest = programs % wave
    parts = min(most_parts, wave // rest) if rest else 1
    return Division(programs - rest, rest, parts) if parts > 1 else Division(programs, 0, 1)


def triton_fp8_attention(
    q_BLND: Tensor,
    k_cache_BNTD: Tensor,
    v_cache_BNDT: Tensor,
    shift_KBND: Tensor,
    scale_KBN: Tensor,
    length: int,
    tile: Tile = TILES[0],
    wave: int | None = None,
) -> Tensor:
    """Compute :func:`longlive.kernels.fp8_attention.plain_fp8_attention` in one launch or two.

    The width of a head is a power of two of at least 32, and the cache is padded to whole tiles.
    ``wave`` is the number of programs that run at a time, if not what the GPU says.
    """
    batch, queries, heads, head_dim = q_BLND.shape
    capacity = k_cache_BNTD.shape[2]
    assert q_BLND.stride(3) == 1
    assert capacity % tile.keys == 0
    assert 0 < length <= capacity
    assert all(x.is_contiguous() for x in (k_cache_BNTD, v_cache_BNDT, shift_KBND, scale_KBN))
    out_BLND = q_BLND.new_empty(q_BLND.shape)
    programs = triton.cdiv(queries, tile.queries) * batch * heads
    if tile.parts == 1:
        wave = programs
    elif wave is None:
        device = torch.cuda.get_device_properties(q_BLND.device)
        wave = device.multi_processor_count * tile.resident
    most_parts = min(tile.parts, triton.cdiv(length, tile.keys))
    whole, rest, parts = division_of(programs, wave, most_parts)
    # What each part has gathered, its largest score and the sum of its weights.
    of_parts = (rest * parts, tile.queries)
    sums = q_BLND.new_empty((*of_parts, head_dim), dtype=torch.float32)
    top, total = (q_BLND.new_empty(of_parts, dtype=torch.float32) for _ in range(2))
    sizes = {"N": heads, "D": head_dim, "QUERIES": tile.queries, "PARTS": parts}
    _fp8_attention[(whole + rest * parts,)](
        *(q_BLND, *q_BLND.stride()[:3]),
        TensorDescriptor.from_tensor(k_cache_BNTD.flatten(0, 2), [tile.keys, head_dim]),
        TensorDescriptor.from_tensor(v_cache_BNDT.flatten(0, 2), [head_dim, tile.keys]),
        *(shift_KBND[1], scale_KBN[0], scale_KBN[1], score_scale(head_dim)),
        *(out_BLND, sums, top, total, queries, length, capacity, whole),
        KEYS=tile.keys,
        WIDE_SUMS=tile.wide_sums,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **sizes,
    )
    if rest:
        results = out_BLND, sums, top, total, shift_KBND[1], scale_KBN[1], queries, whole
        _put_together[(rest,)](*results, num_warps=tile.warps, **sizes)
    return out_BLND


# A program more for each length of the window would gain nothing.
@triton.jit(do_not_specialize=["queries", "length", "whole"])
def _fp8_attention(  # noqa: PLR0913 - a kernel has no structures.
    q,
    q_video,
    q_token,
    q_head,
    k_tiles,
    v_tiles,
    v_shift,
    k_scale,
    v_scale,
    score_scale,
    out,
    part_sums,
    part_top,
    part_total,
    queries,
    length,
    capacity,
    whole,
    N: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDE_SUMS: tl.constexpr,
):
    program = tl.program_id(0)
    number, part, parts = program, 0, 1
    if PARTS > 1:
        is_part = program >= whole
        number = tl.where(is_part, whole + (program - whole) // PARTS, program)
        part = tl.where(is_part, (program - whole) % PARTS, 0)
        parts = tl.where(is_part, PARTS, 1)
    tiles = (queries + QUERIES - 1) // QUERIES
    pair = number // tiles
    tokens = number % tiles * QUERIES + tl.arange(0, QUERIES)
    channels = tl.arange(0, D)
    is_there = tokens[:, None] < queries
    given = q + pair.to(tl.int64) // N * q_video + pair % N * q_head
    given = given + tokens.to(tl.int64)[:, None] * q_token + channels[None, :]
    wide = tl.load(given, mask=is_there, other=0.0).to(tl.float32)
    q_scale = tl.maximum(tl.max(tl.abs(wide), 1) / _LARGEST, _SMALLEST_SCALE)
    scaled = tl.clamp(wide / q_scale[:, None], -_LARGEST, _LARGEST)
    q_tile = scaled.to(tl.float8e4nv)
    row = q_scale * (tl.load(k_scale + pair) * score_scale)

    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, D), tl.float32)
    first_key, first_channel = pair * capacity, pair * D
    tiles_of_keys = (length + KEYS - 1) // KEYS
    begin = part * tiles_of_keys // parts * KEYS
    last = ((part + 1) * tiles_of_keys // parts - 1) * KEYS
    for start in tl.range(begin, last, KEYS):
        products = tl.dot(q_tile, k_tiles.load([first_key + start, 0]).T)
        v_tile = v_tiles.load([first_channel, start])
        top, total, sums = _added(products, row, v_tile, top, total, sums, WIDE_SUMS)
    products = tl.dot(q_tile, k_tiles.load([first_key + last, 0]).T)
    is_seen = last + tl.arange(0, KEYS) < length
    products = tl.where(is_seen[None, :], products, float("-inf"))
    v_tile = v_tiles.load([first_channel, last])
    top, total, sums = _added(products, row, v_tile, top, total, sums, WIDE_SUMS)

    if PARTS > 1:
        if is_part:
            place = (program - whole) * QUERIES + tl.arange(0, QUERIES)
            tl.store(part_top + place, top)
            tl.store(part_total + place, total)
            tl.store(part_sums + place[:, None] * D + channels[None, :], sums)
        else:
            _finish(out, sums, total, v_shift, v_scale, tokens, pair, queries, N, D)
    else:
        _finish(out, sums, total, v_shift, v_scale, tokens, pair, queries, N, D)


@triton.jit(do_not_specialize=["queries", "whole"])
def _put_together(  # noqa: PLR0913 - a kernel has no structures.
    out,
    part_sums,
    part_top,
    part_total,
    v_shift,
    v_scale,
    queries,
    whole,
    N: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    PARTS: tl.constexpr,
):
    rest = tl.program_id(0)
    rows = tl.arange(0, QUERIES)
    channels = tl.arange(0, D)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, D), tl.float32)
    for part in tl.static_range(PARTS):
        place = (rest * PARTS + part) * QUERIES + rows
        part_s = tl.load(part_sums + place[:, None] * D + channels[None, :])
        own = tl.load(part_top + place)
        new_top = tl.maximum(top, own)
        fading, weight = tl.exp2(top - new_top), tl.exp2(own - new_top)
        total = total * fading + tl.load(part_total + place) * weight
        sums = sums * fading[:, None] + part_s * weight[:, None]
        top = new_top
    tiles = (queries + QUERIES - 1) // QUERIES
    tokens = (whole + rest) % tiles * QUERIES + rows
    pair = (whole + rest) // tiles
    _finish(out, sums, total, v_shift, v_scale, tokens, pair, queries, N, D)


@triton.jit
def _finish(  # noqa: PLR0913 - a kernel has no structures.
    out, sums, total, v_shift, v_scale, tokens, pair, queries, N: tl.constexpr, D: tl.constexpr
):
    """Divide by the sum of the weights, undo scale and shift of the values, and store."""
    channels = tl.arange(0, D)
    made = sums * (tl.load(v_scale + pair) / total)[:, None]
    made = made + tl.load(v_shift + pair * D + channels)[None, :]
    place = (pair // N).to(tl.int64) * queries + tokens
    place = (place[:, None] * N + pair % N) * D + channels[None, :]
    tl.store(out + place, made.to(out.dtype.element_ty), mask=tokens[:, None] < queries)


@triton.jit
def _added(products, row, v_tile, top, total, sums, WIDE_SUMS: tl.constexpr):
    """Add what the queries gather from a tile; ``row`` is positive."""
    new_top = tl.maximum(top, tl.ceil(tl.max(products, 1) * row))
    weights = tl.exp2(products * row[:, None] - (new_top - _WEIGHT_BITS)[:, None])
    fading = tl.exp2(top - new_top)
    total = total * fading + tl.sum(weights, 1)
    rounded = _as_values_lie(weights.to(tl.float8e4nv))
    if WIDE_SUMS:
        sums = sums * fading[:, None] + tl.dot(rounded, v_tile.T)
    else:
        sums = tl.dot(rounded, v_tile.T, sums * fading[:, None])
    return new_top, total, sums


@triton.jit
def _as_values_lie(weights):
    """Put the keys of each sixteen in the order that values have in the cache.

    A thread of a tensor core is given scores of the keys 2c, 2c + 1, 2c + 8 and 2c + 9, and hands
    in weights of 4c to 4c + 3: so no number changes its thread here.
    """
    queries: tl.constexpr = weights.shape[0]
    keys: tl.constexpr = weights.shape[1]
    sixteens = tl.reshape(weights, (queries, keys // 16, 2, 4, 2))
    return tl.reshape(tl.permute(sixteens, (0, 1, 3, 2, 4)), (queries, keys))
