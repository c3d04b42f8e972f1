"""Queries, keys and values of the self-attention in one product.

The three weights are stacked (:mod:`longlive.callbacks.stacked_weights`). Tokens are multiplied by
the whole stack; where a layer only leaves keys and values behind, by the part of those two.
"""

# Shape suffixes: B batch, L tokens, E width, Q the widths of queries, keys and values together.

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive.callbacks.optimization import Optimization, check_final, parts_of
from longlive.callbacks.stacked_weights import are_stacked, stack_weights
from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.models.layers import SelfAttention
from longlive.rollout.denoiser import Denoiser
from longlive.rollout.hooks import MakeCaches, WrapOrder


class StackedSelfAttention(SelfAttention):
    """Takes the place of a self-attention for inference; has its children and keys.

    Args:
        plain: Its weights become views of the stack.
    """

    weight_QE: Tensor
    bias_Q: Tensor

    def __init__(self, plain: SelfAttention) -> None:
        # The weights it is born with are not wanted.
        with torch.device("meta"):
            super().__init__(plain.o.in_features, plain.heads, plain.norm_q.eps)
        for name, child in plain.named_children():
            setattr(self, name, child)
        self.norm_and_attend = plain.norm_and_attend
        self.train(plain.training)
        self.stack()

    def stack(self) -> None:
        """Stack the weights as they are now."""
        weight_3EE, bias_3E = (stack_weights(self._linears, name) for name in ("weight", "bias"))
        self.register_buffer("weight_QE", weight_3EE.flatten(0, 1), persistent=False)
        self.register_buffer("bias_Q", bias_3E.flatten(), persistent=False)

    @property
    def _linears(self) -> tuple[nn.Linear, ...]:
        return self.q, self.k, self.v

    @property
    def is_stacked(self) -> bool:
        """Whether the weights are still views; a move to another device or type parts them."""
        return are_stacked(self._linears, "weight", self.weight_QE)

    def project(self, x_BLE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, none of them normed: strided views of one product."""
        q_BLE, k_BLE, v_BLE = F.linear(x_BLE, self.weight_QE, self.bias_Q).chunk(3, -1)
        return q_BLE, k_BLE, v_BLE

    def keys_values(self, x_BSE: Tensor) -> tuple[Tensor, Tensor]:
        """Normed keys and plain values, ``[B, S, N, D]`` each."""
        width = x_BSE.shape[-1]
        k_BSE, v_BSE = F.linear(x_BSE, self.weight_QE[width:], self.bias_Q[width:]).chunk(2, -1)
        k_BSND = self.norm_k(k_BSE).unflatten(-1, (self.heads, -1))
        return k_BSND, v_BSE.unflatten(-1, (self.heads, -1))


class FuseProjections(Optimization):
    """Projects to queries, keys and values of the self-attention in one product, in place.

    Numerics: the sums are the same, and a product of another size may form them in another order.
    Layers stay so: a later rollout of this model has them even without the callback.
    """

    wrap_order = WrapOrder.WEIGHTS

    # The first hook with weights in it. A capture notes their addresses in the same one, later.
    def configure_caches(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, make: MakeCaches
    ) -> MakeCaches:
        for dit in parts_of(pl_module, DiT):
            _stack(dit)
        return make

    def configure_denoiser(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, denoiser: Denoiser
    ) -> Denoiser:
        # Another optimization may have replaced them meanwhile, and would be passed by.
        for dit in parts_of(pl_module, DiT):
            _check_plain(dit)
        return denoiser


def _stack(dit: DiT) -> None:
    if not all(isinstance(layer.self_attn, StackedSelfAttention) for layer in dit.layers):
        check_final(dit, "a product of stacked weights")
    _check_plain(dit)
    for layer in dit.layers:
        attention = layer.self_attn
        if not isinstance(attention, StackedSelfAttention):
            layer.self_attn = StackedSelfAttention(attention)
        elif not attention.is_stacked:
            attention.stack()


def _check_plain(dit: DiT) -> None:
    for layer in dit.layers:
        attention = layer.self_attn
        if not all(isinstance(x, nn.Linear) for x in (attention.q, attention.k, attention.v)):
            raise UserError(
                "the projections of the self-attention cannot be both fused and quantized: add "
                "*.self_attn.[qkv] to what the quantization keeps, or leave fuse_projections out"
            )
