"""Frames on their way to the host, as when files are written, and the moment they are there."""

# Shape suffixes: B batch, T frames, C channels, H W rows and columns.

import threading
import time
from collections.abc import Callable

import lightning.pytorch as pl
from torch import Tensor

from longlive.callbacks.rollout_files import NobodyListens, OutputListener
from longlive.rollout.hooks import RolloutCallback, WrapOrder
from longlive.rollout.state import RolloutState
from longlive.video.frames import to_uint8
from longlive.video.to_host import HostTransfer

BLOCKS_UNDER_WAY = 2
"""Blocks that the host may be ahead of the device: the same as where files are written."""


_PATIENCE_S = 300.0


class HostCopy(RolloutCallback):
    """Rounds frames to 8 bits on their device and copies them to the host; then they are dropped.

    A thread waits for the copies, so the rollout does not, unless it is two blocks ahead.
    Numerics: exact, it changes nothing.

    Args:
        on_sent: Called when a copy is queued.
        listener: Is told when that begins and ends.

    Attributes:
        arrivals_ns: When each piece of frames was on the host, of ``time.perf_counter_ns``.
    """

    # Last, so that whatever others do with the frames does not delay their stamps.
    wrap_order = max(WrapOrder)

    def __init__(
        self,
        on_sent: Callable[[], None] = lambda: None,
        listener: OutputListener | None = None,
    ) -> None:
        self.arrivals_ns: list[int] = []
        self._sent = 0
        self._on_sent = on_sent
        self._listener = listener or NobodyListens()
        self._transfer: HostTransfer | None = None
        self._arrival = threading.Condition()

    def wait(self) -> None:
        """Wait until all frames that were sent are on the host.

        Raises:
            RuntimeError: If they do not come; the device has failed.
        """
        with self._arrival:
            if not self._arrival.wait_for(lambda: len(self.arrivals_ns) >= self._sent, _PATIENCE_S):
                raise RuntimeError(f"no frames on the host for {_PATIENCE_S:.0f} s")

    def on_rollout_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._finish()
        self.arrivals_ns, self._sent = [], 0
        self._transfer = HostTransfer(capacity=BLOCKS_UNDER_WAY, name="benchmark frames to host")

    def on_frames_ready(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        frames_BTCHW: Tensor,
    ) -> None:
        assert self._transfer is not None, "the rollout has not started"
        with self._listener.sending():
            self._transfer.send(to_uint8(frames_BTCHW), self._receive)
        self._sent += 1
        self._on_sent()

    def on_rollout_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._transfer is not None:
            transfer, self._transfer = self._transfer, None
            transfer.finish()

    def _receive(self, frames_BTCHW: Tensor) -> None:
        now_ns = time.perf_counter_ns()
        with self._arrival:
            self.arrivals_ns.append(now_ns)
            self._arrival.notify_all()
