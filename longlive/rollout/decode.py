"""The seam between latents and frames."""

# Shape suffixes: B batch, F latent frames, T frames, C channels, H W rows and columns.

from typing import Protocol

from torch import Tensor


class StreamingDecoder(Protocol):
    """Turns each block's latents into frames, keeping its temporal state between blocks."""

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        """Decode the next latent frames of a video.

        Returns:
            Frames ``[B, T, 3, 8 H, 8 W]`` in [0, 1]: four per latent frame, one for the very first.
        """
        ...
