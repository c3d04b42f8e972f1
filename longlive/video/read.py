"""Videos from files."""

import json
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from longlive.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer


def read_video(path: Path) -> Tensor:
    """Decode every frame that can be decoded; an unfinished file gives those it has.

    Returns:
        RGB frames, ``uint8`` ``[T, H, W, 3]``, on the host.

    Raises:
        UserError: If the file is missing, is no video, or has no frame.
    """
    import av

    frames_HWC: list[np.ndarray] = []
    with _open(path) as container:
        try:
            for frame in container.decode(video=0):
                frames_HWC.append(frame.to_ndarray(format="rgb24"))
        except av.error.FFmpegError as error:
            if not frames_HWC:
                raise _no_video(path, error) from error
    if not frames_HWC:
        raise UserError(f"{path} has no frames; make the video again")
    return torch.from_numpy(np.stack(frames_HWC))


def frame_size(path: Path) -> tuple[int, int]:
    """Rows and columns of a video's frames, without decoding any.

    Raises:
        UserError: If the file is missing or is no video.
    """
    with _open(path) as container:
        context = container.streams.video[0].codec_context
        return context.height, context.width


def read_metadata(path: Path) -> dict[str, Any]:
    """Read a video's tags.

    Returns:
        The tags of the file by name; ``comment`` decoded where it is JSON, as ``Mp4Writer`` writes
        it; ``fps``; and ``chapters``, a list of ``(frame, title)``.

    Raises:
        UserError: If the file is missing or is no video.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        fps = stream.average_rate or Fraction(0)
        found: dict[str, Any] = dict(container.metadata)
        found["fps"] = float(fps)
        found["chapters"] = [
            (
                round(chapter["start"] * (chapter["time_base"] or 0) * fps),
                chapter["metadata"].get("title", ""),
            )
            for chapter in container.chapters()
        ]
    try:
        found["comment"] = json.loads(found["comment"])
    except (KeyError, ValueError):
        return found
    return found


def _open(path: Path) -> "InputContainer":
    import av

    if not path.is_file():
        raise UserError(f"there is no video at {path}; check the name")
    try:
        container = av.open(path)
    except av.error.FFmpegError as error:
        raise _no_video(path, error) from error
    if not container.streams.video:
        container.close()
        raise UserError(f"{path} has no pictures; give a video")
    return container


def _no_video(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"{path} cannot be read as a video ({reason}); make it again")
