"""The file behind ``Mp4Writer``: encoder, muxer and what happens when the disk is full.

While frames arrive the file is *fragmented*: every frame is complete on the disk on its own, so a
file whose writer was killed opens and plays. ``finish`` turns it, in place, into an ordinary MP4
with one index at the end (the muxer's ``hybrid_fragmented``), in which every player can seek and
which can hold chapters.

Nothing can be written around a full disk, but nothing is lost to it either: the file is cut back to
its last whole frame, gets its proper name, and the error says how many frames it has.
"""

import contextlib
import os
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlive.errors import UserError
from longlive.video.atomic import cannot_write, make_parent, part_path
from longlive.video.frames import Pixels, pad_to_even

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_MOVFLAGS = "hybrid_fragmented+frag_every_frame+default_base_moof+use_metadata_tags"
# Without look-ahead a frame leaves the encoder as soon as it has entered it, so at most one frame
# is missing from the file of a killed run.
_X264 = {"preset": "veryfast", "tune": "zerolatency"}
# MP4's chapter list counts a title's bytes in one byte.
_CHAPTER_TITLE_BYTES = 255


class H264File:
    """One MP4 that is being written; used by one thread at a time, except for ``chapters``.

    Args:
        path: The name it gets in ``finish``; until then it is ``part_path(path)``.
        tags: Metadata of the container. Written with the first frame.
        fps: Frames a second, and frames from one key frame to the next.
        crf: Quality of x264, lower is better.

    Attributes:
        chapters: Title by first frame; read in ``finish``.
        is_kept: Whether there is a file at ``path``, after ``finish``.

    Raises:
        UserError: If the file cannot be created.
    """

    def __init__(self, path: Path, tags: Mapping[str, str], *, fps: int, crf: int) -> None:
        self.chapters: dict[int, str] = {}
        self.is_kept = False
        self._path = path
        self._tags = tags
        self._fps = fps
        self._crf = crf
        self._encoded_frames = 0
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        make_parent(path)
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder; choose another name")
        try:
            self._part = _PartFile(part_path(path))
        except OSError as error:
            raise cannot_write(path, error) from error

    def encode(self, x_THWC: Pixels) -> None:
        """Encode ``uint8`` frames ``[T, H, W, 3]``, all of one size.

        Raises:
            OSError: If they cannot be written.
            ValueError: If their size differs from the first frame's.
        """
        import av

        x_THWC = pad_to_even(x_THWC)
        if self._container is None or self._stream is None:
            self._container, self._stream = self._open(*x_THWC.shape[1:3])
        stream = self._stream
        if x_THWC.shape[1:3] != (stream.height, stream.width):
            raise ValueError(
                f"frames of {x_THWC.shape[2]}x{x_THWC.shape[1]} pixels do not go into a video of "
                f"{stream.width}x{stream.height}"
            )
        for x_HWC in x_THWC:
            frame = to_bt709(av.VideoFrame.from_ndarray(x_HWC, format="rgb24"))
            frame.pts = self._encoded_frames
            frame.time_base = Fraction(1, self._fps)
            for packet in stream.encode(frame):
                self._container.mux(packet)
                self._part.mark_sound()
            self._encoded_frames += 1

    def finish(self, error: BaseException | None = None) -> None:
        """Complete the file and give it its name; without a frame, remove it.

        Args:
            error: Why it ends early, if it does; raised again once the file has its name.

        Raises:
            UserError: If the file system refused a write, now or, as ``error``, before.
        """
        if not isinstance(error, OSError):
            try:
                self._write_end()
            except Exception as late:
                error = late
        try:
            frames = self._keep(is_whole=error is None)
        except OSError as late:
            kept = f"the frames are kept in {self._part.path}"
            raise cannot_write(self._path, late, kept) from late
        if isinstance(error, OSError):
            kept = f"its first {frames} frames are kept" if frames else "no frame could be kept"
            raise cannot_write(self._path, error, kept) from error
        if error is not None:
            raise error

    def _open(self, height: int, width: int) -> "tuple[OutputContainer, VideoStream]":
        import av
        from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

        container = av.open(self._part, "w", format="mp4", options={"movflags": _MOVFLAGS})
        container.metadata.update(self._tags)
        options = {**_X264, "crf": str(self._crf)}
        stream = container.add_stream("libx264", rate=self._fps, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.gop_size = self._fps
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        return container, stream

    def _write_end(self) -> None:
        if self._container is None or self._stream is None:
            return
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.set_chapters(self._chapter_list())
        self._container.close()

    def _chapter_list(self) -> list[Any]:
        titles = dict(self.chapters)
        starts = sorted(start for start in titles if start < self._encoded_frames)
        return [
            {
                "id": index,
                "start": start,
                "end": end,
                "time_base": Fraction(1, self._fps),
                "metadata": {"title": _cut_title(titles[start])},
            }
            for index, (start, end) in enumerate(pairwise([*starts, self._encoded_frames]))
        ]

    def _keep(self, is_whole: bool) -> int:
        """Close and rename the file, or remove it if it shows nothing; return its frames."""
        import av

        if self._container is not None:
            with contextlib.suppress(av.error.FFmpegError):
                self._container.close()
        self._part.cut_and_close()
        frames = self._encoded_frames if is_whole else _frames_in(self._part.path)
        if frames:
            self._part.path.replace(self._path)
            self.is_kept = True
        else:
            self._part.path.unlink()
        return frames


class _PartFile:
    """What the muxer writes into; remembers up to where the file is sound."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb", buffering=0)
        self._sound_bytes = 0
        self._is_broken = False

    def write(self, data: bytes) -> int:
        try:
            self._write_all(memoryview(data))
        except OSError:
            self._is_broken = True
            raise
        return len(data)

    def _write_all(self, rest: memoryview) -> None:
        # On a nearly full disk a write first comes back short.
        while len(rest):
            rest = rest[self._file.write(rest) :]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def mark_sound(self) -> None:
        self._sound_bytes = self._file.tell()

    def cut_and_close(self) -> None:
        with self._file:
            if self._is_broken:
                self._file.truncate(self._sound_bytes)
            os.fsync(self._file.fileno())


def to_bt709(frame: "VideoFrame") -> "VideoFrame":
    """Convert RGB to the color space that the stream declares; the default would be BT.601."""
    from av.video.reformatter import ColorRange, Colorspace

    return frame.reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
    )


def _cut_title(title: str) -> str:
    return title.encode()[:_CHAPTER_TITLE_BYTES].decode(errors="ignore")


def _frames_in(path: Path) -> int:
    import av

    try:
        with av.open(path) as container:
            return sum(1 for packet in container.demux(video=0) if packet.size)
    except (av.error.FFmpegError, IndexError):
        return 0
