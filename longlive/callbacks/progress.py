"""How far a rollout is: one line that is redrawn in a terminal, elsewhere a line now and then."""

# Shape suffixes: B batch, T frames, C channels, H W rows and columns.

import contextlib
import logging
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from torch import Tensor

from longlive.geometry import FPS, frames_of
from longlive.rollout.hooks import RolloutCallback, WrapOrder
from longlive.rollout.state import RolloutState

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

log = logging.getLogger(__name__)

_REFRESHES_PER_SECOND = 4
_LOG_SECONDS = 10.0
_LOG_SHARE = 0.1
_RATE_SECONDS = 10.0
_BAR_CHARACTERS = 16
_PROMPT_CHARACTERS = 60


class RolloutProgress(RolloutCallback):
    """Shows frames, speed, what plays, the active prompt and the time that is left, on stderr.

    In a terminal that is one line; elsewhere a line in the log for every tenth of the video, and
    every ten seconds. Frames count once the device has finished them, and nothing waits for that.
    """

    # First, so that it has left the terminal when others log what became of the rollout.
    wrap_order = WrapOrder.WEIGHTS

    def __init__(self) -> None:
        self._display: _Display | None = None

    def on_rollout_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._close()
        if state.spec.is_shown and (trainer is None or trainer.is_global_zero):
            self._display = _Display(state)

    def on_prompt_switch(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        if self._display is not None:
            self._display.prompt = state.prompt

    def on_block_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        if self._display is not None:
            self._display.open()

    def on_denoise_step_start(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        sigma: float,
    ) -> None:
        if self._display is not None:
            self._display.update()

    def on_frames_ready(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        frames_BTCHW: Tensor,
    ) -> None:
        if self._display is not None:
            self._display.meter.queue(frames_BTCHW)
            self._display.update()

    def on_rollout_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        # An abandoned rollout ends when it is collected, perhaps while the next one is shown.
        if self._display is not None and self._display.state is state:
            self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _close(self) -> None:
        display, self._display = self._display, None
        if display is not None:
            display.close()


class FrameMeter:
    """Counts the frames that the device has finished, and how fast they come.

    Attributes:
        frames: Finished.
        total: Wanted; None if there is no end.
    """

    def __init__(self, total: int | None) -> None:
        self.frames = 0
        self.total = total
        self._queued: deque[tuple[int, torch.cuda.Event | None]] = deque()
        self._arrivals: deque[tuple[float, int]] = deque()

    def queue(self, frames_BTCHW: Tensor) -> None:
        """Count these frames once the work queued so far on the current stream is done."""
        event = None
        if frames_BTCHW.is_cuda:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(frames_BTCHW.device))
        self._queued.append((frames_BTCHW.shape[1], event))

    def poll(self) -> None:
        """Look what has been finished, without waiting."""
        before = self.frames
        while self._queued and (self._queued[0][1] is None or self._queued[0][1].query()):
            self.frames += self._queued.popleft()[0]
        if self.frames > before:
            self._arrive(time.perf_counter())

    def wait(self) -> None:
        """Wait for what is queued."""
        if self._queued and self._queued[-1][1] is not None:
            self._queued[-1][1].synchronize()
        self.poll()

    @property
    def fps(self) -> float | None:
        """Frames a second, over the last ten seconds; None before the second arrival."""
        if len(self._arrivals) < 2:
            return None
        (start_s, before), (end_s, after) = self._arrivals[0], self._arrivals[-1]
        return (after - before) / max(end_s - start_s, 1e-6)

    @property
    def left_s(self) -> float | None:
        """Seconds until the total is reached at the present speed, if that can be told."""
        if self.total is None or not self.fps:
            return None
        return max(0, self.total - self.frames) / self.fps

    def _arrive(self, now_s: float) -> None:
        self._arrivals.append((now_s, self.frames))
        while len(self._arrivals) > 2 and self._arrivals[1][0] < now_s - _RATE_SECONDS:
            self._arrivals.popleft()


class _Display:
    """What is shown of one rollout."""

    def __init__(self, state: RolloutState) -> None:
        length = state.spec.latent_frames
        self.state = state
        self.prompt = ""
        self.meter = FrameMeter(None if length is None else frames_of(length))
        self._live: Live | None = None
        self._is_open = False
        self._logged_frames = 0
        self._logged_s = time.perf_counter()

    def open(self) -> None:
        """Begin to show, if that has not happened."""
        if self._is_open:
            return
        self._is_open = True
        self._live = _live(self)
        if self._live is not None:
            self._live.start(refresh=True)

    def update(self) -> None:
        """Count what has been finished; log a line if one is due."""
        self.meter.poll()
        if self._live is None and self._is_line_due():
            self._log_line()

    def close(self) -> None:
        """Show the final count and leave the terminal."""
        # A device that failed has been reported by what failed on it.
        with contextlib.suppress(RuntimeError):
            self.meter.wait()
        if self._live is not None:
            self._live.stop()
        elif self.meter.frames > self._logged_frames:
            self._log_line()

    def columns(self) -> list[str]:
        """Texts of the line, apart from the prompt."""
        meter = self.meter
        of_total = "" if meter.total is None else f"/{meter.total}"
        texts = [
            f"{meter.frames}{of_total} frames",
            "- fps" if meter.fps is None else f"{meter.fps:.1f} fps",
            f"{meter.frames / FPS:.1f} s of video",
        ]
        return texts if meter.left_s is None else [*texts, f"{_minutes(meter.left_s)} left"]

    def row(self) -> "Table":
        """The line for a terminal."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        total = self.meter.total
        bar = ProgressBar(total, self.meter.frames, width=_BAR_CHARACTERS, pulse=total is None)
        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_row(
            bar,
            *(Text(text, no_wrap=True) for text in self.columns()),
            Text(_shorten(self.prompt), style="dim", no_wrap=True, overflow="ellipsis"),
        )
        return row

    def _is_line_due(self) -> bool:
        frames = self.meter.frames - self._logged_frames
        is_late = time.perf_counter() - self._logged_s >= _LOG_SECONDS
        total = self.meter.total
        return is_late or (total is not None and frames >= _LOG_SHARE * total)

    def _log_line(self) -> None:
        self._logged_frames = self.meter.frames
        self._logged_s = time.perf_counter()
        log.info("%s; %s", ", ".join(self.columns()), _shorten(self.prompt))


def _live(display: _Display) -> "Live | None":
    """A line on stderr, if that is a terminal that can redraw it."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if not sys.stderr.isatty() or not console.is_interactive:
        return None
    return Live(
        get_renderable=display.row,
        console=console,
        refresh_per_second=_REFRESHES_PER_SECOND,
        # It would lead what is printed to stdout to this console, also out of a pipe.
        redirect_stdout=sys.stdout.isatty(),
    )


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def _shorten(prompt: str) -> str:
    text = " ".join(prompt.split())
    return text if len(text) <= _PROMPT_CHARACTERS else f"{text[: _PROMPT_CHARACTERS - 1]}…"
