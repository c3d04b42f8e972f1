"""Frames of one color, in each of the three forms that the page can show."""

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from longlive.live.protocol import PictureKind

WIDTH, HEIGHT, FPS = 64, 48, 16
CODEC = "avc1.42C00B"
COLORS = {
    "red": (220, 30, 30),
    "green": (30, 190, 50),
    "blue": (40, 60, 230),
    "yellow": (235, 215, 40),
}

Packets = list[tuple[PictureKind, bool, bytes]]
"""Kind, whether it is a key frame, payload."""


def draw(prompt: str, frame: int) -> np.ndarray:
    """The prompt's color, with a bar whose place tells the frame."""
    color = next((rgb for word, rgb in COLORS.items() if word in prompt), (128, 128, 128))
    x_HWC = np.full((HEIGHT, WIDTH, 3), color, np.uint8)
    left = 2 * (frame % (WIDTH // 2))
    x_HWC[-8:, left : left + 2] = 255
    return x_HWC


def jpeg(x_HWC: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(x_HWC).save(file, "jpeg", quality=85)
    return file.getvalue()


class _Pipe:
    """What a muxer may only write to."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        self._bytes += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken


class JpegEncoder:
    def encode(self, x_HWC: np.ndarray, is_key: bool) -> Packets:
        return [(PictureKind.JPEG, True, jpeg(x_HWC))]


class H264Encoder:
    def __init__(self) -> None:
        self._context = av.CodecContext.create("libx264", "w")
        _set_up(self._context)
        self._count = 0

    def encode(self, x_HWC: np.ndarray, is_key: bool) -> Packets:
        packets = self._context.encode(_frame(x_HWC, self._count, is_key))
        self._count += 1
        return [(PictureKind.H264, packet.is_keyframe, bytes(packet)) for packet in packets]


class Mp4Encoder:
    """One frame behind: the muxer writes a fragment when the next one begins."""

    def __init__(self) -> None:
        self._pipe = _Pipe()
        flags = "frag_every_frame+empty_moov+default_base_moof"
        self._container = av.open(self._pipe, "w", format="mp4", options={"movflags": flags})
        self._stream = self._container.add_stream("libx264", rate=FPS)
        _set_up(self._stream.codec_context)
        self._keys: list[bool] = []
        self._count = 0

    def encode(self, x_HWC: np.ndarray, is_key: bool) -> Packets:
        packets: Packets = []
        if self._count == 0:
            self._container.start_encoding()
            packets.append((PictureKind.MP4_HEADER, False, self._pipe.take()))
        for packet in self._stream.encode(_frame(x_HWC, self._count, is_key)):
            self._keys.append(packet.is_keyframe)
            self._container.mux(packet)
        self._count += 1
        if fragment := self._pipe.take():
            packets.append((PictureKind.MP4, self._keys.pop(0), fragment))
        return packets


ENCODERS = {"webcodecs": H264Encoder, "mse": Mp4Encoder, "jpeg": JpegEncoder}


def _set_up(context: av.CodecContext) -> None:
    context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    context.time_base, context.framerate = Fraction(1, FPS), Fraction(FPS)
    context.gop_size = FPS
    context.options = {"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline"}


def _frame(x_HWC: np.ndarray, count: int, is_key: bool) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(x_HWC, format="rgb24").reformat(format="yuv420p")
    frame.pts, frame.time_base = count, Fraction(1, FPS)
    if is_key:
        frame.pict_type = av.video.frame.PictureType.I
    return frame
