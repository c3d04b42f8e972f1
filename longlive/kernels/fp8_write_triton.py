"""The Triton kernel of :mod:`longlive.kernels.fp8_write`; imports Triton."""

# What a kernel is given has no type that Python knows.
# mypy: disable-error-code="no-untyped-def"

# Shape suffixes: B batch, L tokens of the call, N heads, D head dim, F stored latent frames,
# T tokens the cache has room for, K two kinds: keys and values.

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from longlive.kernels.fp8_write import LARGEST, find_scales

_TOKENS = 64
_WARPS = 4
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
    some plain operations more.
    """
    find_scales(new_BLND, shift_KBND, scale_KBN, len(slots_F), slots_read)
    frames = len(slots_F)
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
