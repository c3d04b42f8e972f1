"""Upsampling and the convolution after it in one convolution, on the small picture.

The VAE's decoder doubles rows and columns by repeating each position, and convolves the result
with a 3x3 kernel. Every pixel of the large picture then sees only 2x2 positions of the small one,
some of them twice: which, depends on whether its row and column are even or odd. So the two steps
equal four 2x2 convolutions of the small picture, one for each of the four phases, whose kernels are
sums of the entries of the 3x3 kernel. For one axis with entries (a, b, c):

    even pixel 2i    sees  i-1, i, i      kernel (a, b + c) on (i-1, i)
    odd pixel 2i+1   sees  i, i, i+1      kernel (a + b, c) on (i, i+1)

Four products in place of nine for each output, and the large picture is never written. The four run
as one convolution with four times the channels; it has a row and a column more than the small
picture, and each phase takes the part of it that it needs.
"""

# Shape suffixes: N pictures, C channels of the input, O of the output, H rows, W columns of the
# small picture, K kernel entries.

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive.callbacks.optimization import Optimization, parts_of
from longlive.models.vae import WanVAE
from longlive.models.vae_layers import Up2, Up3
from longlive.rollout.decode import StreamingDecoder
from longlive.rollout.hooks import WrapOrder


class FoldedUpsampling(nn.Sequential):
    """``nn.Upsample(2, nearest)`` and a 3x3 convolution; has the children and keys of the two.

    Args:
        upsample: Only kept.
        conv: 3x3, stride 1, padding 1; its weights are folded now and not looked at again.
    """

    kernel_OCKK: Tensor
    bias_O: Tensor | None

    def __init__(self, upsample: nn.Module, conv: nn.Conv2d) -> None:
        super().__init__(upsample, conv)
        kernel = folded(conv.weight.detach())
        # Follows the layout of the weights that it replaces: channels-last on the fast path.
        if conv.weight.is_contiguous(memory_format=torch.channels_last):
            kernel = kernel.contiguous(memory_format=torch.channels_last)
        self.register_buffer("kernel_OCKK", kernel, persistent=False)
        bias = None if conv.bias is None else conv.bias.detach().repeat(4)
        self.register_buffer("bias_O", bias, persistent=False)

    def phases(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the phases ``[N, 4 O, H + 1, W + 1]`` side by side, and the bias they lack."""
        return F.conv2d(x_NCHW, self.kernel_OCKK, padding=1), self.bias_O

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return ``[N, O, 2 H, 2 W]``, channels-last."""
        height, width = x_NCHW.shape[2:]
        y = F.conv2d(x_NCHW, self.kernel_OCKK, self.bias_O, padding=1)
        # [N, (a b O), H + 1, W + 1]: phase (a, b) is the H x W positions from row a and column b.
        # All windows of that size, [N, a, b, O, row, column, H, W]:
        y = y.unflatten(1, (2, 2, -1)).unfold(4, height, 1).unfold(5, width, 1)
        # of which row = a and column = b are wanted, [N, O, H, W, a, b].
        y = y.diagonal(dim1=1, dim2=4).diagonal(dim1=1, dim2=3)
        # All so far were views. One copy interleaves the phases.
        out_NHWO = y.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
        return out_NHWO.permute(0, 3, 1, 2)


def folded(weight_OCKK: Tensor) -> Tensor:
    """Sum a 3x3 kernel into those of the four phases, at least in float32, rounded once.

    Args:
        weight_OCKK: ``[O, C, 3, 3]``.

    Returns:
        ``[4 O, C, 2, 2]``: the phases (even, even), (even, odd), (odd, even), (odd, odd) of rows
        and columns.
    """
    wide = weight_OCKK.to(torch.promote_types(weight_OCKK.dtype, torch.float32))
    # Phase, folded entry, entry.
    sums = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]).to(wide)
    phases = torch.einsum("aik,bjl,ockl->abocij", sums, sums, wide)
    return phases.flatten(0, 2).to(weight_OCKK.dtype)


class FoldUpsampling(Optimization):
    """Folds every upsampling of the VAE's decoder into the convolution after it, in place.

    Numerics: exact up to rounding; the same products are summed in another order, and the sums of
    weights are rounded to their type.
    """

    wrap_order = WrapOrder.WEIGHTS

    def configure_decoder(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, decoder: StreamingDecoder
    ) -> StreamingDecoder:
        vaes = list(parts_of(pl_module, WanVAE))
        for module in (module for vae in vaes for module in vae.decoder.upsamples.children()):
            if isinstance(module, Up2 | Up3) and not isinstance(module.resample, FoldedUpsampling):
                upsample, conv = module.resample
                assert isinstance(conv, nn.Conv2d)
                module.resample = FoldedUpsampling(upsample, conv)
        return decoder
