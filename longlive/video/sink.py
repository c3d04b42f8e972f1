"""The interface of everything that writes frames, and the thread it writes in."""

import logging
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from longlive.errors import UserError
from longlive.video.background import BackgroundWorker
from longlive.video.frames import Frames, Pixels, copies

log = logging.getLogger(__name__)

_QUEUED_PIECES = 8
_PIECE_FRAMES = 16


class FrameSink(ABC):
    """Takes frames while they are made and encodes them in the background.

    At most 128 frames wait; then ``append`` does. As a context manager it closes, or after an
    exception aborts.

    Attributes:
        path: What ``close`` leaves behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._frames = 0
        self._worker = BackgroundWorker(
            self._encode, self._finish, capacity=_QUEUED_PIECES, name=f"write {path.name}"
        )

    @property
    def frames(self) -> int:
        """Frames appended so far, encoded or not."""
        return self._frames

    @property
    @abstractmethod
    def is_kept(self) -> bool:
        """Whether ``path`` shows a frame of this run, once closed or aborted."""

    @abstractmethod
    def _encode(self, x_THWC: Pixels) -> None:
        """Called in the thread."""

    @abstractmethod
    def _finish(self, error: BaseException | None) -> None:
        """Called last in the thread, also after ``_encode`` has raised ``error``."""

    def append(self, frames: Frames) -> None:
        """Queue frames; wait only when the encoder is far behind.

        Args:
            frames: ``uint8``, ``[T, 3, H, W]`` or ``[T, H, W, 3]``, on any device. Copied.

        Raises:
            UserError: If an earlier frame could not be written; what was written is kept.
            TypeError: If the values are not 8-bit.
            ValueError: If the shape is wrong, or earlier frames differed from the first in size.
        """
        for piece_THWC in copies(frames, _PIECE_FRAMES):
            self._worker.submit(piece_THWC)
            self._frames += len(piece_THWC)

    def close(self) -> Path:
        """Encode what is queued and complete the output.

        Returns:
            ``path``.

        Raises:
            UserError: If a frame could not be written, or if there was none and so no output.
            ValueError: If frames differed in size; what came before them is kept.
        """
        self._worker.finish()
        if self._frames == 0:
            raise UserError(f"no frame was made for {self.path}; ask for a longer video")
        return self.path

    def abort(self) -> Path | None:
        """Keep what was produced, quietly: for use while another exception is on its way.

        Returns:
            ``path``, or ``None`` if there is nothing to keep.
        """
        try:
            self._worker.finish()
        except Exception as error:
            log.warning("%s", error)
        return self.path if self.is_kept else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()
