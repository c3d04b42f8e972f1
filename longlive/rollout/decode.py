"""The seam between latents and frames."""

# Shape suffixes: B batch, F latent frames, T frames, C channels, H W rows and columns.

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

Show = Callable[[Tensor], None]
"""Takes frames ``[B, T, 3, H, W]`` in [0, 1], in display order."""
FramesOf = Callable[[], Tensor]
"""Gives a block's frames; the stream that is current then may use them."""


class StreamingDecoder(Protocol):
    """Turns each block's latents into frames, keeping its temporal state between blocks."""

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        """Decode the next latent frames of a video.

        Returns:
            Frames ``[B, T, 3, 8 H, 8 W]`` in [0, 1]: four per latent frame, one for the very first.
        """
        ...


@runtime_checkable
class PiecewiseDecoder(Protocol):
    """A decoder that shows a block in pieces, or makes its frames in a stream of its own."""

    def decode_pieces(self, latents_BFCHW: Tensor, show: Show) -> FramesOf:
        """Decode the next latent frames of a video.

        Args:
            latents_BFCHW: As for ``decode``.
            show: Called with each piece as soon as its work is queued, while the stream that makes
                it is the current one.

        Returns:
            All frames of the call.
        """
        ...


@runtime_checkable
class AwaitedDecoder(Protocol):
    """A decoder that can be told that somebody waits."""

    def hurry(self) -> None:
        """Somebody waits for the first frames of the next call."""
        ...


def decode_and_show(decoder: StreamingDecoder, latents_BFCHW: Tensor, show: Show) -> FramesOf:
    """Decode in pieces if the decoder can, else at once."""
    if isinstance(decoder, PiecewiseDecoder):
        return decoder.decode_pieces(latents_BFCHW, show)
    frames_BTCHW = decoder.decode(latents_BFCHW)
    show(frames_BTCHW)
    return lambda: frames_BTCHW
