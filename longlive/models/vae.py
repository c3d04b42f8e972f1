"""The causal video VAE: frames to normalized latents and back, at once or as a stream.

Eight pixels a side and four frames make one latent position; the first frame of a video is a latent
frame of its own. Weights have the keys and shapes of ``Wan2.1_VAE.pth``. The module computes in the
type of its weights, whatever it is given.

Shapes: B batch, F latent frames, T frames, C channels, H rows, W columns.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from longlive.errors import UserError
from longlive.geometry import SPATIAL_STRIDE, TEMPORAL_STRIDE, frames_of
from longlive.models.decoding_stream import DecodingStream
from longlive.models.learning_rate import TimedTraining
from longlive.models.reconstruction import (
    FramePair,
    LossWeights,
    around_objects,
    pixel_loss,
    psnr_db,
    standard_normal_kl,
)
from longlive.models.vae_layers import init_for_training
from longlive.models.vae_networks import (
    SIZES,
    DecoderState,
    EncoderState,
    VAEConfig,
    VideoDecoder,
    VideoEncoder,
)

_LOG_VARIANCE_RANGE = (-30.0, 20.0)
_INITIAL_LOG_VARIANCE = -6.0


def to_unit_range(raw_BTCHW: Tensor) -> Tensor:
    """Return decoder output, nominally in [-1, 1], as float32 frames clamped to [0, 1]."""
    return raw_BTCHW.float().clamp(-1, 1).add(1).div(2)


class WanVAE(TimedTraining):
    """Video VAE of Wan2.1 at any width; trains by reconstruction.

    Args:
        size: A name in ``SIZES`` (``"wan"``, ``"tiny"``), or a configuration.
        learning_rate: Of AdamW.
        betas: Of AdamW.
        warmup_steps: Training steps over which the learning rate rises.
        max_steps: Training steps after which it has fallen to zero; ``None`` keeps it up.
        max_seconds: The same in seconds of training.
        weights: Of the terms of the loss.
        trains_encoder: If not, the latents stay what they are, and so does whatever was trained on
            them.

    Raises:
        UserError: If there is no size of that name.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        size: str | VAEConfig = "wan",
        *,
        learning_rate: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        warmup_steps: int = 100,
        max_steps: int | None = None,
        max_seconds: float | None = None,
        weights: LossWeights | None = None,
        trains_encoder: bool = True,
    ) -> None:
        super().__init__(learning_rate, betas, warmup_steps, max_steps, max_seconds)
        self.config = size if isinstance(size, VAEConfig) else _config_of(size)
        self.weights = weights or LossWeights()

        channels = self.config.latent_channels
        self.encoder = VideoEncoder(self.config)
        self.conv1 = nn.Conv3d(2 * channels, 2 * channels, 1)
        self.conv2 = nn.Conv3d(channels, channels, 1)
        self.decoder = VideoDecoder(self.config)
        # The published file has no statistics. Their device is named so that a model built on the
        # meta device still holds numbers.
        for name in ("latent_mean", "latent_std"):
            values = torch.tensor(getattr(self.config, name), dtype=torch.float32, device="cpu")
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)
        self.apply(init_for_training)
        # Mid grey is zero at the input; without a bias its features would be, too.
        nn.init.uniform_(self.encoder.conv1.get_parameter("bias"), -0.1, 0.1)
        # Unit posterior noise would drown the untrained means, and training would stall there.
        nn.init.constant_(self.conv1.get_parameter("bias")[channels:], _INITIAL_LOG_VARIANCE)
        for part in (self.encoder, self.conv1):
            part.requires_grad_(trains_encoder)

    @property
    def weight_dtype(self) -> torch.dtype:
        """Type of the weights, in which everything is computed."""
        return self.conv2.weight.dtype

    def normalize(self, mean_BFCHW: Tensor) -> Tensor:
        """Shift and scale posterior means to zero mean and unit variance for each channel.

        The statistics and their reciprocal are rounded to the type of the input, as in the
        reference: in bfloat16 the effective scale is off by up to 0.6 %, and the transformer was
        trained with that.
        """
        return (mean_BFCHW - self.latent_mean.to(mean_BFCHW)) * self._reciprocal_std(mean_BFCHW)

    def denormalize(self, latents_BFCHW: Tensor) -> Tensor:
        """Invert ``normalize``, with the same rounding."""
        latents = latents_BFCHW
        return latents / self._reciprocal_std(latents) + self.latent_mean.to(latents)

    def _reciprocal_std(self, like: Tensor) -> Tensor:
        return 1.0 / self.latent_std.to(like)

    def posterior(self, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latents of a whole video, not normalized.

        One pass over all frames: the fast form for training, and large for large videos.

        Args:
            frames_BTCHW: In [0, 1]; frames after the last ``1 + 4n`` are dropped.

        Returns:
            Both ``[B, 1 + n, latent_channels, H / 8, W / 8]``.

        Raises:
            UserError: If there is no frame or a side is not a multiple of 8.
        """
        return self._split_posterior(self.encoder(self._pixels_in(frames_BTCHW)))

    def _split_posterior(self, features_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
        features_BFCHW = rearrange(self.conv1(features_BCFHW), "B C F H W -> B F C H W")
        mean_BFCHW, log_variance_BFCHW = features_BFCHW.chunk(2, dim=2)
        return mean_BFCHW, log_variance_BFCHW.clamp(*_LOG_VARIANCE_RANGE)

    def _pixels_in(self, frames_BTCHW: Tensor) -> Tensor:
        if frames_BTCHW.ndim != 5 or frames_BTCHW.shape[1] < 1 or frames_BTCHW.shape[2] != 3:
            raise UserError(
                f"frames must have the shape [B, T, 3, H, W], got {list(frames_BTCHW.shape)}"
            )
        if frames_BTCHW.shape[-2] % SPATIAL_STRIDE or frames_BTCHW.shape[-1] % SPATIAL_STRIDE:
            raise UserError(
                f"the sides of a frame must be multiples of {SPATIAL_STRIDE}, crop "
                f"{list(frames_BTCHW.shape[-2:])}"
            )
        usable = usable_frames(frames_BTCHW.shape[1])
        pixels_BTCHW = (frames_BTCHW[:, :usable] * 2 - 1).to(self.weight_dtype)
        return rearrange(pixels_BTCHW, "B T C H W -> B C T H W")

    def encode(self, frames_BTCHW: Tensor, *, latents_at_once: int | None = 1) -> Tensor:
        """Return the normalized latents of a video: posterior means, nothing drawn.

        Args:
            frames_BTCHW: In [0, 1]; frames after the last ``1 + 4n`` are dropped.
            latents_at_once: Latent frames of one pass after the first, which is alone: bounds
                memory and changes nothing else. ``None`` takes the whole video in one pass.

        Returns:
            ``[B, 1 + n, latent_channels, H / 8, W / 8]``, float32.

        Raises:
            UserError: If there is no frame or a side is not a multiple of 8.
        """
        pixels_BCTHW = self._pixels_in(frames_BTCHW)
        if latents_at_once is None:
            features_BCFHW = self.encoder(pixels_BCTHW)
        else:
            first_BCTHW, rest_BCTHW = pixels_BCTHW[:, :, :1], pixels_BCTHW[:, :, 1:]
            features_BCFHW, state = self.encoder.stream(first_BCTHW, EncoderState())
            parts = [features_BCFHW]
            if rest_BCTHW.shape[2]:
                for chunk_BCTHW in rest_BCTHW.split(TEMPORAL_STRIDE * latents_at_once, dim=2):
                    part_BCFHW, state = self.encoder.stream(chunk_BCTHW, state)
                    parts.append(part_BCFHW)
            features_BCFHW = torch.cat(parts, dim=2)
        mean_BFCHW, _ = self._split_posterior(features_BCFHW)
        return self.normalize(mean_BFCHW).float()

    def latents_in(self, latents_BFCHW: Tensor) -> Tensor:
        """Return what the decoder is given for normalized latents, ``[B, C, F, H, W]``.

        Raises:
            UserError: If there is no latent frame or the channels are wrong.
        """
        channels = self.config.latent_channels
        if (
            latents_BFCHW.ndim != 5
            or not latents_BFCHW.shape[1]
            or latents_BFCHW.shape[2] != channels
        ):
            raise UserError(
                f"latents must have the shape [B, F, {channels}, H, W], got "
                f"{list(latents_BFCHW.shape)}"
            )
        z_BFCHW = self.denormalize(latents_BFCHW.to(self.weight_dtype))
        return self.conv2(rearrange(z_BFCHW, "B F C H W -> B C F H W"))

    def decode_step(
        self, latents_BFCHW: Tensor, state: DecoderState
    ) -> tuple[Tensor, DecoderState]:
        """Decode the next normalized latents of a stream, as a function of its state.

        Args:
            latents_BFCHW: Any number of latent frames, at least one.
            state: What the previous call returned; ``DecoderState()`` at the start.

        Returns:
            ``[B, T, 3, 8H, 8W]`` as the network gives it: nominally in [-1, 1], not clamped, in the
            type of the weights. T is four for each latent frame, one for the first of the stream.
            And the state for the next call.

        Raises:
            UserError: If there is no latent frame or the channels are wrong.
        """
        raw_BCTHW, state = self.decoder.stream(self.latents_in(latents_BFCHW), state)
        return rearrange(raw_BCTHW, "B C T H W -> B T C H W"), state

    def decode_raw(self, latents_BFCHW: Tensor, *, latents_at_once: int | None = 1) -> Tensor:
        """Decode a whole video as ``decode`` does, but return what the network gives.

        Nominally in [-1, 1], not clamped, in the type of the weights.
        """
        if latents_at_once is None:
            raw_BCTHW = self.decoder(self.latents_in(latents_BFCHW))
            return rearrange(raw_BCTHW, "B C T H W -> B T C H W")
        stream = self.open_stream()
        chunks = latents_BFCHW.split(latents_at_once, dim=1)
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
        return to_unit_range(self.decode_raw(latents_BFCHW, latents_at_once=latents_at_once))

    def open_stream(self) -> DecodingStream[DecoderState]:
        """Start decoding a video piece by piece; streams do not disturb each other."""
        return DecodingStream(self.decode_step, DecoderState(), to_unit_range)

    def reconstruction_terms(self, frames: FramePair) -> dict[str, Tensor]:
        """Encode, draw from the posterior, decode, and compare, in one pass over the whole video.

        Args:
            frames: Input and target.

        Returns:
            The scalars ``loss``, ``pixel`` and ``kl``; the gradient is that of ``loss``.
        """
        mean_BFCHW, log_variance_BFCHW = self.posterior(frames.frames)
        noise_BFCHW = torch.randn_like(mean_BFCHW)
        z_BFCHW = mean_BFCHW + (0.5 * log_variance_BFCHW).exp() * noise_BFCHW
        # Normalized latents would only be scaled back.
        raw_BCTHW = self.decoder(self.conv2(rearrange(z_BFCHW, "B F C H W -> B C F H W")))
        target_BTCHW = frames.target[:, : raw_BCTHW.shape[2]] * 2 - 1
        made_BTCHW = rearrange(raw_BCTHW, "B C T H W -> B T C H W")
        pixel = pixel_loss(made_BTCHW, target_BTCHW, self.weights.squared)
        kl = standard_normal_kl(mean_BFCHW, log_variance_BFCHW)
        loss = pixel + self.weights.kl * kl
        if self.weights.objects:
            mask_BT1HW = around_objects(target_BTCHW)
            pair = made_BTCHW * mask_BT1HW, target_BTCHW * mask_BT1HW
            loss = loss + self.weights.objects * pixel_loss(*pair, self.weights.squared)
        return {"loss": loss, "pixel": pixel.detach(), "kl": kl.detach()}

    def training_step(self, batch: FramePair, batch_index: int = 0) -> Tensor:
        terms = self.reconstruction_terms(batch)
        self.log_dict({f"train/{name}": value for name, value in terms.items()}, prog_bar=True)
        return terms["loss"]

    def validation_step(self, batch: FramePair, batch_index: int = 0) -> None:
        """Log ``val/psnr_db``; the latents are not drawn but the means."""
        frames = self.decode(self.encode(batch.frames, latents_at_once=None), latents_at_once=None)
        psnr = psnr_db(frames, batch.target[:, : frames.shape[1]])
        self.log("val/psnr_db", psnr, prog_bar=True)


def usable_frames(frames: int) -> int:
    """Return the largest ``1 + 4n`` frames that ``frames`` hold."""
    return frames_of(1 + (frames - 1) // TEMPORAL_STRIDE)


def _config_of(name: str) -> VAEConfig:
    if name not in SIZES:
        raise UserError(f"no VAE of size {name!r}: choose from {', '.join(SIZES)}")
    return SIZES[name]
