"""torch.compile of the streaming decoder, whole.

Of what the VAE takes for a block about half are norms, activations and copies between layouts that
a compiler merges into their neighbors. One step of the stream is one graph: a function of latents
and state that returns frames and state. The first block of a video has no state yet and is another
graph, or two if its first latent frame is decoded alone; each number of latent frames is one more.
"""

import weakref
from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from longlive.callbacks.optimization import Optimization, SeenOnce, compiler_missing
from longlive.models.decoding_stream import DecodingStream
from longlive.rollout.decode import StreamingDecoder
from longlive.rollout.hooks import WrapOrder
from longlive.rollout.rehearsal import rehearsal_key
from longlive.rollout.state import RolloutSpec

_Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


class CompileDecoder(Optimization):
    """Compiles the decoder of a rollout, the VAE's or the tiny one.

    Numerics: fused kernels keep values in float32 that eager ones round in between.

    Args:
        mode: Passed to ``torch.compile``.
        backend: Passed to ``torch.compile``; ``eager`` and ``aot_eager`` find errors of tracing.
        rehearses: Whether a rollout begins by decoding two blocks of nothing; if not, the first
            two blocks wait for the compiler.
        required: Whether it is an error if the machine has no compiler.
    """

    wrap_order = WrapOrder.COMPILE

    def __init__(
        self,
        mode: Literal["default", "max-autotune-no-cudagraphs"] = "default",
        backend: Literal["inductor", "aot_eager", "eager"] = "inductor",
        rehearses: bool = True,
        required: bool = True,
    ) -> None:
        super().__init__(required)
        self.mode = mode
        self.backend = backend
        self.rehearses = rehearses
        self._seen = SeenOnce()
        self._of: weakref.ref[pl.LightningModule] | None = None
        self._step: _Step | None = None

    def missing(self, device: torch.device) -> str | None:
        return compiler_missing(device, self.backend)

    def configure_rollout(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, spec: RolloutSpec
    ) -> RolloutSpec:
        if not self.rehearses or not self.is_usable(pl_module):
            return spec
        is_new = self._seen.is_new(pl_module, rehearsal_key(spec))
        return spec.rehearsed() if is_new else spec

    def configure_decoder(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, decoder: StreamingDecoder
    ) -> StreamingDecoder:
        if not isinstance(decoder, DecodingStream) or not self.is_usable(pl_module):
            return decoder
        if self._step is None or self._of is None or self._of() is not pl_module:
            self._of, self._step = weakref.ref(pl_module), self._compiled(decoder.step)
        return DecodingStream(self._step, decoder.state, decoder.to_frames)

    def _compiled(self, step: _Step) -> _Step:
        # Only torch's own backend has modes.
        mode = self.mode if self.backend == "inductor" else None
        compiled: _Step = torch.compile(step, mode=mode, backend=self.backend, dynamic=False)
        return compiled
