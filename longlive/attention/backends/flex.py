"""FlexAttention, compiled: masked training passes that skip the tiles nobody sees."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from longlive.attention.masks import BlockCausal, sparse_mask


@lru_cache(maxsize=1)
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex_masked_attention(
    q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor, rule: BlockCausal, tokens_per_latent_frame: int
) -> Tensor:
    """Attention under a rule for tensors ``[B, tokens, N, D]`` on a GPU."""
    mask = sparse_mask(rule, tokens_per_latent_frame, torch.device(q_BLND.device))
    q, k, v = (x.transpose(1, 2) for x in (q_BLND, k_BLND, v_BLND))
    return _compiled()(q, k, v, block_mask=mask).transpose(1, 2)
