"""The Triton kernel of :mod:`longlive.kernels.fp8_write`; imports Triton."""

# What a kernel is given has no type that Python knows.
# mypy: disable-error-code="no-untyped-def"

# Shape suffixes: B batch, L tokens of the call, N heads, D head dim, F stored latent frames,
# T tokens the cache has room for, K two kinds: keys and values.

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from longlive.kernels.fp8_write import HEADROOM, LARGEST, SMALLEST_SCALE, sees_only_itself

_TOKENS = 64
_WARPS = 4
# Into how many the tokens are cut of which extremes are looked for: a few programs for each
# multiprocessor.
_CHUNKS = 16
_SCALED_TO = tl.constexpr(HEADROOM / LARGEST)
_SMALLEST_SCALE = tl.constexpr(SMALLEST_SCALE)
_LARGEST = tl.constexpr(LARGEST)


def triton_fp8_write(
    new_BLND: Sequence[Tensor],
    k_cache_BNTD: Tensor,
    v_cache_BNDT: Tensor,
    shift_KBND: Tensor,
    scale_KBN: Tensor,
    slots_F: Tensor,
    slots_read: int,
) -> None:
    """Do what :func:`longlive.kernels.fp8_write.plain_fp8_write` does, in one launch.

    The width of a head is a power of two. Shift and scale, which the first block alone finds, take
    two more.
    """
    frames = len(slots_F)
    if sees_only_itself(frames, slots_read):
        triton_find_scales(new_BLND, shift_KBND, scale_KBN)
    if not frames:
        return
    k_BLND, v_BLND = new_BLND
    batch, length, heads, head_dim = k_BLND.shape
    caches = k_cache_BNTD, v_cache_BNDT
    assert k_BLND.stride(3) == v_BLND.stride(3) == 1
    assert all(x.is_contiguous() for x in (*caches, shift_KBND, scale_KBN))
    tokens = length // frames
    # A program takes some tokens of a latent frame: those of one kind, of one head. Sixteens of
    # values may begin before the frame does.
    tiles = triton.cdiv(tokens + 15, _TOKENS)
    grid = (frames * tiles, batch * heads, 2)
    _fp8_write[grid](
        *(k_BLND, v_BLND, *k_BLND.stride()[:3], *v_BLND.stride()[:3]),
        *(*caches, shift_KBND, scale_KBN, slots_F.contiguous(), batch * heads, tiles),
        N=heads,
        D=head_dim,
        P=tokens,
        T=k_cache_BNTD.shape[2],
        BLOCK=_TOKENS,
        num_warps=_WARPS,
    )


def triton_find_scales(new_BLND: Sequence[Tensor], shift_KBND: Tensor, scale_KBN: Tensor) -> None:
    """Do what :func:`longlive.kernels.fp8_write.find_scales` does, reading the numbers once.

    The largest distance from a mean is that of the largest number or of the smallest one.
    """
    k_BLND, v_BLND = new_BLND
    batch, length, heads, head_dim = k_BLND.shape
    assert k_BLND.stride(3) == v_BLND.stride(3) == 1
    assert all(x.is_contiguous() for x in (shift_KBND, scale_KBN))
    pairs = batch * heads
    # Sum, largest and smallest number of each channel, of each chunk of the tokens.
    found = shift_KBND.new_empty(2, pairs, 3, _CHUNKS, head_dim)
    _find_extremes[(_CHUNKS, pairs, 2)](
        *(k_BLND, v_BLND, *k_BLND.stride()[:3], *v_BLND.stride()[:3], found, length),
        N=heads,
        D=head_dim,
        CHUNKS=_CHUNKS,
        BLOCK=_TOKENS,
        num_warps=_WARPS,
    )
    _set_scales[(pairs, 2)](
        *(found, shift_KBND, scale_KBN, length),
        D=head_dim,
        CHUNKS=_CHUNKS,
        num_warps=_WARPS,
    )


@triton.jit
def _find_extremes(  # noqa: PLR0913
    k,
    v,
    k_video,
    k_token,
    k_head,
    v_video,
    v_token,
    v_head,
    found,
    length,
    N: tl.constexpr,
    D: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pair = tl.program_id(1).to(tl.int64)
    if tl.program_id(2) == 0:
        given = k + pair // N * k_video + pair % N * k_head
        stride = k_token
    else:
        given = v + pair // N * v_video + pair % N * v_head
        stride = v_token
    channels = tl.arange(0, D)
    total = tl.zeros([D], tl.float32)
    largest = tl.full([D], float("-inf"), tl.float32)
    smallest = tl.full([D], float("inf"), tl.float32)
    for first in range(tl.program_id(0) * BLOCK, length, CHUNKS * BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        is_there = (tokens < length)[:, None]
        x = tl.load(given + tokens[:, None] * stride + channels[None, :], mask=is_there, other=0.0)
        x = x.to(tl.float32)
        total += tl.sum(x, 0)
        largest = tl.maximum(largest, tl.max(tl.where(is_there, x, float("-inf")), 0))
        smallest = tl.minimum(smallest, tl.min(tl.where(is_there, x, float("inf")), 0))
    place = (tl.program_id(2) * tl.num_programs(1) + pair) * 3 * CHUNKS + tl.program_id(0)
    tl.store(found + place * D + channels, total)
    tl.store(found + (place + CHUNKS) * D + channels, largest)
    tl.store(found + (place + 2 * CHUNKS) * D + channels, smallest)


@triton.jit
def _set_scales(found, shift, scale, length, D: tl.constexpr, CHUNKS: tl.constexpr):
    pair = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    channels = tl.arange(0, D)
    places = found + pair * 3 * CHUNKS * D + tl.arange(0, CHUNKS)[:, None] * D + channels[None, :]
    mean = tl.sum(tl.load(places), 0) / length
    largest = tl.max(tl.load(places + CHUNKS * D), 0)
    smallest = tl.min(tl.load(places + 2 * CHUNKS * D), 0)
    peak = tl.max(tl.maximum(largest - mean, mean - smallest), 0)
    tl.store(shift + pair * D + channels, mean)
    tl.store(scale + pair, tl.maximum(peak * _SCALED_TO, _SMALLEST_SCALE))


@triton.jit
def _fp8_write(  # noqa: PLR0913 - a kernel has no structures.
    k,
    v,
    k_video,
    k_token,
    k_head,
    v_video,
    v_token,
    v_head,
    k_cache,
    v_cache,
    shift,
    scale,
    slots,
    pairs,
    tiles,
    N: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    frame = tl.program_id(0) // tiles
    inside = tl.program_id(0) % tiles * BLOCK
    pair = tl.program_id(1).to(tl.int64)
    start = tl.load(slots + frame) * P
    if tl.program_id(2) == 0:
        given = k + pair // N * k_video + pair % N * k_head + frame * P * k_token
        by = shift + pair * D, scale + pair
        _store_keys(given, k_token, by, k_cache + pair * T * D, start, inside, D, P, BLOCK)
    else:
        given = v + pair // N * v_video + pair % N * v_head + frame * P * v_token
        # Shift and scale of the values come after those of all keys.
        by = shift + (pairs + pair) * D, scale + pairs + pair
        _store_values(given, v_token, by, v_cache + pair * D * T, start, inside, D, P, T, BLOCK)


@triton.jit
def _store_keys(  # noqa: PLR0913
    given, stride, by, cache, start, inside, D: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr
):
    tokens = inside + tl.arange(0, BLOCK)
    keys = _rounded(given, stride, by, tokens, tokens < P, D)
    where = (start + tokens)[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(cache + where, keys, mask=(tokens < P)[:, None])


@triton.jit
def _store_values(  # noqa: PLR0913
    given,
    stride,
    by,
    cache,
    start,
    inside,
    D: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Whole sixteens, in the order in which they lie: what a thread stores is in one piece.
    first = start // 16 * 16 + inside
    places = first + tl.arange(0, BLOCK)
    tokens = places - places % 16 + (places & 12) // 2 + (places & 2) * 4 + (places & 1) - start
    is_there = (tokens >= 0) & (tokens < P)
    values = tl.trans(_rounded(given, stride, by, tokens, is_there, D))
    where = cache + tl.arange(0, D)[:, None] * T + places[None, :]
    # A mask would make it a store for each byte, so only the ends of a frame have one.
    if (first >= start) & (first + BLOCK <= start + P):
        tl.store(where, values)
    else:
        tl.store(where, values, mask=is_there[None, :])


@triton.jit
def _rounded(given, stride, by, tokens, is_there, D: tl.constexpr):
    """Load some tokens and round them; ``by`` is where shift and scale are."""
    shift, scale = by
    channels = tl.arange(0, D)
    place = given + tokens[:, None] * stride + channels[None, :]
    x = tl.load(place, mask=is_there[:, None], other=0.0).to(tl.float32)
    scaled = (x - tl.load(shift + channels)[None, :]) / tl.load(scale)
    return tl.clamp(scaled, -_LARGEST, _LARGEST).to(tl.float8e4nv)
