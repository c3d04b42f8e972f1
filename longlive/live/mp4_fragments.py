"""The few MP4 boxes that a browser's ``SourceBuffer`` needs: a header, then a fragment per frame.

A muxer library holds each frame back until it knows the next one; at 16 frames a second that is
62 ms. Here every frame leaves at once, since all last equally long. ISO/IEC 14496-12 and -15.
"""

import struct
from collections.abc import Iterator

_TRACK = 1
_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_SYNC_SAMPLE, _OTHER_SAMPLE = 0x02000000, 0x01010000
"""Depends on no other frame; depends on others and cannot be entered."""
_SPS, _PPS = 7, 8


def nal_units(annex_b: bytes) -> Iterator[bytes]:
    """Cut a stream with start codes into its units, without the codes."""
    starts = []
    position = annex_b.find(b"\0\0\1")
    while position >= 0:
        starts.append(position + 3)
        position = annex_b.find(b"\0\0\1", position + 3)
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        end = len(annex_b) if following is None else following - 3
        # A start code may have four bytes, and a unit never ends in zeros.
        yield annex_b[start:end].rstrip(b"\0")


def parameter_sets(annex_b: bytes) -> tuple[bytes, bytes]:
    """The sequence and the picture parameter set of a key frame.

    Raises:
        ValueError: If it has none.
    """
    units = {unit[0] & 31: unit for unit in nal_units(annex_b) if unit}
    if _SPS not in units or _PPS not in units:
        raise ValueError("this is no key frame with parameter sets")
    return units[_SPS], units[_PPS]


def codec_name(sps: bytes) -> str:
    """Profile and level for a decoder: ``avc1.42C01E`` (RFC 6381)."""
    return f"avc1.{sps[1:4].hex().upper()}"


def header(sps: bytes, pps: bytes, *, width: int, height: int, fps: int) -> bytes:
    """``ftyp`` and ``moov`` of a stream of fragments.

    Args:
        sps: Sequence parameter set.
        pps: Picture parameter set.
        width: Columns of a frame.
        height: Rows of a frame.
        fps: Frames a second, and ticks a second of every time below.
    """
    avcc = _box(
        b"avcC",
        bytes([1, sps[1], sps[2], sps[3], 0xFF, 0xE1]),
        struct.pack(">H", len(sps)) + sps,
        b"\1" + struct.pack(">H", len(pps)) + pps,
    )
    avc1 = _box(
        b"avc1",
        struct.pack(">6xH16x2H2I4xH32xHh", 1, width, height, 0x480000, 0x480000, 1, 24, -1),
        avcc,
    )
    empty = struct.pack(">I", 0)
    table = _box(
        b"stbl",
        _full_box(b"stsd", 0, struct.pack(">I", 1), avc1),
        _full_box(b"stts", 0, empty),
        _full_box(b"stsc", 0, empty),
        _full_box(b"stsz", 0, empty, empty),
        _full_box(b"stco", 0, empty),
    )
    here = _full_box(b"dref", 0, struct.pack(">I", 1), _full_box(b"url ", 1))
    media = _box(b"minf", _full_box(b"vmhd", 1, bytes(8)), _box(b"dinf", here), table)
    track = _box(
        b"trak",
        _full_box(
            b"tkhd",
            3,
            struct.pack(">2I", 0, 0) + struct.pack(">2I", _TRACK, 0) + bytes(4 + 8 + 8),
            _MATRIX,
            struct.pack(">2I", width << 16, height << 16),
        ),
        _box(
            b"mdia",
            _full_box(b"mdhd", 0, struct.pack(">4I2H", 0, 0, fps, 0, 0x55C4, 0)),
            _full_box(b"hdlr", 0, struct.pack(">I4s12x", 0, b"vide"), b"video\0"),
            media,
        ),
    )
    movie = _full_box(
        b"mvhd",
        0,
        struct.pack(">4I", 0, 0, fps, 0) + struct.pack(">IH10x", 0x10000, 0x100),
        _MATRIX,
        bytes(24) + struct.pack(">I", _TRACK + 1),
    )
    extends = _box(b"mvex", _full_box(b"trex", 0, struct.pack(">5I", _TRACK, 1, 1, 0, 0)))
    brands = struct.pack(">4sI4s4s4s", b"iso6", 1, b"iso6", b"avc1", b"mp41")
    return _box(b"ftyp", brands) + _box(b"moov", movie, track, extends)


def fragment(annex_b: bytes, *, number: int, is_key: bool) -> bytes:
    """``moof`` and ``mdat`` of one frame that lasts one tick.

    Args:
        annex_b: The frame.
        number: Its place in the stream, from 0 on.
        is_key: Whether it can be entered.
    """
    units = [unit for unit in nal_units(annex_b) if unit and unit[0] & 31 not in (_SPS, _PPS)]
    data = b"".join(struct.pack(">I", len(unit)) + unit for unit in units)
    flags = _SYNC_SAMPLE if is_key else _OTHER_SAMPLE

    def movie_fragment(offset: int) -> bytes:
        # In trun: data offset, and for the one sample its duration, size and flags.
        run = struct.pack(">Ii3I", 1, offset, 1, len(data), flags)
        return _box(
            b"moof",
            _full_box(b"mfhd", 0, struct.pack(">I", number + 1)),
            _box(
                b"traf",
                _full_box(b"tfhd", 0x020000, struct.pack(">I", _TRACK)),
                _full_box(b"tfdt", 1 << 24, struct.pack(">Q", number)),
                _full_box(b"trun", 0x000701, run),
            ),
        )

    # The offset counts from the start of moof to behind the head of mdat.
    size = len(movie_fragment(0))
    return movie_fragment(size + 8) + _box(b"mdat", data)


def _box(name: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + name + content


def _full_box(name: bytes, version_and_flags: int, *parts: bytes) -> bytes:
    return _box(name, struct.pack(">I", version_and_flags), *parts)
