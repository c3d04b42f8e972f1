"""torch.compile of the transformer layers, one region that all layers share.

A layer is handed its own part of the KV cache and its own text and does not know its number, so
what is compiled for the first layer serves them all. Before the first block of a rollout every kind
of pass is run once, those of the steady state first. They get code with fixed shapes; from then on
torch treats the numbers that differ (the slots read while the window fills, the tokens of a
recache) as variables, and two more compilations serve all other kinds: three in all, none later.
A variable length costs nothing here, since it only says how much of the buffer the attention kernel
is shown.

The kernels are kept in torch's own cache on disk (``torchinductor_USER`` in the folder for
temporary files, or the folder that the environment variable ``TORCHINDUCTOR_CACHE_DIR`` names), so
that a second start only traces. What a process has compiled it keeps: a later rollout of the same
model needs nothing more, and stays compiled even without this callback.
"""

from typing import Literal

import lightning.pytorch as pl
import torch

from longlive.callbacks.optimization import Optimization, SeenOnce, compiler_missing, parts_of
from longlive.models.dit import DiT
from longlive.rollout.denoiser import Denoiser
from longlive.rollout.hooks import WrapOrder
from longlive.rollout.rehearsal import rehearsal_key
from longlive.rollout.state import RolloutSpec

_MOST_KINDS = 32
# Passes that processes share are others than those that one computes alone; past torch's own limit
# a layer runs as it is, and nothing says so.


class CompileLayers(Optimization):
    """Compiles each transformer layer in place, in training and in a rollout.

    Numerics: fused kernels keep values in float32 that eager ones round in between.

    Args:
        mode: Passed to ``torch.compile``. The modes with CUDA graphs are left out: a graph of the
            whole pass is :class:`longlive.callbacks.cuda_graph.CaptureDenoiser`.
        backend: Passed to ``torch.compile``; ``eager`` and ``aot_eager`` find errors of tracing.
        rehearses: Whether a rollout begins by running every kind of pass once; if not, the first
            blocks and the first prompt switch wait for the compiler.
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

    def missing(self, device: torch.device) -> str | None:
        return compiler_missing(device, self.backend)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.is_usable(pl_module):
            self._compile(pl_module, dynamic=False)

    def configure_rollout(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, spec: RolloutSpec
    ) -> RolloutSpec:
        if not self.rehearses or not self.is_usable(pl_module):
            return spec
        is_new = self._seen.is_new(pl_module, rehearsal_key(spec))
        return spec.rehearsed() if is_new else spec

    def configure_denoiser(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, denoiser: Denoiser
    ) -> Denoiser:
        if self.is_usable(pl_module):
            self._compile(pl_module, dynamic=None)
        return denoiser

    def _compile(self, pl_module: pl.LightningModule, dynamic: bool | None) -> None:
        # Only torch's own backend has modes.
        mode = self.mode if self.backend == "inductor" else None
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, _MOST_KINDS)
        for layer in (layer for dit in parts_of(pl_module, DiT) for layer in dit.layers):
            # Compiling again would drop nothing, and wrap the wrapper.
            if layer._compiled_call_impl is None:
                layer.compile(mode=mode, backend=self.backend, dynamic=dynamic)
