"""Attention over an FP8 KV cache: both products in e4m3, the softmax between them in float32.

Queries are rounded as they are read, with a scale for each token and head; keys and values lie in
the cache as :mod:`longlive.kernels.fp8_write` has left them. All scales that a score needs belong
to its row or its head, so one number multiplies a row of scores, in the operation that subtracts
the row's largest.

Weights of the softmax are rounded to e4m3 as well, as 2**8 times their size relative to the largest
of their row: so weights down to 2**-14 of it keep all their bits. The largest is rounded up to a
power of two, which makes weights that are found with another maximum the same numbers but for their
exponent: how keys are divided into tiles does not change what is rounded.
"""

# Shape suffixes: B batch, L queries, S tokens read, N heads, D head dim, T tokens the cache has
# room for, K two kinds: keys and values.

import math

import torch
from torch import Tensor

from longlive.kernels.fp8_write import E4M3, LARGEST, SMALLEST_SCALE, rounded, value_places

WEIGHT_BITS = 8
"""Weights of the softmax are multiplied by 2 to the power of this; e4m3 ends at 448."""


def plain_fp8_attention(
    q_BLND: Tensor,
    k_cache_BNTD: Tensor,
    v_cache_BNDT: Tensor,
    shift_KBND: Tensor,
    scale_KBN: Tensor,
    length: int,
) -> Tensor:
    """Return ``softmax(q k^T / sqrt(D)) v`` of rounded numbers, computed in float32.

    Args:
        q_BLND: Queries, rotated.
        k_cache_BNTD: Keys of the video, e4m3.
        v_cache_BNDT: Values of the video, e4m3.
        shift_KBND: What was subtracted from them, float32. That of the keys changes no weight.
        scale_KBN: What they were divided by, float32.
        length: Leading tokens that are seen.

    Returns:
        ``[B, L, N, D]`` in the type of the queries.
    """
    q_BNLD = q_BLND.float().transpose(1, 2)
    peak_BNL1 = q_BNLD.abs().amax(-1, keepdim=True)
    q_scale_BNL1 = (peak_BNL1 / LARGEST).clamp_min(SMALLEST_SCALE)
    q_BNLD = rounded(q_BNLD / q_scale_BNL1).float()
    row_BNL1 = q_scale_BNL1 * scale_KBN[0, ..., None, None] * score_scale(q_BLND.shape[-1])
    k_BNSD = k_cache_BNTD[:, :, :length].float()
    places_S = value_places(torch.arange(length, device=q_BLND.device))
    v_BNSD = v_cache_BNDT.view(torch.uint8).index_select(3, places_S).view(E4M3)
    v_BNSD = v_BNSD.float().transpose(2, 3)
    # In powers of two, as the kernel has them.
    scores_BNLS = q_BNLD @ k_BNSD.transpose(2, 3) * row_BNL1
    top_BNL1 = scores_BNLS.amax(-1, keepdim=True).ceil()
    weights_BNLS = torch.exp2(scores_BNLS - top_BNL1 + WEIGHT_BITS)
    total_BNL1 = weights_BNLS.sum(-1, keepdim=True)
    out_BNLD = rounded(weights_BNLS).float() @ v_BNSD / total_BNL1
    out_BNLD = out_BNLD * scale_KBN[1, ..., None, None] + shift_KBND[1, :, :, None]
    return out_BNLD.transpose(1, 2).to(q_BLND.dtype).contiguous()


def score_scale(head_dim: int) -> float:
    """What turns products of queries and keys into powers of two."""
    return 1 / (math.sqrt(head_dim) * math.log(2))


@torch.library.custom_op("longlive::fp8_attention", mutates_args=())
def fp8_attention(
    q_BLND: Tensor,
    k_cache_BNTD: Tensor,
    v_cache_BNDT: Tensor,
    shift_KBND: Tensor,
    scale_KBN: Tensor,
    length: int,
    emulates: bool,
) -> Tensor:
    """The same as one operation; ``emulates`` is without a kernel, on any device."""
    cache = k_cache_BNTD, v_cache_BNDT, shift_KBND, scale_KBN
    return plain_fp8_attention(q_BLND, *cache, length)


@fp8_attention.register_kernel("cuda")
def _(
    q_BLND: Tensor,
    k_cache_BNTD: Tensor,
    v_cache_BNDT: Tensor,
    shift_KBND: Tensor,
    scale_KBN: Tensor,
    length: int,
    emulates: bool,
) -> Tensor:
    cache = k_cache_BNTD, v_cache_BNDT, shift_KBND, scale_KBN
    if emulates:
        return plain_fp8_attention(q_BLND, *cache, length)
    from longlive.kernels.fp8_attention_triton import triton_fp8_attention

    return triton_fp8_attention(q_BLND, *cache, length)


@fp8_attention.register_fake
def _(
    q_BLND: Tensor,
    k_cache_BNTD: Tensor,
    v_cache_BNDT: Tensor,
    shift_KBND: Tensor,
    scale_KBN: Tensor,
    length: int,
    emulates: bool,
) -> Tensor:
    return torch.empty(q_BLND.shape, dtype=q_BLND.dtype, device=q_BLND.device)
