"""Norms, rotary positions and the write into the KV cache as one operation in every layer.

What is left of a layer are products, the attention, and elementwise work that ``torch.compile``
joins well. The way from the projections to the attention it does not: rotation takes pairs apart
and stacks them again, and the write goes through an index. This is one Triton kernel here
(:mod:`longlive.kernels.rope_write`), and one operation for the compiler, which does not look into
it.

Where keys are kept in another way than a rollout keeps them, or gradients are wanted, a layer does
what it always does. So does the layer that leaves only keys and values behind, once a pass.
"""

# Shape suffixes: B batch, L tokens of the call, E width, F stored latent frames, P tokens of one,
# N heads, D head dim.

import lightning.pytorch as pl
import torch
from torch import Tensor

from longlive.attention.core import LayerAttend, LayerWindow
from longlive.attention.fp8_cache import Fp8LayerCache
from longlive.attention.kv_cache import LayerCache
from longlive.callbacks.optimization import Optimization, parts_of
from longlive.kernels.rope_write import norm_rotate, norm_rotate_write
from longlive.models.dit import DiT
from longlive.models.layers import SelfAttention, norm_and_attend
from longlive.rollout.denoiser import Denoiser
from longlive.rollout.hooks import WrapOrder


def fused_norm_and_attend(
    attention: SelfAttention, q_BLE: Tensor, k_BLE: Tensor, v_BLE: Tensor, attend: LayerAttend
) -> Tensor:
    """Do what :func:`norm_and_attend` does, in a rollout with one operation before the attention.

    Args:
        attention: Has the norms.
        q_BLE: Queries, not normed.
        k_BLE: Keys, not normed.
        v_BLE: Values.
        attend: How tokens see each other.
    """
    # The window's own types of cache and no others: those of training have more to do.
    if (
        not isinstance(attend, LayerWindow)
        or type(attend.cache) not in (LayerCache, Fp8LayerCache)
        or attend.call.rotation.cos.dtype != torch.float32
        or torch.is_grad_enabled()
    ):
        return norm_and_attend(attention, q_BLE, k_BLE, v_BLE, attend)
    call, cache = attend.call, attend.cache
    weights = [attention.norm_q.weight, attention.norm_k.weight]
    rotation, eps = list(call.rotation), attention.norm_q.eps
    if type(cache) is LayerCache:
        caches = cache.k, cache.v, call.write_slots_F
        q_BLND = norm_rotate_write([q_BLE, k_BLE, v_BLE], weights, rotation, *caches, eps)
        return attend.gather(q_BLND, cache.read(call.read))
    # FP8 is rounded from whole tiles of tokens: keys are laid out first, and then stored.
    stored = len(call.write_slots_F) * cache.tokens_per_slot
    of_call = attention.heads, stored, eps
    q_BLND, k_BLND = norm_rotate([q_BLE, k_BLE], weights, rotation, *of_call)
    v_BLND = v_BLE[:, v_BLE.shape[1] - stored :].unflatten(2, q_BLND.shape[2:])
    return attend.gather(q_BLND, cache.update(k_BLND, v_BLND, call.write_slots_F, call.read))


class FuseLayers(Optimization):
    """Norms, turns and stores in one operation, in every layer.

    Numerics: the same roundings, of sums that are formed in another order. Without Triton (on a
    CPU) the operation is made of plain ones and gains nothing. Layers stay so: a later rollout of
    this model has them even without the callback.
    """

    wrap_order = WrapOrder.KERNELS

    def missing(self, device: torch.device) -> str | None:
        if device.type == "cpu":
            return None
        from torch.utils._triton import has_triton

        is_there = device.type == "cuda" and has_triton()
        return None if is_there else "Triton and a GPU it supports"

    def configure_denoiser(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, denoiser: Denoiser
    ) -> Denoiser:
        if self.is_usable(pl_module):
            for layer in (layer for dit in parts_of(pl_module, DiT) for layer in dit.layers):
                layer.self_attn.norm_and_attend = fused_norm_and_attend
        return denoiser
