"""A video on its way through a decoder, piece by piece.

Shapes: B batch, F latent frames, T frames, C channels, H rows, W columns.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

State = TypeVar("State")


class DecodingStream(Generic[State]):
    """Calls a decoder on the pieces of one video in order; the state is its only content.

    Args:
        step: The decoder as a function of the next latents and the state.
        state: The state before the first latent frame.
        to_frames: Turns what the decoder returns into float32 frames in [0, 1].

    Attributes:
        step: Likewise.
        to_frames: Likewise.
        state: What the decoder remembers; may be read, replaced and put back.
    """

    def __init__(
        self,
        step: Callable[[Tensor, State], tuple[Tensor, State]],
        state: State,
        to_frames: Callable[[Tensor], Tensor],
    ) -> None:
        self.step = step
        self.to_frames = to_frames
        self.state = state

    def snapshot(self) -> State:
        """What the decoder remembers; later pieces leave it as it is."""
        return self.state

    def restore(self, state: State) -> None:
        """Go on from where :meth:`snapshot` was called."""
        self.state = state

    def decode_raw(self, latents_BFCHW: Tensor) -> Tensor:
        """Decode the next latents and return ``[B, T, 3, 8H, 8W]`` as the decoder gives it."""
        raw_BTCHW, self.state = self.step(latents_BFCHW, self.state)
        return raw_BTCHW

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        """Return the frames of the next latents.

        Args:
            latents_BFCHW: Any number of latent frames, at least one.

        Returns:
            ``[B, T, 3, 8H, 8W]`` in [0, 1], float32; T is four for each latent frame, one for the
            first of the stream.
        """
        return self.to_frames(self.decode_raw(latents_BFCHW))
