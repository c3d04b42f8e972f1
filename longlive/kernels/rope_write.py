"""From the projections to the attention in one go: norms, rotation, the write into the KV cache.

Queries and keys are normed over the whole width and turned by their rotary positions; keys and
values go straight into their slots. In one launch every number is read once and written once.
Compiled code calls ``longlive::norm_rotate_write`` as one operation, which is a Triton kernel on a
GPU and plain PyTorch elsewhere.
"""

# Shape suffixes: B batch, L tokens of the call, E width, N heads, D head dim, C pairs of a head,
# S slots, P tokens of a latent frame, F stored latent frames.

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_norm_rotate_write(
    qkv_BLE: Sequence[Tensor],
    weights_E: Sequence[Tensor],
    rotation_L1C: Sequence[Tensor],
    k_cache_BSPND: Tensor,
    v_cache_BSPND: Tensor | None,
    slots_F: Tensor,
    eps: float,
) -> Tensor:
    """Norm and turn queries and keys, and write keys and values into their slots.

    Numbers are rounded where the model's own norm and rotation round: the normed value before the
    weight multiplies it, the product, and the turned pair, which is formed in the rotation's type.

    Args:
        qkv_BLE: Queries, keys and values of whole latent frames; neighbors in the width are
            neighbors in memory.
        weights_E: Weights of the norms of queries and keys.
        rotation_L1C: Cosines and sines of the tokens.
        k_cache_BSPND: Keys of the video.
        v_cache_BSPND: Values of the video; None if they are stored elsewhere.
        slots_F: int64 slots, one for each of the call's last latent frames; the frames before them
            are not stored.
        eps: Of both norms.

    Returns:
        Queries ``[B, L, N, D]``, normed and turned.
    """
    tokens, heads = k_cache_BSPND.shape[2:4]
    normed = [_normed(x, weight, eps) for x, weight in zip(qkv_BLE, weights_E, strict=False)]
    q_BLND, k_BLND, v_BLND = (x.unflatten(-1, (heads, -1)) for x in (*normed, qkv_BLE[2]))
    k_BLND = _turned(k_BLND, *rotation_L1C)
    first = q_BLND.shape[1] - len(slots_F) * tokens
    for new_BLND, cache_BSPND in ((k_BLND, k_cache_BSPND), (v_BLND, v_cache_BSPND)):
        if cache_BSPND is None:
            continue
        cache_BSPND.index_copy_(1, slots_F, new_BLND[:, first:].unflatten(1, (-1, tokens)))
    return _turned(q_BLND, *rotation_L1C)


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
    v_cache_BSPND: Tensor | None,
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
    v_cache_BSPND: Tensor | None,
    slots_F: Tensor,
    eps: float,
) -> Tensor:
    return qkv_BLE[0].new_empty(*qkv_BLE[0].shape[:2], *k_cache_BSPND.shape[3:])
