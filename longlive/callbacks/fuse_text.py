"""Keys and values of a prompt for all layers in one product.

They are made once a prompt, and a new prompt waits for them: layer by layer some two hundred small
operations, whose launches take longer than what they compute. Here the weights of all layers are
stacked (:mod:`longlive.callbacks.stacked_weights`).
"""

# Shape suffixes: B batch, M tokens of the prompt, E width, Y layers, N heads, D head dim.

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive.callbacks.optimization import Optimization, check_final, parts_of
from longlive.callbacks.stacked_weights import are_stacked, stack_weights
from longlive.errors import UserError
from longlive.models.dit import DiT, project_text
from longlive.models.layers import CrossAttention, DiTLayer
from longlive.rollout.denoiser import Denoiser
from longlive.rollout.hooks import MakeCaches, WrapOrder


class StackedText:
    """Takes the place of :func:`longlive.models.dit.project_text`; equal to it up to rounding.

    Args:
        layers: Their weights become views of the stacks.
    """

    def __init__(self, layers: Sequence[DiTLayer]) -> None:
        attentions = [layer.cross_attn for layer in layers]
        self._heads, self._eps = attentions[0].heads, attentions[0].norm_k.eps
        # First the keys of all layers, then the values.
        linears = [each.k for each in attentions] + [each.v for each in attentions]
        self._linears, self._norms = linears, [each.norm_k for each in attentions]
        self._weight_2YEE = stack_weights(linears, "weight")
        self._bias_2YE = stack_weights(linears, "bias")
        self._norm_YE = stack_weights(self._norms, "weight")

    @property
    def is_stacked(self) -> bool:
        """Whether the weights are still views."""
        return (
            are_stacked(self._linears, "weight", self._weight_2YEE)
            and are_stacked(self._linears, "bias", self._bias_2YE)
            and are_stacked(self._norms, "weight", self._norm_YE)
        )

    def __call__(self, layers: Sequence[DiTLayer], text_BME: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values for each layer, ``[B, M, N, D]`` each."""
        # The stack gets no gradients, and after a move it is not the model's any more.
        if torch.is_grad_enabled() or not self.is_stacked:
            return project_text(layers, text_BME)
        both_BMX = F.linear(text_BME, self._weight_2YEE.flatten(0, 1), self._bias_2YE.flatten())
        both_2YBME = both_BMX.unflatten(-1, (2, len(layers), -1)).permute(2, 3, 0, 1, 4)
        k_YBME, v_YBME = both_2YBME.contiguous()
        normed_YBME = F.rms_norm(k_YBME, k_YBME.shape[-1:], None, self._eps).to(k_YBME.dtype)
        k_YBME = (normed_YBME * self._norm_YE[:, None, None]).to(k_YBME.dtype)
        heads = (self._heads, -1)
        return list(zip(k_YBME.unflatten(-1, heads), v_YBME.unflatten(-1, heads), strict=True))


class FuseTextProjections(Optimization):
    """Makes keys and values of a prompt for all layers in one product, in place.

    Numerics: the sums are the same, and a product of another size may form them in another order.
    Layers stay so: a later rollout of this model has them even without the callback.
    """

    wrap_order = WrapOrder.WEIGHTS

    # The first hook with weights in it. A capture notes their addresses in the same one, later.
    def configure_caches(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, make: MakeCaches
    ) -> MakeCaches:
        for dit in parts_of(pl_module, DiT):
            stacked = dit.project_text
            if isinstance(stacked, StackedText) and stacked.is_stacked:
                continue
            check_final(dit, "a product of stacked weights")
            layers = list(dit.layers)
            for layer in layers:
                _check_plain(layer.cross_attn)
            dit.project_text = StackedText(layers)
        return make

    def configure_denoiser(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, denoiser: Denoiser
    ) -> Denoiser:
        # Another optimization may have replaced them meanwhile, and would be passed by.
        for dit in parts_of(pl_module, DiT):
            for layer in dit.layers:
                _check_plain(layer.cross_attn)
        return denoiser


def _check_plain(attention: CrossAttention) -> None:
    if not isinstance(attention.k, nn.Linear) or not isinstance(attention.v, nn.Linear):
        raise UserError(
            "keys and values of the prompt cannot be both fused and quantized: add "
            "*.cross_attn.[kv] to what the quantization keeps, or leave fuse_text out"
        )
