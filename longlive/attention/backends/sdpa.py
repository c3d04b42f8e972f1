"""torch's scaled dot-product attention: the reference, and the one that runs anywhere."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from longlive.attention.backends.opaque import opaque

# On Hopper cuDNN's kernel is reported to beat torch's FlashAttention 2; we have not measured it.
_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def _sdpa(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_BLND, k_BSND, v_BSND))
    if not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    with sdpa_kernel(_ORDER, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


sdpa_attention = opaque("sdpa", _sdpa)
"""softmax(q k^T / sqrt(D)) v for tensors ``[B, tokens, N, D]``."""


def sdpa_masked_attention(
    q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor, mask_QK: Tensor
) -> Tensor:
    """The same, where ``mask_QK`` is true."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLND, k_BLND, v_BLND))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_QK).transpose(1, 2)


def load() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return sdpa_attention
