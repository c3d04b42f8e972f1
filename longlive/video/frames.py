"""The forms in which frames arrive, and the one in which they are encoded."""

# Shape suffixes: B batch, T frames, H rows, W columns, C channels (red, green, blue).

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, uint8

Frames: TypeAlias = Tensor | NDArray[np.uint8]
Pixels: TypeAlias = NDArray[np.uint8]


def to_uint8(frames: Tensor) -> Tensor:
    """Round frames in [0, 1] to 8 bits, on the device they are on.

    The reference truncates; rounding is half a level more accurate and never more than one away.

    Args:
        frames: Floating point, any shape; values outside [0, 1] are clamped.

    Returns:
        The same shape, ``torch.uint8``.
    """
    return frames.float().mul(255).round_().clamp_(0, 255).to(uint8)


def frames_THWC(frames: Frames) -> Pixels:
    """View 8-bit frames on the host with channels last.

    Args:
        frames: ``[T, C, H, W]`` or ``[T, H, W, C]`` with three channels, on any device. A width of
            three is read as channels.

    Raises:
        TypeError: If the values are not 8-bit.
        ValueError: If the shape is neither of the two.
    """
    array: NDArray[Any]
    array = frames.detach().cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
    if array.dtype != np.uint8:
        raise TypeError(f"frames must be uint8, got {array.dtype}; see to_uint8")
    if array.ndim == 4 and array.shape[3] == 3:
        return array
    if array.ndim == 4 and array.shape[1] == 3:
        return array.transpose(0, 2, 3, 1)
    raise ValueError(f"frames must be [T, 3, H, W] or [T, H, W, 3], got {list(array.shape)}")


def copies(frames: Frames, length: int) -> Iterator[Pixels]:
    """Cut frames into contiguous copies of at most ``length`` frames, ``[T, H, W, C]`` each.

    Copies, because the caller may reuse its buffer while an encoder still reads.
    """
    x_THWC = frames_THWC(frames)
    for start in range(0, len(x_THWC), length):
        yield np.array(x_THWC[start : start + length], order="C", copy=True)


def pad_to_even(x_THWC: Pixels) -> Pixels:
    """Repeat the last row and column where a side is odd: H.264 halves the color planes."""
    _, height, width, _ = x_THWC.shape
    if height % 2 == 0 and width % 2 == 0:
        return x_THWC
    return np.pad(x_THWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def evenly(length: int, count: int | None) -> list[int]:
    """At most ``count`` indices below ``length``, evenly spaced from the first to the last."""
    if count is None or length <= count:
        return list(range(length))
    return [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]
