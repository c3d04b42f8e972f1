"""torch.compile of the text encoder's layers, one region that all layers share."""

import warnings
from typing import Literal

import lightning.pytorch as pl
import torch

from longlive.callbacks.optimization import Optimization, compiler_missing, parts_of
from longlive.models.text_encoder import UMT5Encoder, UMT5Layer
from longlive.rollout.hooks import EncodeText, WrapOrder


class CompileTextEncoder(Optimization):
    """Compiles each layer of the text encoder in place.

    The number of tokens is a variable from the start, so that prompts of different lengths share
    one compilation. It happens when the first prompt is encoded. Numerics: fused kernels keep
    values in float32 that eager ones round in between.

    Args:
        backend: Passed to ``torch.compile``; ``eager`` and ``aot_eager`` find errors of tracing.
        required: Whether it is an error if the machine has no compiler.
    """

    wrap_order = WrapOrder.COMPILE

    def __init__(
        self,
        backend: Literal["inductor", "aot_eager", "eager"] = "inductor",
        required: bool = True,
    ) -> None:
        super().__init__(required)
        self.backend = backend

    def missing(self, device: torch.device) -> str | None:
        return compiler_missing(device, self.backend)

    def configure_text_encoder(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, encode: EncodeText
    ) -> EncodeText:
        if self.is_usable(pl_module):
            # How inductor lowers a softmax is nothing that a user can do anything about.
            warnings.filterwarnings("ignore", message=r"\s*Online softmax is disabled")
            encoders = list(parts_of(pl_module, UMT5Encoder))
            for module in (module for encoder in encoders for module in encoder.modules()):
                if isinstance(module, UMT5Layer) and module._compiled_call_impl is None:
                    module.compile(backend=self.backend, dynamic=True)
        return encode
