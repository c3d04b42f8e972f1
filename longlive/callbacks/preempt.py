"""A prompt that is asked for while a block is made begins with that block, not with the next."""

from dataclasses import replace

import lightning.pytorch as pl
import torch
from torch import Tensor

from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.state import RolloutSpec, RolloutState


class PreemptBlock(RolloutCallback):
    """Lets a prompt interrupt the block at hand between two denoising steps.

    Numerics: exact. A video is the one that is made if the prompt is planned for that block.

    The loop asks for prompts when it has handed a step to the device. On a GPU it would hand over
    all steps of a block at once and never be interrupted, so the host waits until the device has
    begun the step that it was handed last. One step is then always under way while the next is
    prepared, provided that preparing it takes less time than running it.
    """

    def __init__(self) -> None:
        self._begun: torch.cuda.Event | None = None

    def configure_rollout(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, spec: RolloutSpec
    ) -> RolloutSpec:
        return replace(spec, preempts=True)

    def on_denoise_step_start(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        sigma: float,
    ) -> None:
        if state.device.type == "cuda":
            self._begun = torch.cuda.Event()
            self._begun.record(torch.cuda.current_stream(state.device))

    def on_denoise_step_end(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        x0_BFCHW: Tensor,
    ) -> None:
        if self._begun is not None:
            self._begun.synchronize()
            self._begun = None
