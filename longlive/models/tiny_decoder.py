"""A decoder some twenty times cheaper than the VAE's, distilled from it, with softer detail.

It reads the same normalized latents and streams the same way, so either can decode a rollout. The
layout is that of TAEHV (github.com/madebyollin/taehv), whose ``taew2_1.pth`` loads strictly after
``published_weights``: 2-D convolutions on single frames, and in place of temporal ones, layers that
also see their own input one frame earlier.

The published network makes four frames of every latent frame; the first three of a video have no
counterpart in the VAE and are dropped.

Shapes: B batch, F latent frames, T frames, C channels, H rows, W columns; N = T * B with the time
outermost, so that the frame before is ``B`` entries earlier whatever the layout of the rest.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from longlive.errors import UserError
from longlive.geometry import TEMPORAL_STRIDE
from longlive.models.decoding_stream import DecodingStream
from longlive.models.learning_rate import TimedTraining
from longlive.models.reconstruction import around_objects, pixel_loss, psnr_db
from longlive.models.vae_layers import Tape

# Frames made of one frame at each of the three levels; their product is the temporal stride.
_GROWTH = (1, 2, 2)
_SOFT_LIMIT = 3.0


@dataclass(frozen=True)
class TinyDecoderConfig:
    """Size of the tiny decoder. The defaults are those of ``taew2_1.pth``.

    Attributes:
        widths: Channels at each of the four resolutions, coarsest first.
        latent_channels: Channels of a latent frame.
        blocks: Memory blocks at each of the three coarser resolutions.
    """

    widths: tuple[int, ...] = (256, 128, 64, 64)
    latent_channels: int = 16
    blocks: int = 3

    def __post_init__(self) -> None:
        if len(self.widths) != len(_GROWTH) + 1:
            raise UserError(f"widths needs {len(_GROWTH) + 1} entries, got {self.widths}")


SIZES = {
    "wan": TinyDecoderConfig(),
    "tiny": TinyDecoderConfig(widths=(64, 32, 16, 16)),
    # Of the embedded model.
    "shapes": TinyDecoderConfig(widths=(64, 48, 32, 16)),
}


class TinyDecoderState(NamedTuple):
    """What the tiny decoder remembers of a stream: the last input frame of each memory block.

    Attributes:
        slots: In execution order, each ``[B, C, H, W]``; empty before the first latent frame.
    """

    slots: tuple[Tensor, ...] = ()


class SoftLimit(nn.Module):
    """Keep latents within (-3, 3), smoothly."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / _SOFT_LIMIT) * _SOFT_LIMIT


class MemoryBlock(nn.Module):
    """Residual block that sees its own frame and the one before it, zeros before the first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x_NCHW: Tensor, batch: int, tape: Tape) -> Tensor:
        before_BCHW = tape.read()
        if before_BCHW is None:
            before_BCHW = torch.zeros_like(x_NCHW[:batch])
        tape.write(x_NCHW[-batch:])
        before_NCHW = torch.cat([before_BCHW, x_NCHW[:-batch]])
        return F.relu(self.conv(torch.cat([x_NCHW, before_NCHW], dim=1)) + x_NCHW)


class Grow(nn.Module):
    """Make ``factor`` frames of every frame and double rows and columns.

    The published network doubles the sides first. The convolution looks at single positions, so
    the order is free, and this one computes a quarter as much.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(channels, factor * channels, 1, bias=False)

    def forward(self, x_NCHW: Tensor, batch: int) -> Tensor:
        # By way of channels last: einops would lay the result out with the channels first.
        grown_NHWC = rearrange(
            self.conv(x_NCHW), "(T B) (G C) H W -> (T G B) H W C", B=batch, G=self.factor
        )
        return F.interpolate(rearrange(grown_NHWC, "N H W C -> N C H W"), scale_factor=2.0)


class TinyDecoder(TimedTraining):
    """Distilled decoder with the interface of ``WanVAE``'s; trains on pairs of latents and frames.

    Args:
        size: A name in ``SIZES`` (``"wan"``, ``"tiny"``, ``"shapes"``), or a configuration.
        learning_rate: Of AdamW.
        betas: Of AdamW.
        warmup_steps: Training steps over which the learning rate rises.
        max_steps: Training steps after which it has fallen to zero; ``None`` keeps it up.
        max_seconds: The same in seconds of training.
        mse_weight: Weight of the squared error beside the absolute one.
        objects_weight: Of the same errors once more, around objects; see
            :class:`longlive.models.reconstruction.LossWeights`.

    Raises:
        UserError: If there is no size of that name.
    """

    def __init__(
        self,
        size: str | TinyDecoderConfig = "wan",
        *,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        warmup_steps: int = 100,
        max_steps: int | None = None,
        max_seconds: float | None = None,
        mse_weight: float = 1.0,
        objects_weight: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, betas, warmup_steps, max_steps, max_seconds)
        self.config = size if isinstance(size, TinyDecoderConfig) else _config_of(size)
        self.mse_weight = mse_weight
        self.objects_weight = objects_weight

        widths = self.config.widths
        layers: list[nn.Module] = [
            SoftLimit(),
            nn.Conv2d(self.config.latent_channels, widths[0], 3, padding=1),
            nn.ReLU(),
        ]
        for level, factor in enumerate(_GROWTH):
            width, next_width = widths[level], widths[level + 1]
            layers += [MemoryBlock(width) for _ in range(self.config.blocks)]
            layers += [
                nn.Identity(),  # the published keys count the doubling of the sides here
                Grow(width, factor),
                nn.Conv2d(width, next_width, 3, padding=1, bias=False),
            ]
        layers += [nn.ReLU(), nn.Conv2d(widths[-1], 3, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)
        self.apply(_init_for_training)
        # Untrained, it paints gray.
        nn.init.constant_(self.decoder[-1].get_parameter("bias"), 0.5)

    @property
    def weight_dtype(self) -> torch.dtype:
        """Type of the weights, in which everything is computed."""
        return self.decoder[-1].get_parameter("weight").dtype

    def decode_step(
        self, latents_BFCHW: Tensor, state: TinyDecoderState
    ) -> tuple[Tensor, TinyDecoderState]:
        """Decode the next normalized latents of a stream, as a function of its state.

        Args:
            latents_BFCHW: Any number of latent frames, at least one.
            state: What the previous call returned; ``TinyDecoderState()`` at the start.

        Returns:
            ``[B, T, 3, 8H, 8W]`` as the network gives it: nominally in [0, 1], not clamped, in the
            type of the weights. T is four for each latent frame, one for the first of the stream.
            And the state for the next call.

        Raises:
            UserError: If there is no latent frame or the channels are wrong.
        """
        channels = self.config.latent_channels
        shape = latents_BFCHW.shape
        if len(shape) != 5 or not shape[1] or shape[2] != channels:
            raise UserError(
                f"latents must have the shape [B, F, {channels}, H, W], got {list(shape)}"
            )
        batch, tape = shape[0], Tape(state.slots)
        x_NCHW = rearrange(latents_BFCHW.to(self.weight_dtype), "B F C H W -> (F B) C H W")
        for layer in self.decoder:
            if isinstance(layer, MemoryBlock):
                x_NCHW = layer(x_NCHW, batch, tape)
            elif isinstance(layer, Grow):
                x_NCHW = layer(x_NCHW, batch)
            else:
                x_NCHW = layer(x_NCHW)
        surplus = 0 if state.slots else TEMPORAL_STRIDE - 1
        raw_BTCHW = rearrange(x_NCHW[surplus * batch :], "(T B) C H W -> B T C H W", B=batch)
        return raw_BTCHW, TinyDecoderState(tuple(tape.collected))

    def decode_raw(self, latents_BFCHW: Tensor, *, latents_at_once: int | None = 1) -> Tensor:
        """Decode a whole video as ``decode`` does, but return what the network gives.

        Nominally in [0, 1], not clamped, in the type of the weights.
        """
        stream = self.open_stream()
        chunks = latents_BFCHW.split(latents_at_once or max(1, latents_BFCHW.shape[1]), dim=1)
        return torch.cat([stream.decode_raw(chunk_BFCHW) for chunk_BFCHW in chunks], dim=1)

    def decode(self, latents_BFCHW: Tensor, *, latents_at_once: int | None = 1) -> Tensor:
        """Return the frames of a whole video.

        Args:
            latents_BFCHW: Normalized, from the start of the video.
            latents_at_once: Latent frames of one pass: bounds memory and changes nothing else.
                ``None`` takes the whole video in one pass.

        Returns:
            ``[B, 1 + 4 (F - 1), 3, 8H, 8W]`` in [0, 1], float32.

        Raises:
            UserError: If there is no latent frame or the channels are wrong.
        """
        return _clamp(self.decode_raw(latents_BFCHW, latents_at_once=latents_at_once))

    def open_stream(self) -> DecodingStream[TinyDecoderState]:
        """Start decoding a video piece by piece; streams do not disturb each other."""
        return DecodingStream(self.decode_step, TinyDecoderState(), _clamp)

    def distillation_loss(self, latents_BFCHW: Tensor, frames_BTCHW: Tensor) -> Tensor:
        """Compare with the frames of the same latents, in one pass over the whole video.

        Args:
            latents_BFCHW: Normalized, from the start of a video.
            frames_BTCHW: The ``1 + 4 (F - 1)`` frames to approach, in [0, 1]: the VAE's, or those
                that the VAE encoded.

        Raises:
            UserError: If the latents decode to another number of frames.
        """
        raw_BTCHW = self.decode_raw(latents_BFCHW, latents_at_once=None)
        if raw_BTCHW.shape != frames_BTCHW.shape:
            raise UserError(
                f"latents decode to {list(raw_BTCHW.shape)} but the frames are "
                f"{list(frames_BTCHW.shape)}: pair each clip with its own latents"
            )
        loss = pixel_loss(raw_BTCHW, frames_BTCHW, self.mse_weight)
        if self.objects_weight:
            mask_BT1HW = around_objects(2 * frames_BTCHW - 1)
            pair = raw_BTCHW * mask_BT1HW, frames_BTCHW * mask_BT1HW
            loss = loss + self.objects_weight * pixel_loss(*pair, self.mse_weight)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int = 0) -> Tensor:
        """Train on pairs of latents ``[B, F, C, H, W]`` and frames ``[B, T, 3, 8H, 8W]``."""
        loss = self.distillation_loss(*batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int = 0) -> None:
        """Log ``val/psnr_db`` against the frames of the pairs."""
        latents_BFCHW, frames_BTCHW = batch
        frames = self.decode(latents_BFCHW, latents_at_once=None)
        self.log("val/psnr_db", psnr_db(frames, frames_BTCHW), prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the size beside the weights, for the export."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["sizes"] = {"tiny_decoder": asdict(self.config)}


def published_weights(state_dict: dict[str, Tensor], decoder: TinyDecoder) -> dict[str, Tensor]:
    """Return the part of a published state dict that a decoder loads strictly.

    The keys of ``encoder`` are dropped. A file may hold a growing layer for more frames than the
    decoder makes there; the channels of the last frames are kept.

    Args:
        state_dict: The content of ``taew2_1.pth``.
        decoder: The decoder to load it into; only read.
    """
    shapes = {key: value.shape for key, value in decoder.state_dict().items()}
    kept = {key: value for key, value in state_dict.items() if not key.startswith("encoder.")}
    for index, layer in enumerate(decoder.decoder):
        key = f"decoder.{index}.conv.weight"
        if isinstance(layer, Grow) and key in kept:
            kept[key] = kept[key][-shapes[key][0] :]
    return kept


def _clamp(raw_BTCHW: Tensor) -> Tensor:
    return raw_BTCHW.float().clamp(0, 1)


def _init_for_training(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, MemoryBlock):
        with torch.no_grad():
            module.conv[-1].get_parameter("weight").mul_(0.3)
    elif isinstance(module, Grow):
        # Still pictures pass through time.
        eye = torch.eye(module.conv.in_channels, device=module.conv.weight.device)
        with torch.no_grad():
            module.conv.weight.mul_(0.1)
            module.conv.weight[:, :, 0, 0] += eye.repeat(module.factor, 1)


def _config_of(name: str) -> TinyDecoderConfig:
    if name not in SIZES:
        raise UserError(f"no tiny decoder of size {name!r}: choose from {', '.join(SIZES)}")
    return SIZES[name]
