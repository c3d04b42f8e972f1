"""Latents of clips with the frames to make of them: what the tiny decoder learns from."""

# Shape suffixes: B batch, F latent frames, T frames, C channels, H W rows and columns.

from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from longlive.data.shapes_data import Clip, draw_hard_clip, encode_clips
from longlive.data.shapes_world import render_timelines
from longlive.errors import UserError
from longlive.geometry import frames_of
from longlive.shapes import held_out_prompts
from longlive.weights.embedded import load_vae

_LARGEST = 255
_AT_ONCE = 16


class ShapesPairs(pl.LightningDataModule):
    """Encoded clips and the true frames of each, without texture, as the VAE is taught to give.

    Everything is rendered and encoded once at the start and stays on the training device, the
    frames in eight bits. Several processes each hold all of it, and train on a part.

    Args:
        vae: Folder of the embedded model's weights; None takes the ones in the package.
        clips: Clips to train on.
        batch_size: Clips of a training step.
        latent_frames: Length of a clip.
        hard_share: How many of the training clips show small stars.
        latent_noise: Standard deviation of the noise on training latents, which are of unit
            variance: a rollout's are never quite those of a clip.
        validation_clips: Clips of held-out prompts to validate on.
        side: Height and width in pixels.
        seed: First clip number.

    Raises:
        UserError: If the clips do not fill a batch.
    """

    def __init__(  # noqa: PLR0913 - one argument is one key of the configuration.
        self,
        vae: str | None = None,
        clips: int = 4096,
        batch_size: int = 16,
        latent_frames: int = 9,
        hard_share: float = 0.3,
        latent_noise: float = 0.05,
        validation_clips: int = 16,
        side: int = 96,
        seed: int = 2_000_000,
    ) -> None:
        super().__init__()
        if clips < batch_size:
            raise UserError(f"{clips} clips do not fill a batch of {batch_size}: draw more of them")
        self.vae = vae
        self.clips = clips
        self.batch_size = batch_size
        self.latent_frames = latent_frames
        self.hard_share = hard_share
        self.latent_noise = latent_noise
        self.validation_clips = validation_clips
        self.side = side
        self.seed = seed
        self._pairs: dict[bool, tuple[Tensor, Tensor]] = {}

    def setup(self, stage: str) -> None:
        """Render and encode every clip on the training device."""
        if stage != "fit" or self._pairs:
            return
        numbers = range(self.seed, self.seed + self.clips)
        held_out = held_out_prompts()
        chosen = {
            True: [draw_hard_clip(one, self.latent_frames, self.hard_share) for one in numbers],
            False: [
                Clip(one, ((0, held_out[one % len(held_out)]),), 0)
                for one in range(self.validation_clips)
            ],
        }
        device = cast(pl.Trainer, self.trainer).strategy.root_device
        self._pairs = {kind: self._encode(clips, device) for kind, clips in chosen.items() if clips}

    def train_dataloader(self) -> DataLoader[Any]:
        # Batches of indices: the clips are on the device already.
        return DataLoader(range(self.clips), self.batch_size, shuffle=True, drop_last=True)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(range(self.validation_clips), self.batch_size)  # type: ignore[arg-type]

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Look up the clips where they lie: latents, and frames in [0, 1]."""
        is_training = bool(cast(pl.Trainer, self.trainer).training)
        latents_BFCHW, frames_BTCHW = (column[batch] for column in self._pairs[is_training])
        if is_training:
            noise_BFCHW = torch.randn_like(latents_BFCHW)
            latents_BFCHW = latents_BFCHW + self.latent_noise * noise_BFCHW
        return latents_BFCHW, frames_BTCHW.float() / _LARGEST

    def _encode(self, clips: list[Clip], device: torch.device) -> tuple[Tensor, Tensor]:
        latents = encode_clips(
            load_vae(self.vae), clips, self.latent_frames, self.side, device, _AT_ONCE
        )
        frames = [
            render_timelines(
                [clip.timeline for clip in some],
                [clip.seed for clip in some],
                frames_of(self.latent_frames),
                self.side,
                device,
                has_texture=False,
            )
            .mul(_LARGEST)
            .round()
            .byte()
            for some in (clips[at : at + _AT_ONCE] for at in range(0, len(clips), _AT_ONCE))
        ]
        return latents, torch.cat(frames)
