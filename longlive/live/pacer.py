"""The thread that shows frames: sixteen a second, from the playout buffer to a viewer."""

import logging
import threading
import time
from dataclasses import replace
from typing import Protocol

from longlive.geometry import FPS
from longlive.live.encoders import Picture, PictureEncoder
from longlive.live.engine import SessionEngine
from longlive.live.playout import Frame
from longlive.live.protocol import PictureFlag
from longlive.live.recorder import Recorder

log = logging.getLogger(__name__)

INTERVAL_S = 1 / FPS


class Outlet(Protocol):
    """Where pictures go: a connection."""

    @property
    def encoder(self) -> PictureEncoder:
        """Of this connection's pictures."""
        ...

    @property
    def has_credit(self) -> bool:
        """Whether the viewer has taken enough of what was sent."""
        ...

    def send(self, frame: Frame, pictures: list[Picture]) -> None:
        """Queue a frame's pictures; return at once."""
        ...


class Pacer:
    """Takes a frame when one is due, encodes it, and hands it to whoever watches.

    A frame that is late moves those after it: nothing is skipped to catch up. Nothing is shown
    while nobody watches or the viewer has not taken what was sent.

    Args:
        engine: Where frames come from.
    """

    def __init__(self, engine: SessionEngine) -> None:
        self._engine = engine
        self._changed = engine.changed
        self._outlet: Outlet | None = None
        self._recorder: Recorder | None = None
        self._is_closed = False
        self._due_s: float | None = None
        self._generation = -1
        self._needs_key = True
        self._thread = threading.Thread(target=self._run, name="pacer", daemon=True)
        self._thread.start()

    def attach(self, outlet: Outlet | None) -> None:
        """Show to somebody else, or to nobody."""
        with self._changed:
            self._outlet = outlet
            self._needs_key = True
            self._due_s = None
            self._changed.notify_all()

    def record(self, recorder: Recorder | None) -> None:
        """Give what is shown to a recorder too, or to none."""
        with self._changed:
            self._recorder = recorder

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                frame, outlet, is_continuous = self._next()
                if frame is None or outlet is None:
                    return
                recorder = self._recorder
                is_key = self._needs_key or bool(frame.flags & PictureFlag.JUMP)
                self._needs_key = False
            try:
                self._show(frame, outlet, recorder, is_key=is_key)
            except Exception:
                log.exception("a frame could not be shown")
            self._engine.statistics.sent_frame(is_continuous=is_continuous)

    def _next(self) -> tuple[Frame | None, Outlet | None, bool]:
        """Wait until a frame is due and there; no frame means the end."""
        while not self._is_closed:
            self._forget_stale_schedule()
            wait_s = self._idle_s()
            if wait_s == 0:
                frame = self._engine.take_frame()
                if frame is not None:
                    return frame, self._outlet, self._schedule()
                self._miss(by_viewer=False)
                wait_s = None
            self._changed.wait(wait_s)
        return None, None, False

    def _forget_stale_schedule(self) -> None:
        playout, video = self._engine.playout, self._engine.video
        if playout.generation != self._generation or not video.is_playing or video.is_paused:
            self._generation = playout.generation
            self._due_s = None

    def _idle_s(self) -> float | None:
        """How long there is nothing to do: 0 now, None until something changes."""
        video = self._engine.video
        if self._outlet is None or not video.is_playing or video.is_paused:
            return None
        if self._due_s is not None:
            left = self._due_s - time.perf_counter()
            if left > 0:
                return left
        if not self._outlet.has_credit:
            self._miss(by_viewer=True)
            return None
        return 0

    def _miss(self, *, by_viewer: bool) -> None:
        """A frame is due and cannot be shown; the next one is due when it can."""
        video = self._engine.video
        if self._due_s is not None and video.is_playing and video.has_shown:
            self._engine.statistics.stalled(by_viewer=by_viewer)
        self._due_s = None

    def _schedule(self) -> bool:
        """Say when the next frame is due; return whether this one was on schedule."""
        now, due = time.perf_counter(), self._due_s
        # After a hiccup of the machine time goes on from here, without a burst to make up for it.
        is_late = due is None or now - due > INTERVAL_S
        self._due_s = (now if due is None or is_late else due) + INTERVAL_S
        return due is not None

    def _show(
        self, frame: Frame, outlet: Outlet, recorder: Recorder | None, *, is_key: bool
    ) -> None:
        start_s = time.perf_counter()
        pictures = outlet.encoder.encode(frame.pixels_HWC, is_key=is_key)
        self._engine.statistics.encoded(1000 * (time.perf_counter() - start_s))
        flagged = [replace(picture, flags=picture.flags | frame.flags) for picture in pictures]
        outlet.send(frame, flagged)
        if recorder is not None:
            recorder.append(frame)
