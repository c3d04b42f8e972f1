"""The recorder behind the profiler: whose rollout it times, on which device, with which hooks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch

from longlive.callbacks.module_regions import LayerHooks, TextHooks
from longlive.errors import UserError
from longlive.metrics.clocks import clock_of, memory_gauge_of
from longlive.metrics.regions import RegionRecorder
from longlive.metrics.rollout_profile import RolloutProfile
from longlive.rollout.state import RolloutState

ROLLOUT = "rollout"
INITIALIZATION = "initialization"
TEXT = "text encoding"
RECACHE = "recache"
BLOCK = "block"
DECODE = "VAE decode"
OUTPUT = "output"
COPY = "copy to host"
CONTEXT = "context update"


class RolloutRecording:
    """Times one rollout at a time, and any number of them in turn.

    Args:
        detailed: Whether to look into the layers.
        memory: Whether to read the memory where a region begins and ends.
        nvtx: Whether regions become NVTX ranges, on a GPU.

    Attributes:
        rollouts: How many have begun.
    """

    def __init__(self, *, detailed: bool, memory: bool, nvtx: bool) -> None:
        self.rollouts = 0
        self._detailed = detailed
        self._memory = memory
        self._nvtx = nvtx
        self._recorder: RegionRecorder | None = None
        self._device: torch.device | None = None
        self._state: RolloutState | None = None
        self._text_hooks: TextHooks | None = None
        self._layer_hooks: LayerHooks | None = None
        self._passes = self._divided_passes = 0
        self._obstacle = ""

    def prepare(self, device: torch.device) -> None:
        """A rollout is about to be set up, as it seems on ``device``."""
        self.end()
        self._begin(device).open(INITIALIZATION)

    def start(self, pl_module: pl.LightningModule, state: RolloutState) -> None:
        """The rollout that was prepared begins, or one that was not.

        Raises:
            UserError: If it runs on another device than the rollouts before it.
        """
        recorder = self._recorder
        if recorder is None or recorder.current != INITIALIZATION or self._device != state.device:
            self.end()
            recorder = self._begin(state.device)
        recorder.close_through(INITIALIZATION)
        self.rollouts += 1
        self._state = state
        self._text_hooks = TextHooks(recorder, pl_module, TEXT)
        if self._detailed:
            self._layer_hooks = LayerHooks(recorder, pl_module)
            self._obstacle = self._layer_hooks.obstacle

    def of(self, state: RolloutState) -> RegionRecorder | None:
        """The recorder, if it is ``state``'s rollout that it times."""
        return self._recorder if state is self._state else None

    def count_pass(self) -> None:
        """A pass of the network has ended."""
        self._passes += 1

    def end(self, state: RolloutState | None = None) -> None:
        """Leave nothing open and no hook behind.

        Args:
            state: Do so only if it is this rollout that is timed. An abandoned one ends when it is
                collected, perhaps while the next one runs.
        """
        if state is not None and state is not self._state:
            return
        if self._text_hooks is not None:
            self._text_hooks.detach()
        if self._layer_hooks is not None:
            self._divided_passes += self._layer_hooks.passes
            self._layer_hooks.detach()
        recorder = self._recorder
        while self._state is None and recorder is not None and recorder.current is not None:
            # It was prepared and never begun.
            recorder.cancel()
        if recorder is not None:
            recorder.unwind()
        self._state = self._text_hooks = self._layer_hooks = None

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Time what is done here to get a block's frames to the host."""
        recorder = self._recorder
        if recorder is None or recorder.current != OUTPUT:
            yield
            return
        recorder.open(COPY)
        try:
            yield
        finally:
            recorder.close_through(COPY)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Time what the writer's thread does here."""
        start_ns = time.perf_counter_ns()
        yield
        if self._recorder is not None:
            self._recorder.add_written(start_ns, time.perf_counter_ns())

    def profile(self) -> RolloutProfile:
        """What has been found out so far; waits until the device has come to the last region."""
        recorder, device = self._recorder, self._device
        if recorder is None or device is None:
            return RolloutProfile()
        is_cuda = device.type == "cuda"
        return RolloutProfile(
            samples=recorder.samples(),
            device=torch.cuda.get_device_name(device) if is_cuda else device.type,
            clock=recorder.clock.kind,
            memory=None if recorder.gauge is None else recorder.gauge.kind,
            rollouts=self.rollouts,
            has_device_clock=recorder.clock.is_device,
            notes=self._notes(),
        )

    def _begin(self, device: torch.device) -> RegionRecorder:
        recorder = self._recorder
        if recorder is not None and self._device != device:
            if self.rollouts:
                raise UserError(
                    f"this profiler has timed {self._device}: take another one for {device}"
                )
            recorder = None
        if recorder is None:
            gauge = memory_gauge_of(device) if self._memory else None
            recorder = RegionRecorder(clock_of(device, nvtx=self._nvtx), gauge)
            self._recorder, self._device = recorder, device
        recorder.rollout = self.rollouts
        recorder.open(ROLLOUT)
        return recorder

    def _notes(self) -> list[str]:
        running = 0 if self._layer_hooks is None else self._layer_hooks.passes
        missed = self._passes - self._divided_passes - running
        if not self._detailed or missed <= 0:
            return []
        reason = self._obstacle or "they are captured, or another denoiser runs them"
        return [
            f"the layers of {missed} of {self._passes} passes could not be timed: {reason}; "
            "time them in an eager run, as longlive benchmark does"
        ]
