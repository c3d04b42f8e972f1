"""cuDNN tries its algorithms for the decoder's convolutions, instead of guessing."""

import lightning.pytorch as pl
import torch

from longlive.callbacks.optimization import Optimization
from longlive.rollout.decode import StreamingDecoder
from longlive.rollout.hooks import WrapOrder


class TuneConvolutions(Optimization):
    """Has each convolution timed with every algorithm when its sizes are first seen.

    That takes some seconds, in the rehearsal if there is one (``fuse_decoder``, a compiled or a
    captured decoder). It is a setting of the process: convolutions of other models follow it too.

    Numerics: another algorithm sums in another order.
    """

    wrap_order = WrapOrder.KERNELS

    def missing(self, device: torch.device) -> str | None:
        return None if device.type == "cuda" else f"a CUDA device, and this is {device.type}"

    def configure_decoder(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, decoder: StreamingDecoder
    ) -> StreamingDecoder:
        if self.is_usable(pl_module):
            torch.backends.cudnn.benchmark = True
        return decoder
