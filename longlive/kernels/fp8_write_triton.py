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
    # A program takes some tokens of a latent frame: those of one kind, of one head.
    grid = (frames * triton.cdiv(tokens, _TOKENS), batch * heads, 2)
    _fp8_write[grid](
        *(k_BLND, v_BLND, *k_BLND.stride()[:3], *v_BLND.stride()[:3]),
        *(*caches, shift_KBND, scale_KBN, slots_F.contiguous(), batch * heads),
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
    N: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tiles: tl.constexpr = (P + BLOCK - 1) // BLOCK
    frame = tl.program_id(0) // tiles
    pair = tl.program_id(1).to(tl.int64)
    tokens = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    channels = tl.arange(0, D)
    is_there = tokens < P
    row = frame * P + tokens
    place = tl.load(slots + frame) * P + tokens
    if tl.program_id(2) == 0:
        given = k + pair // N * k_video + pair % N * k_head
        given = given + row[:, None] * k_token + channels[None, :]
        x = tl.load(given, mask=is_there[:, None], other=0.0)
        x = _rounded(x, tl.load(shift + pair * D + channels)[None, :], tl.load(scale + pair))
        out = k_cache + (pair * T + place[:, None]) * D + channels[None, :]
        tl.store(out, x, mask=is_there[:, None])
    else:
        given = v + pair // N * v_video + pair % N * v_head
        given = given + row[:, None] * v_token + channels[None, :]
        x = tl.load(given, mask=is_there[:, None], other=0.0)
        # Those of the values come after those of all keys.
        pair_of_values = pairs + pair
        x_shift = tl.load(shift + pair_of_values * D + channels)[None, :]
        x = _rounded(x, x_shift, tl.load(scale + pair_of_values))
        place = place - place % 16 + (place & 6) * 2 + (place & 8) // 4 + (place & 1)
        out = v_cache + (pair * D + channels[:, None]) * T + place[None, :]
        tl.store(out, tl.trans(x), mask=is_there[None, :])


@triton.jit
def _rounded(x, shift, scale):
    scaled = (x.to(tl.float32) - shift) / scale
    return tl.clamp(scaled, -_LARGEST, _LARGEST).to(tl.float8e4nv)
