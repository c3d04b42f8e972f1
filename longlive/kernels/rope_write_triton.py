"""The Triton kernel of :mod:`longlive.kernels.rope_write`; imports Triton."""

# What a kernel is given has no type that Python knows.
# mypy: disable-error-code="no-untyped-def"

# Shape suffixes: B batch, L tokens of the call, E width, N heads, D head dim, C pairs of a head,
# S slots, P tokens of a latent frame, F stored latent frames.

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_WARPS = 4
_ONE_SLOT = 1 << 30


def triton_norm_rotate_write(
    qkv_BLE: Sequence[Tensor],
    weights_E: Sequence[Tensor],
    rotation_L1C: Sequence[Tensor],
    k_cache_BSPND: Tensor,
    v_cache_BSPND: Tensor,
    slots_F: Tensor,
    eps: float,
) -> Tensor:
    """Compute :func:`longlive.kernels.rope_write.plain_norm_rotate_write` in one launch.

    Numbers are rounded at the same places. The rotation is float32.
    """
    assert v_cache_BSPND.stride() == k_cache_BSPND.stride()
    caches = k_cache_BSPND, v_cache_BSPND
    return _launch(qkv_BLE, weights_E, rotation_L1C, *caches, slots_F, eps)


def triton_norm_rotate(
    qk_BLE: Sequence[Tensor],
    weights_E: Sequence[Tensor],
    rotation_L1C: Sequence[Tensor],
    heads: int,
    stored: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`longlive.kernels.rope_write.plain_norm_rotate` likewise."""
    batch, _, width = qk_BLE[0].shape
    # All that is stored is one slot, if there is any.
    k_BSPND = qk_BLE[0].new_empty(batch, 1, stored, heads, width // heads)
    slots_F = torch.zeros(min(1, stored), dtype=torch.int64, device=k_BSPND.device)
    given = (*qk_BLE, qk_BLE[1]), weights_E, rotation_L1C
    return _launch(*given, k_BSPND, None, slots_F, eps), k_BSPND[:, 0]


def _launch(
    qkv_BLE: Sequence[Tensor],
    weights_E: Sequence[Tensor],
    rotation_L1C: Sequence[Tensor],
    k_cache_BSPND: Tensor,
    v_cache_BSPND: Tensor | None,
    slots_F: Tensor,
    eps: float,
) -> Tensor:
    batch, length, width = qkv_BLE[0].shape
    tokens, heads, head_dim = k_cache_BSPND.shape[2:]
    # Of one product of stacked weights these are views with a longer row.
    rows = [x.flatten(0, 1) for x in qkv_BLE]
    assert all(x.stride(1) == 1 for x in rows)
    video, slot, place, head, one = k_cache_BSPND.stride()
    assert one == 1
    cos, sin = (x.contiguous() for x in rotation_L1C)
    assert cos.dtype == sin.dtype == torch.float32
    out_BLND = qkv_BLE[0].new_empty(batch, length, heads, head_dim)
    # One program for the queries of a token, one for its keys, one for its values.
    _norm_rotate_write[(batch * length, 2 if v_cache_BSPND is None else 3)](
        *(*rows, *(x.stride(0) for x in rows)),
        *(*weights_E, cos, sin),
        *(out_BLND, k_cache_BSPND, v_cache_BSPND, slots_F.contiguous()),
        *(length, length - len(slots_F) * tokens, video, slot, eps),
        # Without a cache there is one slot of any length, which is not compiled for again.
        P=_ONE_SLOT if v_cache_BSPND is None else tokens,
        E=width,
        C=head_dim // 2,
        PLACE=place,
        HEAD=head,
        BLOCK=triton.next_power_of_2(width),
        num_warps=_WARPS,
    )
    return out_BLND


# A program more for each length of a pass would gain nothing.
@triton.jit(do_not_specialize=["length", "first"])
def _norm_rotate_write(  # noqa: PLR0913 - a kernel has no structures.
    q,
    k,
    v,
    q_row,
    k_row,
    v_row,
    q_weight,
    k_weight,
    cos,
    sin,
    out,
    k_cache,
    v_cache,
    slots,
    length,
    first,
    video_stride,
    slot_stride,
    eps,
    P: tl.constexpr,
    E: tl.constexpr,
    C: tl.constexpr,
    PLACE: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    token = row % length
    part = tl.program_id(1)
    if part == 0:
        x = _normed(q + row * q_row, q_weight, eps, E, BLOCK)
        x = _turned(x, cos, sin, token, E, C, BLOCK)
        _store(out + row * E, x, E, C, 2 * C, BLOCK)
    elif token >= first:
        stored = token - first
        slot = tl.load(slots + stored // P)
        place = (row // length) * video_stride + slot * slot_stride + (stored % P) * PLACE
        if part == 1:
            x = _normed(k + row * k_row, k_weight, eps, E, BLOCK)
            x = _turned(x, cos, sin, token, E, C, BLOCK)
            _store(k_cache + place, x, E, C, HEAD, BLOCK)
        elif v_cache is not None:
            columns = tl.arange(0, BLOCK)
            x = tl.load(v + row * v_row + columns, mask=columns < E)
            _store(v_cache + place, x, E, C, HEAD, BLOCK)


@triton.jit
def _normed(x_row, weight, eps, E: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    given = tl.load(x_row + columns, mask=columns < E, other=0.0)
    x = given.to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, 0) / E + eps)
    scale = tl.load(weight + columns, mask=columns < E, other=0.0).to(tl.float32)
    # Rounded before and after the weight multiplies it, as the model does.
    return (normed.to(given.dtype).to(tl.float32) * scale).to(given.dtype)


@triton.jit
def _turned(
    x,
    cos,
    sin,
    token,
    E: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    even, odd = tl.split(tl.reshape(x.to(tl.float32), (BLOCK // 2, 2)))
    pairs = tl.arange(0, BLOCK // 2)
    # Every head turns by the same angles.
    angle = token * C + pairs % C
    c = tl.load(cos + angle, mask=pairs < E // 2, other=0.0)
    s = tl.load(sin + angle, mask=pairs < E // 2, other=0.0)
    turned = tl.join(even * c - odd * s, even * s + odd * c)
    return tl.reshape(turned, (BLOCK,)).to(x.dtype)


@triton.jit
def _store(
    place,
    x,
    E: tl.constexpr,
    C: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)
    # Heads of a token may lie apart.
    where = columns // (2 * C) * HEAD + columns % (2 * C)
    tl.store(place + where, x, mask=columns < E)
