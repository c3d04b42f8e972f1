"""GELU and the rounding to FP8 after it, with a scale for each token: read once, written once.

The activation between the two products of a feed-forward network is the widest of a layer. The
second product in FP8 wants it rounded with a scale of each token, which is known when the whole
token has been seen: a compiler reads it twice, or keeps it in memory between.
"""

# Shape suffixes: L tokens, I inputs of the product.

import torch
import torch.nn.functional as F
from torch import Tensor

from longlive.kernels.fp8_write import E4M3, LARGEST, SMALLEST_SCALE, rounded

_CAPABILITY = (8, 9)


def plain_gelu_fp8(x_LI: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the tanh approximation of GELU in float32, and round it.

    Args:
        x_LI: Neighbors in a token are neighbors in memory.

    Returns:
        e4m3 ``[L, I]``, and float32 ``[L, 1]``: what a token has to be multiplied by.
    """
    wide_LI = F.gelu(x_LI.float(), approximate="tanh")
    scale_L1 = (wide_LI.abs().amax(1, keepdim=True) / LARGEST).clamp_min(SMALLEST_SCALE)
    return rounded(wide_LI / scale_L1), scale_L1


gelu_fp8 = torch.library.custom_op("longlive::gelu_fp8", plain_gelu_fp8, mutates_args=())
"""The same as one operation."""


@gelu_fp8.register_kernel("cuda")
def _(x_LI: Tensor) -> tuple[Tensor, Tensor]:
    from torch.utils._triton import has_triton

    # Where products are only emulated there may be no such numbers for a kernel.
    capability = torch.cuda.get_device_capability(x_LI.device)
    if not has_triton() or capability < _CAPABILITY:
        return plain_gelu_fp8(x_LI)
    from longlive.kernels.gelu_fp8_triton import triton_gelu_fp8

    return triton_gelu_fp8(x_LI)


@gelu_fp8.register_fake
def empty_results(x_LI: Tensor) -> tuple[Tensor, Tensor]:
    """What is returned, before it is written."""
    scale_L1 = torch.empty((len(x_LI), 1), dtype=torch.float32, device=x_LI.device)
    return torch.empty(x_LI.shape, dtype=E4M3, device=x_LI.device), scale_L1
