"""Pictures: each transport shows the frames that went in, one out for each in."""

import io

import av
import numpy as np
import pytest

from longlive.live.encoders import Picture, PictureEncoder
from longlive.live.mp4_fragments import codec_name, nal_units, parameter_sets
from longlive.live.protocol import PictureFlag, PictureKind
from longlive.live.thumbnails import encode_jpeg, shrink, thumbnail

TRANSPORTS = ("webcodecs", "mse", "jpeg")
COLORS = [(200, 30, 40), (20, 180, 60), (30, 60, 210), (240, 240, 240), (10, 10, 10)]


def frame(index: int, height: int = 64, width: int = 96) -> np.ndarray:
    return np.full((height, width, 3), COLORS[index % len(COLORS)], np.uint8)


def encode(
    transport: str, count: int = 10, keys=(), still: bool = False, **size: int
) -> tuple[list, PictureEncoder]:
    encoder = PictureEncoder(transport)
    # The encoder makes a key frame of its own where all pixels change.
    frames = [frame(0 if still else i, **size) for i in range(count)]
    pictures = [encoder.encode(x_HWC, is_key=i in keys) for i, x_HWC in enumerate(frames)]
    return pictures, encoder


def shown(transport: str, pictures: list[Picture]) -> list[np.ndarray]:
    data = [picture.payload for picture in pictures]
    if transport == "jpeg":
        return [
            next(av.open(io.BytesIO(one), format="mjpeg").decode(video=0)).to_ndarray(
                format="rgb24"
            )
            for one in data
        ]
    container = av.open(io.BytesIO(b"".join(data)), format="h264" if transport[0] == "w" else "mp4")
    return [decoded.to_ndarray(format="rgb24") for decoded in container.decode(video=0)]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_frame_comes_out_at_once_and_looks_as_it_went_in(transport):
    pictures, encoder = encode(transport)
    payload = [one for some in pictures for one in some]
    frames = [one for one in payload if one.kind is not PictureKind.MP4_HEADER]
    assert [len(some) for some in pictures[1:]] == [1] * 9
    assert [one.time_us for one in frames] == [62_500 * i for i in range(10)]
    decoded = shown(transport, payload)
    assert len(decoded) == 10
    for index, picture in enumerate(decoded):
        assert np.abs(picture.astype(int) - frame(index)).max() <= 12, index
    assert (encoder.video.width, encoder.video.height, encoder.video.fps) == (96, 64, 16)


@pytest.mark.parametrize("transport", ["webcodecs", "mse"])
def test_a_key_frame_comes_first_and_where_it_is_asked_for(transport):
    pictures, _ = encode(transport, count=12, keys=(5, 6), still=True)
    keys = [i for i, some in enumerate(pictures) if some[-1].flags & PictureFlag.KEY]
    assert keys == [0, 5, 6]
    assert pictures[3][-1].flags == PictureFlag(0)


def test_a_stream_can_be_entered_at_a_key_frame():
    pictures, _ = encode("webcodecs", keys=(5,))
    later = [one for some in pictures[5:] for one in some]
    assert len(shown("webcodecs", later)) == 5


def test_the_header_of_an_mp4_comes_once_and_fragments_carry_their_time():
    pictures, encoder = encode("mse", count=4, still=True)
    assert [one.kind for one in pictures[0]] == [PictureKind.MP4_HEADER, PictureKind.MP4]
    assert encoder.video.mime == f'video/mp4; codecs="{encoder.video.codec}"'
    data = b"".join(one.payload for some in pictures for one in some)
    with av.open(io.BytesIO(data), format="mp4") as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
    assert stream.codec_context.extradata
    assert [float(packet.pts * packet.time_base) for packet in packets] == [
        0,
        1 / 16,
        2 / 16,
        3 / 16,
    ]
    assert [packet.is_keyframe for packet in packets] == [True, False, False, False]


@pytest.mark.parametrize("transport", ["webcodecs", "mse"])
def test_the_codec_is_named_after_the_stream_itself(transport):
    pictures, encoder = encode("webcodecs", count=1)
    sps, _ = parameter_sets(pictures[0][0].payload)
    assert encoder.video.codec == codec_name(sps)
    assert encoder.video.codec.startswith("avc1.42C0")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_odd_side_grows_by_one(transport):
    pictures, encoder = encode(transport, count=2, height=33, width=47)
    assert (encoder.video.width, encoder.video.height) == (48, 34)
    decoded = shown(transport, [one for some in pictures for one in some])
    assert decoded[0].shape == (34, 48, 3)


def test_units_are_cut_at_start_codes_of_three_and_four_bytes():
    stream = b"\0\0\0\1\x67a\0\0\1\x68b\0\0\0\1\x65c\0\0\3"
    assert list(nal_units(stream)) == [b"\x67a", b"\x68b", b"\x65c\0\0\3"]
    assert parameter_sets(stream) == (b"\x67a", b"\x68b")
    with pytest.raises(ValueError, match="no key frame"):
        parameter_sets(b"\0\0\1\x41x")


def test_thumbnails_are_small_jpeg_pictures_of_the_same_shape():
    wide = np.zeros((48, 320, 3), np.uint8)
    wide[:, :160] = (200, 30, 40)
    data = thumbnail(wide, 128)
    picture = shown("jpeg", [Picture(PictureKind.JPEG, PictureFlag.KEY, 0, data)])[0]
    assert picture.shape == (19, 128, 3)
    assert np.abs(picture[5, 5].astype(int) - (200, 30, 40)).max() < 12
    assert len(data) < 4000
    assert thumbnail(wide[:, :64], 128)
    assert shrink(wide, 128).shape == (19, 128, 3)
    assert len(encode_jpeg(wide, 31)) <= len(encode_jpeg(wide, 2))
