"""Where the time and the memory of a rollout go: nested regions, timed without waiting for them."""

# Shape suffixes: B batch, F latent frames, T frames, C channels, H W rows and columns.

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from longlive.callbacks.frame_writer import FrameWriter
from longlive.callbacks.rollout_recording import (
    BLOCK,
    CONTEXT,
    DECODE,
    OUTPUT,
    RECACHE,
    TEXT,
    RolloutRecording,
)
from longlive.errors import UserError
from longlive.metrics.regions import RegionRecorder
from longlive.metrics.rollout_profile import RolloutProfile, step_name
from longlive.rollout.hooks import RolloutCallback, WrapOrder
from longlive.rollout.state import RolloutSpec, RolloutState

log = logging.getLogger(__name__)


class LongLiveProfiler(RolloutCallback):
    """Times the regions of every rollout it sees. Numerics: exact, it changes nothing.

    On a GPU a region lies between two CUDA events on the stream that the hooks run on; they are
    read when a result is first asked for, so nothing waits while a rollout runs. On a CPU it is the
    wall clock. See ``docs/profiler.md`` for the regions and what they contain. One instance times
    one rollout at a time, any number of them in turn, and keeps some 30 events per block (detailed:
    some thousands) until they are read.

    The peak statistics of the CUDA allocator are reset at every region; switch ``memory`` off if
    somebody else reads them.

    Detailed mode times the parts of every layer by forward hooks. The host then has more to do, and
    where it is the slower side everything looks slower: take the shares from such a run, not the
    totals. In compiled layers, and in passes that are captured or run by another denoiser's code,
    nothing can be timed; the report then says so. What cannot be told apart from outside is said in
    :mod:`longlive.callbacks.module_regions`.

    Args:
        detailed: Whether to look into the layers.
        memory: Whether to read the memory where a region begins and ends; not inside layers.
        nvtx: Whether regions become NVTX ranges, on a GPU.
        output: Folder for ``profile.json`` and ``trace.json`` of a run under Lightning; else the
            report is only logged. Without a Trainer call :meth:`export_json` and
            :meth:`export_trace`.
    """

    # First, so that what other callbacks do at the end of a region is not part of it.
    wrap_order = WrapOrder.WEIGHTS

    def __init__(
        self,
        detailed: bool = False,
        memory: bool = True,
        nvtx: bool = True,
        output: str | Path | None = None,
    ) -> None:
        self.detailed = detailed
        self.memory = memory
        self.nvtx = nvtx
        self.output = None if output is None else Path(output).expanduser()
        self.reset()

    def reset(self) -> None:
        """Forget every sample, for example after warming up; not while a rollout runs."""
        self._recording = RolloutRecording(
            detailed=self.detailed, memory=self.memory, nvtx=self.nvtx
        )

    def watch(self, writer: FrameWriter) -> None:
        """Also time how frames leave the device through ``writer``, in rollouts to come.

        Under Lightning it is found among the trainer's callbacks.
        """
        writer.listener = self

    def sending(self) -> AbstractContextManager[None]:
        """Time the conversion and the copy of a block's frames (``OutputListener``)."""
        return self._recording.sending()

    def writing(self) -> AbstractContextManager[None]:
        """Time the writer's thread (``OutputListener``)."""
        return self._recording.writing()

    def profile(self) -> RolloutProfile:
        """What has been found out so far; waits until the device has come to the last region."""
        return self._recording.profile()

    def summary(self, from_block: int = 0) -> dict[str, Any]:
        """Statistics of every region, see :meth:`RolloutProfile.summary`."""
        return self.profile().summary(from_block)

    def export_json(self, path: str | Path) -> None:
        """Write the summary and every sample.

        Raises:
            UserError: If the file cannot be written.
        """
        self.profile().write_json(path)

    def export_trace(self, path: str | Path) -> None:
        """Write a trace for https://ui.perfetto.dev.

        Raises:
            UserError: If the file cannot be written.
        """
        self.profile().write_trace(path)

    def configure_rollout(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, spec: RolloutSpec
    ) -> RolloutSpec:
        for callback in [] if trainer is None else trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FrameWriter):
                self.watch(callback)
        self._recording.prepare(_device_of(pl_module))
        return spec

    def on_rollout_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._recording.start(pl_module, state)

    def on_text_encoding_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        if recorder := self._recording.of(state):
            recorder.block = state.block_index
            recorder.open(TEXT)

    def on_prompt_switch(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        if recorder := self._recording.of(state):
            recorder.close_through(TEXT)

    def on_recache_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        if recorder := self._recording.of(state):
            recorder.open(RECACHE)

    def on_recache_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        if recorder := self._recording.of(state):
            recorder.close_through(RECACHE)
            self._recording.count_pass()

    def on_block_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        if recorder := self._recording.of(state):
            recorder.block = state.block_index
            recorder.open(BLOCK)

    def on_denoise_step_start(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        sigma: float,
    ) -> None:
        if recorder := self._recording.of(state):
            _end_output(recorder)
            recorder.open(step_name(sigma))

    def on_denoise_step_end(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        x0_BFCHW: Tensor,
    ) -> None:
        if recorder := self._recording.of(state):
            recorder.close_through(step_name(state.schedule.sigmas[state.step_index]))
            self._recording.count_pass()

    def on_block_abandoned(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        if recorder := self._recording.of(state):
            recorder.cut()

    def on_part_ready(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        x0_BFCHW: Tensor,
    ) -> None:
        # It is decoded at once, as a block is.
        self.on_latents_ready(trainer, pl_module, state, x0_BFCHW)

    def on_latents_ready(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        x0_BFCHW: Tensor,
    ) -> None:
        if recorder := self._recording.of(state):
            recorder.open(DECODE)

    def on_frames_ready(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        frames_BTCHW: Tensor,
    ) -> None:
        recorder = self._recording.of(state)
        if recorder and recorder.current == DECODE:
            recorder.swap(OUTPUT)

    def on_context_update_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        if recorder := self._recording.of(state):
            _end_output(recorder)
            recorder.open(CONTEXT)

    def on_context_update_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        if recorder := self._recording.of(state):
            recorder.close_through(CONTEXT)
            self._recording.count_pass()

    def on_block_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        if recorder := self._recording.of(state):
            # Before a prompt that replaces its keys a block has no context update.
            _end_output(recorder)
            recorder.close_through(BLOCK)

    def on_rollout_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._recording.end(state)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._conclude(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._recording.end()
        try:
            self._conclude(trainer)
        # Another exception is on its way: a device that failed, or a disk that is full.
        except (UserError, RuntimeError) as error:
            log.warning("%s", error)

    def _conclude(self, trainer: pl.Trainer) -> None:
        if not self._recording.rollouts or not trainer.is_global_zero:
            return
        profile = self.profile()
        log.info("where the time went\n%s", profile.report())
        if self.output is not None:
            profile.write_json(self.output / "profile.json")
            profile.write_trace(self.output / "trace.json")
            log.info("%s: profile.json, and trace.json for https://ui.perfetto.dev", self.output)


def report(profiler: LongLiveProfiler, from_block: int = 0) -> str:
    """Tables of every region, and in detailed mode of the layers' parts.

    Args:
        profiler: After its rollouts.
        from_block: First block that counts; 3 for the steady state.
    """
    return profiler.profile().report(from_block)


def _end_output(recorder: RegionRecorder) -> None:
    if recorder.current == DECODE:
        # Nobody has decoded: the latents themselves were wanted.
        recorder.cancel()
    recorder.close_through(OUTPUT)


def _device_of(pl_module: pl.LightningModule) -> torch.device:
    weight = next(pl_module.parameters(), None)
    return pl_module.device if weight is None else weight.device
