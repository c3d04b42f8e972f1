"""Small JPEG pictures, encoded by PyAV, so that no imaging library is needed."""

from fractions import Fraction

import numpy as np

from longlive.video.frames import Pixels

THUMBNAIL_PX = 128
_QUALITY = 5
"""Of the encoder, 2 is best and 31 worst."""


def encode_jpeg(x_HWC: Pixels, quality: int = _QUALITY) -> bytes:
    """Compress one image, ``uint8`` ``[H, W, 3]``, into the bytes of a JPEG file.

    Args:
        x_HWC: The image.
        quality: From 2 (best) to 31.
    """
    return _compress(x_HWC, x_HWC.shape[1], x_HWC.shape[0], quality)


def thumbnail(x_HWC: Pixels, width: int = THUMBNAIL_PX) -> bytes:
    """Scale an image down to at most ``width`` columns, and compress it."""
    rows, columns = x_HWC.shape[:2]
    width = min(width, columns)
    return _compress(x_HWC, width, max(1, round(rows * width / columns)), _QUALITY)


def shrink(x_HWC: Pixels, width: int) -> Pixels:
    """Scale an image down to at most ``width`` columns."""
    import av
    from av.video.reformatter import Interpolation

    rows, columns = x_HWC.shape[:2]
    if columns <= width:
        return np.array(x_HWC)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(x_HWC), format="rgb24")
    height = max(1, round(rows * width / columns))
    small = frame.reformat(width, height, interpolation=Interpolation.AREA)
    return small.to_ndarray().astype(np.uint8, copy=False)


def _compress(x_HWC: Pixels, width: int, height: int, quality: int) -> bytes:
    import av
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(x_HWC), format="rgb24")
    # JPEG's own color space: that of BT.601, all 256 levels.
    small = frame.reformat(
        width,
        height,
        "yuvj420p",
        dst_colorspace=Colorspace.ITU601,
        dst_color_range=ColorRange.JPEG,
        interpolation=Interpolation.AREA,
    )
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
    encoder.time_base = Fraction(1, 1)
    encoder.color_range = ColorRange.JPEG
    encoder.thread_count = 1
    encoder.qmin = encoder.qmax = quality
    packets = (*encoder.encode(small), *encoder.encode(None))
    return b"".join(bytes(packet) for packet in packets)
