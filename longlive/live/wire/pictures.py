"""The binary messages: a header of 32 bytes, then a picture."""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from longlive.live.wire.limits import VERSION, ProtocolError


class PictureKind(IntEnum):
    """What a binary message holds."""

    H264 = 0
    """One frame of H.264, Annex B, with its parameter sets where it is a key frame."""
    MP4_HEADER = 1
    """``ftyp`` and ``moov``, before the first fragment."""
    MP4 = 2
    """One fragment, one frame."""
    JPEG = 3


class PictureFlag(IntFlag):
    """What is special about a frame."""

    KEY = 1
    """It can be decoded without those before it."""
    FIRST_OF_PROMPT = 2
    """The first frame under its prompt."""
    JUMP = 4
    """It does not continue the frame before: after going back, or where frames were dropped."""


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """The 32 bytes before a picture, little-endian, in this order.

    Attributes:
        version: ``u8``, of the protocol.
        kind: ``u8``.
        flags: ``u8``, and a zero byte after it.
        serial: ``u32``, ascends by one with every frame of a session.
        branch: ``u32``.
        block: ``u32``.
        frame: ``u32``, counted from the start of the branch's video.
        prompt: ``u32``, id of the request whose prompt it shows.
        time_us: ``u64``, when to show it, from the start of this connection's pictures.
    """

    kind: PictureKind
    flags: PictureFlag
    serial: int
    branch: int
    block: int
    frame: int
    prompt: int
    time_us: int
    version: int = VERSION


_HEADER = struct.Struct("<BBBxIIIIIQ")
HEADER_BYTES = _HEADER.size
# The struct pads nothing: 4 + 5 * 4 + 8 bytes.
assert HEADER_BYTES == 32


def pack_picture(header: PictureHeader, payload: bytes) -> bytes:
    """Put the header before the picture."""
    packed = _HEADER.pack(
        header.version,
        header.kind,
        header.flags,
        header.serial,
        header.branch,
        header.block,
        header.frame,
        header.prompt,
        header.time_us,
    )
    return packed + payload


def unpack_picture(data: bytes) -> tuple[PictureHeader, bytes]:
    """Take a binary message apart.

    Raises:
        ProtocolError: If it is too short or of another version.
    """
    if len(data) < HEADER_BYTES:
        raise ProtocolError(f"a picture of {len(data)} bytes is shorter than its header")
    version, kind, flags, *numbers = _HEADER.unpack_from(data)
    if version != VERSION:
        raise ProtocolError(f"pictures of version {version} came, {VERSION} is understood")
    try:
        header = PictureHeader(PictureKind(kind), PictureFlag(flags), *numbers)
    except ValueError as error:
        raise ProtocolError(f"unknown kind of picture {kind}") from error
    return header, data[HEADER_BYTES:]
