"""Pixels, latent frames, tokens and blocks: the only conversions between them.

The VAE makes one latent frame of the first frame and one of every four after it, and shrinks both
sides by eight. The transformer turns each patch of a latent frame into one token.
"""

import math
from dataclasses import dataclass

from longlive.errors import UserError

FPS = 16
SPATIAL_STRIDE = 8
TEMPORAL_STRIDE = 4


def frames_of(latent_frames: int) -> int:
    """Frames that ``latent_frames`` decode to, from the start of a video."""
    return 0 if latent_frames == 0 else 1 + TEMPORAL_STRIDE * (latent_frames - 1)


def latent_frames_in(frames: int) -> int:
    """Latent frames that the first ``frames`` of a video show whole; undoes :func:`frames_of`."""
    return 0 if frames == 0 else 1 + (frames - 1) // TEMPORAL_STRIDE


def latent_frames_for_seconds(seconds: float, block_latent_frames: int) -> int:
    """Return the fewest latent frames, in whole blocks, that play for at least ``seconds``.

    Raises:
        UserError: If ``seconds`` is not positive.
    """
    if not seconds > 0:
        raise UserError(f"seconds must be positive, got {seconds}")
    # Rounded, so that 5.000000001 seconds are still 80 frames.
    frames = max(1, math.ceil(round(seconds * FPS, 6)))
    latent_frames = 1 + -(-(frames - 1) // TEMPORAL_STRIDE)
    return -(-latent_frames // block_latent_frames) * block_latent_frames


@dataclass(frozen=True, slots=True)
class Geometry:
    """The size of a video and how it is cut into latents, tokens and blocks.

    Attributes:
        height_px: Rows of a frame; a multiple of 8 times the patch.
        width_px: Columns of a frame; likewise.
        latent_channels: Channels of a latent frame.
        patch: Rows and columns of latent values in one token.
        block_latent_frames: Latent frames that are denoised together.
    """

    height_px: int
    width_px: int
    latent_channels: int = 16
    patch: int = 2
    block_latent_frames: int = 3

    def __post_init__(self) -> None:
        unit = SPATIAL_STRIDE * self.patch
        if self.height_px % unit or self.width_px % unit or min(self.height_px, self.width_px) < 1:
            raise UserError(
                f"a video of {self.width_px}x{self.height_px} pixels does not fit: both sides must "
                f"be positive multiples of {unit}"
            )
        if self.block_latent_frames < 1:
            raise UserError(
                f"a block needs at least one latent frame, got {self.block_latent_frames}"
            )

    @property
    def latent_height(self) -> int:
        """Rows of a latent frame."""
        return self.height_px // SPATIAL_STRIDE

    @property
    def latent_width(self) -> int:
        """Columns of a latent frame."""
        return self.width_px // SPATIAL_STRIDE

    @property
    def grid_height(self) -> int:
        """Rows of tokens in a latent frame."""
        return self.latent_height // self.patch

    @property
    def grid_width(self) -> int:
        """Columns of tokens in a latent frame."""
        return self.latent_width // self.patch

    @property
    def tokens_per_latent_frame(self) -> int:
        """Tokens of a latent frame, 1560 at 480x832."""
        return self.grid_height * self.grid_width

    def block_shape(self, batch: int) -> tuple[int, int, int, int, int]:
        """Shape of one block's latents, ``[B, F, C, H, W]``."""
        return (
            batch,
            self.block_latent_frames,
            self.latent_channels,
            self.latent_height,
            self.latent_width,
        )
