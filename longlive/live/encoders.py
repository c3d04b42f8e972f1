"""Frames to pictures that a browser shows: H.264 for WebCodecs or MSE, or JPEG."""

# Shape suffixes: H rows, W columns, C channels (red, green, blue).

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from longlive.geometry import FPS
from longlive.live import mp4_fragments
from longlive.live.protocol import PictureFlag, PictureKind, TransportName, Video
from longlive.live.thumbnails import encode_jpeg
from longlive.video.frames import Pixels, pad_to_even
from longlive.video.h264 import to_bt709

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

_MICROSECONDS = 1_000_000
_SMALL_PIXELS = 256 * 256
_JPEG_QUALITY = 4


@dataclass(frozen=True, slots=True)
class Picture:
    """One binary message, without its header.

    Attributes:
        kind: What it holds.
        flags: Whether it is a key frame.
        time_us: When to show it.
        payload: The bytes.
    """

    kind: PictureKind
    flags: PictureFlag
    time_us: int
    payload: bytes


class PictureEncoder:
    """Encodes the frames of one connection; every frame leaves at once.

    Args:
        transport: Form of the pictures.
        crf: Quality of x264, lower is better.

    Attributes:
        video: How to read the pictures; known once the first frame is encoded.
    """

    def __init__(self, transport: TransportName, crf: int = 20) -> None:
        self.video: Video | None = None
        self._transport = transport
        self._crf = crf
        self._frames = 0
        self._context: VideoCodecContext | None = None

    def encode(self, x_HWC: Pixels, *, is_key: bool) -> list[Picture]:
        """Encode the next frame.

        Args:
            x_HWC: ``uint8``, of the size of the ones before.
            is_key: Whether it must be decodable without those.

        Returns:
            Its picture, after the MP4 header where that is due.
        """
        x_HWC = np.ascontiguousarray(pad_to_even(x_HWC[None])[0])
        time_us = self._frames * _MICROSECONDS // FPS
        is_first = self.video is None
        if self._transport == "jpeg":
            height, width = x_HWC.shape[:2]
            self.video = Video("jpeg", "", "", width, height, FPS)
            self._frames += 1
            payload = encode_jpeg(x_HWC, _JPEG_QUALITY)
            return [Picture(PictureKind.JPEG, PictureFlag.KEY, time_us, payload)]
        data, is_key = self._h264(x_HWC, is_key=is_key or is_first)
        pictures: list[Picture] = []
        if is_first:
            pictures += self._describe(data, *x_HWC.shape[:2])
        flags = PictureFlag.KEY if is_key else PictureFlag(0)
        if self._transport == "mse":
            data = mp4_fragments.fragment(data, number=self._frames, is_key=is_key)
        kind = PictureKind.MP4 if self._transport == "mse" else PictureKind.H264
        self._frames += 1
        return [*pictures, Picture(kind, flags, time_us, data)]

    def _describe(self, key_frame: bytes, height: int, width: int) -> list[Picture]:
        sps, pps = mp4_fragments.parameter_sets(key_frame)
        codec = mp4_fragments.codec_name(sps)
        is_mse = self._transport == "mse"
        mime = f'video/mp4; codecs="{codec}"' if is_mse else ""
        self.video = Video(self._transport, codec, mime, width, height, FPS)
        if not is_mse:
            return []
        header = mp4_fragments.header(sps, pps, width=width, height=height, fps=FPS)
        return [Picture(PictureKind.MP4_HEADER, PictureFlag(0), 0, header)]

    def _h264(self, x_HWC: Pixels, *, is_key: bool) -> tuple[bytes, bool]:
        import av
        from av.video.frame import PictureType

        context = self._context or self._open(*x_HWC.shape[:2])
        self._context = context
        frame = to_bt709(av.VideoFrame.from_ndarray(x_HWC, format="rgb24"))
        frame.pts = self._frames
        frame.time_base = Fraction(1, FPS)
        frame.pict_type = PictureType.I if is_key else PictureType.NONE
        packets = context.encode(frame)
        return b"".join(bytes(packet) for packet in packets), any(
            packet.is_keyframe for packet in packets
        )

    def _open(self, height: int, width: int) -> "VideoCodecContext":
        from av.codec.context import CodecContext
        from av.video.codeccontext import VideoCodecContext
        from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

        context = CodecContext.create("libx264", "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base, context.framerate = Fraction(1, FPS), Fraction(FPS)
        context.gop_size = FPS
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.options = {
            "preset": "veryfast",
            # No look-ahead: a frame leaves the encoder as soon as it has entered it.
            "tune": "zerolatency",
            "profile": "baseline",
            "crf": str(self._crf),
            "forced-idr": "1",
            # Slices of a small picture cost more than the threads save.
            "threads": "1" if height * width <= _SMALL_PIXELS else "4",
        }
        return context
