"""How much of a channels-last tensor one program of a kernel takes.

A program takes whole positions with all their channels, so a norm needs no other program.
"""

from typing import NamedTuple


class Tile(NamedTuple):
    """The part of one program.

    Attributes:
        positions: How many, a power of two.
        warps: Of 32 threads, that share them.
    """

    positions: int
    warps: int


_ELEMENTS = 4096
_WARPS = 4

TILES: dict[int, Tile] = {128: Tile(32, 4), 256: Tile(16, 4), 512: Tile(8, 4)}
"""By the number of channels, rounded up to a power of two; may be changed before the first call."""


def padded_channels(channels: int) -> int:
    """The next power of two."""
    return 1 << (channels - 1).bit_length()


def tile_of(channels: int) -> Tile:
    """The tile for tensors of so many channels."""
    padded = padded_channels(channels)
    return TILES.get(padded) or Tile(max(1, min(256, _ELEMENTS // padded)), _WARPS)
