"""Encoder and decoder of the causal video VAE, with the published keys, at any width.

Shapes: B batch, C channels, T frames, F latent frames, H rows, W columns.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from longlive.errors import UserError
from longlive.models.vae_layers import (
    CausalConv3d,
    ChannelNorm,
    Down2,
    Down3,
    FrameAttention,
    ResidualBlock,
    Tape,
    Up2,
    Up3,
    run_layers,
)

# Fixed by the strides in ``longlive.geometry``: three halvings of the sides, two of the time.
_DOWN = (Down2, Down3, Down3)
_UP = (Up3, Up3, Up2)

_WAN_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_WAN_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


@dataclass(frozen=True)
class VAEConfig:
    """Size of the VAE and the statistics of its latents. The defaults are those of Wan2.1.

    Attributes:
        base_width: Channels at full resolution.
        latent_channels: Channels of a latent frame.
        multipliers: Channels at each of the four resolutions, in units of ``base_width``.
        encoder_res_blocks: Residual blocks at each resolution of the encoder.
        decoder_res_blocks: The same of the decoder.
        latent_mean: Mean of every latent channel over natural videos; subtracted by encoding.
        latent_std: Standard deviation of the same; divided by in encoding.
    """

    base_width: int = 96
    latent_channels: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    encoder_res_blocks: int = 2
    decoder_res_blocks: int = 3
    latent_mean: tuple[float, ...] = _WAN_MEAN
    latent_std: tuple[float, ...] = _WAN_STD

    def __post_init__(self) -> None:
        if len(self.multipliers) != len(_DOWN) + 1:
            raise UserError(f"multipliers needs {len(_DOWN) + 1} entries, got {self.multipliers}")
        if {len(self.latent_mean), len(self.latent_std)} != {self.latent_channels}:
            raise UserError(
                f"latent_mean and latent_std need one entry for each of the {self.latent_channels} "
                "latent channels"
            )
        if any(width % 2 for width in self.widths[1:]):
            raise UserError(f"widths after the first must be even, got {self.widths}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution, finest first."""
        return tuple(self.base_width * multiplier for multiplier in self.multipliers)


SIZES = {
    "wan": VAEConfig(),
    "tiny": VAEConfig(base_width=16, latent_mean=(0.0,) * 16, latent_std=(1.0,) * 16),
}


class EncoderState(NamedTuple):
    """What the encoder remembers of a stream: the last input frames of each temporal convolution.

    Attributes:
        slots: In execution order, each ``[B, C, 2, H, W]``, or ``[B, C, 1, H, W]`` of a ``Down3``;
            empty before the first frame. Shapes are the same after every call.
    """

    slots: tuple[Tensor, ...] = ()


class DecoderState(NamedTuple):
    """What the decoder remembers of a stream: the last input frames of each temporal convolution.

    Attributes:
        slots: In execution order, each ``[B, C, 2, H, W]``; empty before the first latent frame.
            Shapes are the same after every call, so a captured graph can own them.
    """

    slots: tuple[Tensor, ...] = ()


def _middle(channels: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(channels, channels),
        FrameAttention(channels),
        ResidualBlock(channels, channels),
    )


def _head(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        ChannelNorm(channels_in), nn.SiLU(), CausalConv3d(channels_in, channels_out)
    )


class VideoEncoder(nn.Module):
    """Frames ``[B, 3, 1 + 4n, 8H, 8W]`` to features ``[B, 2 * latent_channels, 1 + n, H, W]``."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv1 = CausalConv3d(3, widths[0])
        layers: list[nn.Module] = []
        for level, (before, width) in enumerate(pairwise((widths[0], *widths))):
            layers.append(ResidualBlock(before, width))
            layers += [ResidualBlock(width, width) for _ in range(config.encoder_res_blocks - 1)]
            if level < len(_DOWN):
                layers.append(_DOWN[level](width))
        self.downsamples = nn.Sequential(*layers)
        self.middle = _middle(widths[-1])
        self.head = _head(widths[-1], 2 * config.latent_channels)

    def forward(self, x_BCTHW: Tensor, tape: Tape | None = None) -> Tensor:
        layers = (self.conv1, *self.downsamples, *self.middle, *self.head)
        return run_layers(layers, x_BCTHW, tape)

    def stream(self, x_BCTHW: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """Encode the next frames of a stream.

        Args:
            x_BCTHW: ``1 + 4n`` frames at the start of the stream, ``4n`` later.
            state: What the previous call returned; ``EncoderState()`` at the start.

        Returns:
            The features of these frames, and the state for the next call.
        """
        tape = Tape(state.slots)
        return self(x_BCTHW, tape), EncoderState(tuple(tape.collected))


class VideoDecoder(nn.Module):
    """Latents ``[B, latent_channels, 1 + n, H, W]`` to frames ``[B, 3, 1 + 4n, 8H, 8W]``."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.conv1 = CausalConv3d(config.latent_channels, widths[0])
        self.middle = _middle(widths[0])
        layers: list[nn.Module] = []
        before = widths[0]
        for level, width in enumerate(widths):
            layers.append(ResidualBlock(before, width))
            layers += [ResidualBlock(width, width) for _ in range(config.decoder_res_blocks - 1)]
            if level < len(_UP):
                layers.append(_UP[level](width))
                before = width // 2
        self.upsamples = nn.Sequential(*layers)
        self.head = _head(widths[-1], 3)

    def forward(self, x_BCFHW: Tensor, tape: Tape | None = None) -> Tensor:
        layers = (self.conv1, *self.middle, *self.upsamples, *self.head)
        return run_layers(layers, x_BCFHW, tape)

    def stream(self, x_BCFHW: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Decode the next latent frames of a stream.

        Args:
            x_BCFHW: Any number of latent frames, at least one.
            state: What the previous call returned; ``DecoderState()`` at the start.

        Returns:
            Four frames for each latent frame, one for the first of the stream; and the state for
            the next call.
        """
        tape = Tape(state.slots)
        return self(x_BCFHW, tape), DecoderState(tuple(tape.collected))
