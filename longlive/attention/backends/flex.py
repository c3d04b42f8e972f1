"""FlexAttention, compiled: masked training passes that skip the tiles nobody sees."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def flex_masked_attention(
    q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor, block_mask: Any
) -> Tensor:
    """Attention under a ``BlockMask`` for tensors ``[B, tokens, N, D]`` on a GPU."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLND, k_BLND, v_BLND))
    # Inside a compiled layer it is compiled with the layer.
    attention = flex_attention if torch.compiler.is_compiling() else _compiled()
    out: Tensor = attention(q, k, v, block_mask=block_mask)
    return out.transpose(1, 2)
