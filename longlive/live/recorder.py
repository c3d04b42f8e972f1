"""What is shown, as files: an MP4 with the prompts as chapters, the session, a contact sheet."""

# Shape suffixes: T frames, H rows, W columns, C channels (red, green, blue).

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longlive.errors import UserError
from longlive.live.playout import Frame
from longlive.live.protocol import PictureFlag
from longlive.live.thumbnails import shrink
from longlive.video.atomic import write_bytes
from longlive.video.contact_sheet import save_contact_sheet
from longlive.video.frames import Pixels
from longlive.video.mp4 import Mp4Writer

log = logging.getLogger(__name__)

SHEET_FRAME_PX = 208
_SHEET_COLUMNS = 6
_SHEET_ROWS = 64
_SAMPLES = 24


@dataclass(slots=True)
class _Chapter:
    """Frames of one stretch under one prompt, evenly thinned so that there are never many."""

    title: str
    every: int = 1
    seen: int = 0
    frames: list[Pixels] = field(default_factory=list)

    def add(self, x_HWC: Pixels) -> None:
        if self.seen % self.every == 0:
            self.frames.append(shrink(x_HWC, SHEET_FRAME_PX))
            if len(self.frames) >= _SAMPLES:
                del self.frames[1::2]
                self.every *= 2
        self.seen += 1


class Recorder:
    """Takes frames as they are shown; :meth:`finish` makes the files whole.

    Until then the video is a fragmented MP4 beside its place, which plays even if the process is
    killed.

    Args:
        path: Of the MP4; the other files are named after it.
        about: Goes into the MP4's metadata.
        prompt_of: The prompt that a frame shows.

    Raises:
        UserError: If the file cannot be created.
    """

    def __init__(
        self, path: Path, about: dict[str, Any], prompt_of: Callable[[Frame], str]
    ) -> None:
        self.path = path
        self._prompt_of = prompt_of
        self._mp4 = Mp4Writer(path, title=path.stem, metadata=about)
        self._chapters: list[_Chapter] = []
        self._last: tuple[int, int] | None = None
        self._error: Exception | None = None
        self._is_finished = False

    @property
    def frames(self) -> int:
        """Frames taken so far."""
        return self._mp4.frames

    def append(self, frame: Frame) -> None:
        """Take the next frame; an error is kept for :meth:`finish`."""
        if self._error is not None or self._is_finished:
            return
        try:
            self._append(frame)
        except Exception as error:
            log.warning("the recording stopped: %s", error)
            self._error = error

    def finish(self, session: dict[str, Any]) -> list[Path]:
        """Complete the files.

        Args:
            session: The session so far.

        Returns:
            Those that there are: the MP4, the JSON, the PNG; without a frame only the JSON.

        Raises:
            UserError: If one could not be written; the others are.
        """
        self._is_finished = True
        errors: list[Exception] = [] if self._error is None else [self._error]
        made: list[Path] = []
        if self._mp4.frames:
            try:
                made.append(self._mp4.close())
            except Exception as error:
                if error is not self._error:
                    errors.append(error)
        else:
            self._mp4.abort()
        for write in (lambda: write_session(self.path, session), self._write_sheet):
            try:
                written = write()
            except Exception as error:
                errors.append(error)
            else:
                made += [] if written is None else [written]
        if errors:
            raise UserError(f"the recording is not complete: {errors[0]}") from errors[0]
        return made

    def _append(self, frame: Frame) -> None:
        here = (frame.branch, frame.prompt)
        if here != self._last or frame.flags & PictureFlag.FIRST_OF_PROMPT:
            prompt = self._prompt_of(frame)
            if not self._chapters or self._chapters[-1].title != prompt or here != self._last:
                self._mp4.chapter(prompt)
                self._chapters.append(_Chapter(prompt))
            self._last = here
        self._mp4.append(frame.pixels_HWC[None])
        self._chapters[-1].add(frame.pixels_HWC)

    def _write_sheet(self) -> Path | None:
        chapters = [chapter for chapter in self._chapters if chapter.frames][:_SHEET_ROWS]
        if not chapters:
            return None
        return save_contact_sheet(
            self.path.with_suffix(".png"),
            [np.stack(chapter.frames) for chapter in chapters],
            columns=_SHEET_COLUMNS,
            captions=[chapter.title for chapter in chapters],
        )


def write_session(path: Path, session: dict[str, Any]) -> Path:
    """Write a session beside a video, and return the file.

    Raises:
        UserError: If it cannot be written.
    """
    file = path.with_suffix(".json")
    write_bytes(file, (json.dumps(session, indent=1, ensure_ascii=False) + "\n").encode())
    return file
