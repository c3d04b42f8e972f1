"""Several videos in one picture: a row of frames each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longlive.video.atomic import write_bytes
from longlive.video.frames import Frames, Pixels, frames_THWC
from longlive.video.png import encode_png

_GAP_PX = 4
_WHITE = 255


def contact_sheet(
    videos: Sequence[Frames],
    *,
    columns: int = 8,
    captions: Sequence[str] | None = None,
    frame_width_px: int | None = None,
) -> bytes:
    """Draw one row for each video, its frames evenly spaced from the first to the last.

    Args:
        videos: ``uint8`` ``[T, H, W, 3]`` or ``[T, 3, H, W]`` each; lengths and sizes may differ.
            One with fewer frames than columns leaves the rest of its row white.
        columns: Frames in a row.
        captions: One line above each row, cut at the row's end. Drawn with Pillow; without it
            (it comes with ``longlive[dev]``) the picture has none.
        frame_width_px: Width to which frames are scaled; the first video's width if ``None``.

    Returns:
        The bytes of a PNG file.

    Raises:
        ValueError: If there is no video, a video has no frame, or ``captions`` has another length.
    """
    if not videos or columns < 1:
        raise ValueError("a contact sheet needs at least one video and one column")
    if captions is not None and len(captions) != len(videos):
        raise ValueError(f"{len(captions)} captions do not fit {len(videos)} videos")
    chosen = [_evenly_spaced(frames_THWC(video), columns) for video in videos]
    width = frame_width_px or chosen[0].shape[2]
    strips = []
    for index, x_THWC in enumerate(chosen):
        row_HWC = _row(_scale(x_THWC, width), columns)
        if captions is not None:
            strips.extend(_caption(captions[index], row_HWC.shape[1]))
        strips.append(row_HWC)
    return encode_png(np.concatenate(strips))


def save_contact_sheet(
    path: Path,
    videos: Sequence[Frames],
    *,
    columns: int = 8,
    captions: Sequence[str] | None = None,
    frame_width_px: int | None = None,
) -> Path:
    """Write ``contact_sheet`` to ``path`` and return it.

    Raises:
        UserError: If it cannot be written.
    """
    sheet = contact_sheet(videos, columns=columns, captions=captions, frame_width_px=frame_width_px)
    write_bytes(path, sheet)
    return path


def _evenly_spaced(x_THWC: Pixels, count: int) -> Pixels:
    if len(x_THWC) == 0:
        raise ValueError("a video without frames cannot be shown")
    indices = np.linspace(0, len(x_THWC) - 1, min(count, len(x_THWC))).round().astype(int)
    return np.ascontiguousarray(x_THWC[indices])


def _scale(x_THWC: Pixels, width: int) -> Pixels:
    import av
    from av.video.reformatter import Interpolation

    if x_THWC.shape[2] == width:
        return x_THWC
    height = max(1, round(x_THWC.shape[1] * width / x_THWC.shape[2]))
    scaled = [
        av.VideoFrame.from_ndarray(x_HWC, format="rgb24").reformat(
            width, height, interpolation=Interpolation.AREA
        )
        for x_HWC in x_THWC
    ]
    return np.stack([frame.to_ndarray() for frame in scaled])


def _row(x_THWC: Pixels, columns: int) -> Pixels:
    """Frames side by side, with a gap around each."""
    frames, height, width, _ = x_THWC.shape
    row_HWC = np.full(
        (height + 2 * _GAP_PX, columns * (width + _GAP_PX) + _GAP_PX, 3), _WHITE, np.uint8
    )
    for index in range(frames):
        left = _GAP_PX + index * (width + _GAP_PX)
        row_HWC[_GAP_PX : _GAP_PX + height, left : left + width] = x_THWC[index]
    return row_HWC


def _caption(text: str, width: int) -> list[Pixels]:
    """The strip above a row, or nothing where Pillow is absent."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        return []
    font = ImageFont.load_default(size=14)
    strip = Image.new("RGB", (width, 20), "white")
    line = " ".join(text.split())
    ImageDraw.Draw(strip).text((_GAP_PX, 2), line, fill="black", font=font)
    return [np.asarray(strip, dtype=np.uint8)]
