"""From the projections to the attention in one go: norms, rotation, the write into the KV cache.

Queries and keys are normed over the whole width and turned by their rotary positions; keys and
values go straight into their slots. In one launch every number is read once and written once.
Compiled code calls ``longlive::norm_rotate_write`` as one operation, which is a Triton kernel on a
GPU and plain PyTorch elsewhere. A cache that keeps keys in another form is handed them by
``longlive::norm_rotate``.
"""

# Shape suffixes: B batch, L tokens of the call, E width, N heads, D head dim, C pairs of a head,
# S slots, P tokens of a latent frame, F stored latent frames.

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_norm_rotate(
    qk_BLE: Sequence[Tensor],
    weights_E: Sequence[Tensor],
    rotation_L1C: Sequence[Tensor],
    heads: int,
    stored: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Norm and turn queries and keys.

    Numbers are rounded where the model's own norm and rotation round: the normed value before the
    weight multiplies it, the product, and the turned pair, which is formed in the rotation's type.

    Args:
        qk_BLE: Queries and keys; neighbors in the width are neighbors in memory.
        weights_E: Weights of their norms.
        rotation_L1C: Cosines and sines of the tokens.
        heads: Heads that the width is divided into.
        stored: How many of the last keys are wanted.
        eps: Of both norms.

    Returns:
        Queries ``[B, L, N, D]`` and the last keys.
    """
    q_BLND, k_BLND = (
        _turned(_normed(x, weight, eps).unflatten(-1, (heads, -1)), *rotation_L1C)
        for x, weight in zip(qk_BLE, weights_E, strict=True)
    )
    return q_BLND, k_BLND[:, k_BLND.shape[1] - stored :].contiguous()


def plain_norm_rotate_write(
    qkv_BLE: Sequence[Tensor],
    weights_E: Sequence[Tensor],
    rotation_L1C: Sequence[Tensor],
    k_cache_BSPND: Tensor,
    v_cache_BSPND: Tensor,
    slots_F: Tensor,
    eps: float,
) -> Tensor:
    """Norm and turn queries and keys, and write keys and values into their slots.

    Args:
        qkv_BLE: Queries, keys and values of whole latent frames; neighbors in the width are
            neighbors in memory.
        weights_E: Weights of the norms of queries and keys.
        rotation_L1C: Cosines and sines of the tokens.
        k_cache_BSPND: Keys of the video.
        v_cache_BSPND: Values of the video.
        slots_F: int64 slots, one for each of the call's last latent frames; the frames before them
            are not stored.
        eps: Of both norms.

    Returns:
        Queries ``[B, L, N, D]``, normed and turned.
    """
    tokens, heads = k_cache_BSPND.shape[2:4]
    stored = len(slots_F) * tokens
    *qk_BLE, v_BLE = qkv_BLE
    q_BLND, k_BLND = plain_norm_rotate(qk_BLE, weights_E, rotation_L1C, heads, stored, eps)
    v_BLND = v_BLE[:, v_BLE.shape[1] - stored :].unflatten(-1, (heads, -1))
    k_cache_BSPND.index_copy_(1, slots_F, k_BLND.unflatten(1, (-1, tokens)))
    v_cache_BSPND.index_copy_(1, slots_F, v_BLND.unflatten(1, (-1, tokens)))
    return q_BLND


def _normed(x_BLE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    normed = F.rms_norm(x_BLE, (x_BLE.shape[-1],), None, eps).to(x_BLE.dtype)
    return (normed * weight_E).to(x_BLE.dtype)


def _turned(x_BLND: Tensor, cos_L1C: Tensor, sin_L1C: Tensor) -> Tensor:
    even, odd = x_BLND.to(cos_L1C.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos_L1C - odd * sin_L1C, even * sin_L1C + odd * cos_L1C), -1)
    return turned.flatten(-2).to(x_BLND.dtype)


norm_rotate_write = torch.library.custom_op(
    "longlive::norm_rotate_write",
    plain_norm_rotate_write,
    mutates_args=("k_cache_BSPND", "v_cache_BSPND"),
)
"""The same as one operation, for calls without gradients; on a GPU the rotation is float32."""


@norm_rotate_write.register_kernel("cuda")
def _(
    qkv_BLE: Sequence[Tensor],
    weights_E: Sequence[Tensor],
    rotation_L1C: Sequence[Tensor],
    k_cache_BSPND: Tensor,
    v_cache_BSPND: Tensor,
    slots_F: Tensor,
    eps: float,
) -> Tensor:
    from longlive.kernels.rope_write_triton import triton_norm_rotate_write

    caches = k_cache_BSPND, v_cache_BSPND
    return triton_norm_rotate_write(qkv_BLE, weights_E, rotation_L1C, *caches, slots_F, eps)


@norm_rotate_write.register_fake
def _(
    qkv_BLE: Sequence[Tensor],
    weights_E: Sequence[Tensor],
    rotation_L1C: Sequence[Tensor],
    k_cache_BSPND: Tensor,
    v_cache_BSPND: Tensor,
    slots_F: Tensor,
    eps: float,
) -> Tensor:
    return qkv_BLE[0].new_empty(*qkv_BLE[0].shape[:2], *k_cache_BSPND.shape[3:])


# Nothing that it changes is the caller's: a compiler of torch 2.11 refuses a fresh buffer that an
# operation fills and that is reshaped behind it, if its length is a variable (pytorch#189271).
norm_rotate = torch.library.custom_op("longlive::norm_rotate", plain_norm_rotate, mutates_args=())
"""Norm and rotation alone, as one operation."""


@norm_rotate.register_kernel("cuda")
def _(
    qk_BLE: Sequence[Tensor],
    weights_E: Sequence[Tensor],
    rotation_L1C: Sequence[Tensor],
    heads: int,
    stored: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    from longlive.kernels.rope_write_triton import triton_norm_rotate

    return triton_norm_rotate(qk_BLE, weights_E, rotation_L1C, heads, stored, eps)


@norm_rotate.register_fake
def _(
    qk_BLE: Sequence[Tensor],
    weights_E: Sequence[Tensor],
    rotation_L1C: Sequence[Tensor],
    heads: int,
    stored: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    batch, length, width = qk_BLE[0].shape
    sizes = heads, width // heads
    return (
        qk_BLE[0].new_empty(batch, length, *sizes),
        qk_BLE[0].new_empty(batch, stored, *sizes),
    )
