"""FlashAttention 2 (arXiv:2307.08691), the source-built ``flash-attn`` package."""

from collections.abc import Callable

from torch import Tensor

from longlive.attention.backends.opaque import opaque


def load() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Import the kernel.

    Raises:
        ImportError: If the package is absent; with only flash-attn-4 installed ``flash_attn`` is a
            namespace without this function.
    """
    from flash_attn import flash_attn_func

    def flash2_attention(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
        out: Tensor = flash_attn_func(q_BLND, k_BSND, v_BSND)
        return out

    return opaque("flash-attn-2", flash2_attention)
