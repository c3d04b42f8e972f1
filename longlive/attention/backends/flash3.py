"""FlashAttention 3 (arXiv:2407.08608), built from source for Hopper."""

from collections.abc import Callable

from torch import Tensor

from longlive.attention.backends.opaque import opaque


def load() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Import the kernel.

    Raises:
        ImportError: If ``flash_attn_interface`` is absent.
    """
    from flash_attn_interface import flash_attn_func

    def flash3_attention(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
        result = flash_attn_func(q_BLND, k_BSND, v_BSND)
        # Some builds return (out, log-sum-exp).
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out

    return opaque("flash-attn-3", flash3_attention)
