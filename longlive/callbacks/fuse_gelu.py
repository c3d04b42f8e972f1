"""The feed-forward network's GELU at the end of the product before it.

Between the two products of a layer lies its widest activation. Alone, the GELU reads all of it from
memory and writes it back. As the epilogue of the first product it costs no trip: cuBLASLt applies
it to the sums before they are rounded. Which GELU that is, the tanh approximation or the one with
the error function, is not written down, so it is tried before it is used.

Products in FP8 have no such epilogue. There the GELU and the rounding for the second product are
one kernel, :mod:`longlive.kernels.gelu_fp8`.
"""

# Shape suffixes: L tokens, I inputs.

from typing import TypeGuard

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive.callbacks.optimization import Optimization, parts_of
from longlive.callbacks.quantized_linear import QuantizedLinear
from longlive.kernels.gelu_fp8 import gelu_fp8
from longlive.models.dit import DiT
from longlive.rollout.denoiser import Denoiser
from longlive.rollout.hooks import WrapOrder


def has_tanh_epilogue(device: torch.device) -> bool:
    """Whether products end in the tanh approximation of GELU there."""
    # Where the two differ by a tenth.
    x = torch.full((16, 16), -3.0, dtype=torch.bfloat16, device=device)
    bias, eye = x.new_zeros(16), torch.eye(16, dtype=x.dtype, device=device)
    got = torch._addmm_activation(bias, x, eye, use_gelu=True).float()
    return torch.allclose(got, F.gelu(x.float(), approximate="tanh"), rtol=0.03, atol=0)


class FusedFeedForward(nn.Sequential):
    """Linear, GELU, linear; has the children and keys of what it replaces.

    On a CPU, with gradients, or where the linear layers have been replaced by others than those of
    FP8 with a scale for each token, the children are called one after the other.

    Args:
        up: The first linear layer, with a bias.
        gelu: Of the tanh approximation; the only one there is an epilogue for.
        down: The second linear layer.
    """

    def __init__(self, up: nn.Module, gelu: nn.Module, down: nn.Module) -> None:
        super().__init__(up, gelu, down)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., I]`` for ``[..., I]``."""
        up, _, down = self
        if torch.is_grad_enabled() or not self._ends_products(x):
            return super().forward(x)
        x_LI = x.flatten(0, -2)
        if isinstance(up, nn.Linear):
            wide = torch._addmm_activation(up.bias, x_LI, up.weight.t(), use_gelu=True)
            out: Tensor = down(wide)
        elif _is_fp8_by_row(up) and _is_fp8_by_row(down):
            out = down.multiply(*gelu_fp8(up(x_LI))).to(x.dtype)
        else:
            return super().forward(x)
        return out.unflatten(0, x.shape[:-1])

    def _ends_products(self, x: Tensor) -> bool:
        return x.is_cuda


def _is_fp8_by_row(layer: nn.Module) -> TypeGuard[QuantizedLinear]:
    is_quantized = isinstance(layer, QuantizedLinear)
    return is_quantized and (layer.kind, layer.granularity) == ("fp8", "row")


class FuseGELU(Optimization):
    """Applies the GELU of every layer's feed-forward network within the product before it.

    Between two products of FP8 it is applied with the rounding for the second one.

    Numerics: the product, or what is rounded to FP8, is not rounded before. Layers stay so: a later
    rollout of this model has them even without the callback.
    """

    wrap_order = WrapOrder.KERNELS

    def missing(self, device: torch.device) -> str | None:
        if device.type != "cuda":
            return f"a CUDA device, and this is {device.type}"
        return None if has_tanh_epilogue(device) else "a cuBLASLt whose GELU is the tanh one"

    def configure_denoiser(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, denoiser: Denoiser
    ) -> Denoiser:
        if self.is_usable(pl_module):
            for layer in (layer for dit in parts_of(pl_module, DiT) for layer in dit.layers):
                if type(layer.ffn) is nn.Sequential:
                    layer.ffn = FusedFeedForward(*layer.ffn)
        return denoiser
