"""The files that one video becomes, side by side under one name."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from longlive.video.frames import Frames
from longlive.video.latents import LatentWriter
from longlive.video.mp4 import Mp4Writer
from longlive.video.png import PngWriter
from longlive.video.sidecar import VideoRecord, write_sidecar
from longlive.video.sink import FrameSink


class Recording:
    """One video while it is made: ``clip.mp4``, and on request ``clip/`` and ``clip.safetensors``.

    Args:
        path: Of the MP4; the other names follow from it.
        record: What is known of the video so far; goes into the MP4 and the file of latents.
        crf: Quality of x264, lower is better.
        png: Whether each frame also becomes a PNG file.
        latents: Whether the latents are kept.

    Raises:
        UserError: If a file or folder cannot be made.
    """

    def __init__(
        self, path: Path, record: VideoRecord, *, crf: int, png: bool, latents: bool
    ) -> None:
        title = record.prompts[0][1]
        self.path = path
        self._mp4 = Mp4Writer(path, title=title, metadata=record.as_dict(), crf=crf)
        self._sinks: list[FrameSink] = [self._mp4]
        self._latents: LatentWriter | None = None
        try:
            if png:
                self._sinks.append(PngWriter(path.with_suffix("")))
            if latents:
                about = {"prompt": title, "seed": str(record.seed), "weights": record.weights_kind}
                self._latents = LatentWriter(path.with_suffix(".safetensors"), about)
        except Exception:
            self._mp4.abort()
            raise

    @property
    def frames(self) -> int:
        """Frames appended so far."""
        return self._mp4.frames

    @property
    def is_kept(self) -> bool:
        """Whether there is an MP4 of this run at ``path``, once closed."""
        return self._mp4.is_kept

    def chapter(self, title: str, frame: int) -> None:
        """Mark the frame with which a prompt begins."""
        self._mp4.chapter(title, frame)

    def append_frames(self, frames: Frames) -> None:
        """Queue frames, ``uint8`` ``[T, H, W, 3]`` or ``[T, 3, H, W]``."""
        for sink in self._sinks:
            sink.append(frames)

    def append_latents(self, x0_BFCHW: Tensor) -> None:
        """Keep the latents of a block, if latents are wanted."""
        if self._latents is not None:
            self._latents.append(x0_BFCHW)

    def close(self) -> list[Exception]:
        """Complete every file, whatever happens to the others.

        Without a frame there is no video, and that is no error.

        Returns:
            What went wrong; empty if nothing did.
        """
        ends: list[Callable[[], object]] = [
            sink.close if sink.frames else sink.abort for sink in self._sinks
        ]
        if self._latents is not None and self._latents.latent_frames:
            ends.append(self._latents.close)
        errors: list[Exception] = []
        for end in ends:
            try:
                end()
            except Exception as error:
                errors.append(error)
        return errors

    def describe(self, record: VideoRecord) -> Path:
        """Write what the video became beside it, and return that file.

        Raises:
            UserError: If it cannot be written.
        """
        return write_sidecar(self.path, record)
