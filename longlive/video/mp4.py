"""An H.264 file that grows while frames are made, and survives whatever ends the run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longlive.errors import UserError
from longlive.geometry import FPS
from longlive.video.frames import Pixels
from longlive.video.h264 import H264File
from longlive.video.sink import FrameSink


class Mp4Writer(FrameSink):
    """Leaves one MP4 at ``path``: H.264, yuv420p, BT.709, one key frame a second.

    Until ``close`` the file is ``.NAME.part.mp4`` in the same folder, which opens and plays even
    when this process is killed; a previous ``path`` stays untouched until then. An odd side grows
    by one repeated row or column.

    Args:
        path: Ends in ``.mp4``. Missing folders are made.
        title: The first prompt.
        metadata: Stored as JSON in the tag ``comment``, with the first frame. Prompts that only
            become known later belong into ``chapter`` and the sidecar.
        fps: Frames a second.
        crf: Quality of x264, lower is better; 18 is hard to tell from the original by eye.

    Raises:
        UserError: If the file cannot be created.
    """

    def __init__(
        self,
        path: Path,
        *,
        title: str = "",
        metadata: Mapping[str, Any] | None = None,
        fps: int = FPS,
        crf: int = 18,
    ) -> None:
        if path.suffix != ".mp4":
            raise UserError(f"a video's name must end in .mp4, got {path}")
        tags = {"title": title, "comment": json.dumps(dict(metadata or {}), ensure_ascii=False)}
        self._file = H264File(path, tags, fps=fps, crf=crf)
        super().__init__(path)

    def chapter(self, title: str, frame: int | None = None) -> None:
        """Mark where a prompt begins: at ``frame``, or at the next frame to be appended."""
        self._file.chapters[self.frames if frame is None else frame] = title

    @property
    def is_kept(self) -> bool:
        return self._file.is_kept

    def _encode(self, x_THWC: Pixels) -> None:
        self._file.encode(x_THWC)

    def _finish(self, error: BaseException | None) -> None:
        self._file.finish(error)
