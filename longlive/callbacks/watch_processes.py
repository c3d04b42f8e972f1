"""The processes of a run end together, and what is said names the one that ended first.

Lightning's launcher ends the run where a process that it has started fails, within five seconds.
Three things are left: the first process may be the one that dies, and nobody looks after the
others; one whose peer is gone says that a connection was closed, not whose; and the first process
would leave while others still make their videos.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import lightning.pytorch as pl

from longlive.errors import UserError

log = logging.getLogger(__name__)

_LOOKS_EVERY_S = 1.0
# A connection closes before the process behind it has ended.
_DYING_S = 3.0
_ORPHANED = 1


class WatchProcesses(pl.Callback):
    """Ends a process that has lost the one that started it, and names those that died.

    Under ``torchrun`` that is its agent, which looks after the others itself.
    """

    def __init__(self) -> None:
        self._orphanhood: _Orphanhood | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size > 1 and trainer.local_rank > 0 and self._orphanhood is None:
            self._orphanhood = _Orphanhood(trainer.global_rank, os.getppid())
            self._orphanhood.start()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, UserError) or not isinstance(exception, RuntimeError):
            return
        if self._orphanhood is not None:
            # If that is the reason, it says so and this process ends here.
            self._orphanhood.join(_DYING_S)
        deadline = time.monotonic() + _DYING_S
        while (started := _started(trainer)) and time.monotonic() < deadline:
            dead = [(rank, one) for rank, one in enumerate(started, 1) if one.poll()]
            for rank, one in dead:
                log.error("%s", _obituary(rank, one.pid, one.returncode))
            if dead:
                return
            time.sleep(0.1)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "predict":
            # Theirs may be the longer videos.
            for one in _started(trainer):
                one.wait()


class _Orphanhood(threading.Thread):
    """Ends this process when the one that started it is gone."""

    def __init__(self, rank: int, parent: int) -> None:
        super().__init__(daemon=True, name="orphanhood")
        self._rank = rank
        self._parent = parent

    def run(self) -> None:
        while os.getppid() == self._parent:
            time.sleep(_LOOKS_EVERY_S)
        sys.stderr.write(
            f"longlive: error: the first process (PID {self._parent}) is gone: "
            f"process {self._rank} ends too\n"
        )
        sys.stderr.flush()
        # It may hang in a collective, so nothing less would do; files are under other names yet.
        os._exit(_ORPHANED)


def _started(trainer: pl.Trainer) -> list[subprocess.Popen[bytes]]:
    """The processes that Lightning's launcher has started from this one, by local rank from 1."""
    return list(getattr(trainer.strategy.launcher, "procs", None) or [])


def _obituary(rank: int, pid: int, code: int) -> str:
    by = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with code {code}"
    return f"process {rank} (PID {pid}) {by}: the run ends with it"
