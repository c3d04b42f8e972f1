"""FlashAttention 4: pure wheels, compiled just in time; the fastest bf16 attention on Hopper."""

import warnings
from collections.abc import Callable

from torch import Tensor

from longlive.attention.backends.opaque import opaque
from longlive.attention.backends.sdpa import sdpa_attention

# Below this many keys cuDNN is reported to win, by a factor of two at 512 text tokens; we have not
# measured it.
_FEWEST_KEYS = 2048


def load() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Import the kernel.

    Raises:
        ImportError: If ``flash-attn-4`` is absent.
    """
    from flash_attn.cute import flash_attn_func

    # Its compiler treats one argument as a constant, which it is, and says so for every kernel.
    warnings.filterwarnings("ignore", message="Argument aux_data .*to a JitArgument")

    def flash4_attention(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
        if k_BSND.shape[1] < _FEWEST_KEYS:
            return sdpa_attention(q_BLND, k_BSND, v_BSND)
        result = flash_attn_func(q_BLND, k_BSND, v_BSND)
        # Some versions return (out, log-sum-exp).
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out

    return opaque("flash-attn-4", flash4_attention)
