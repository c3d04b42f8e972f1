"""Training data of the embedded model: clips of the shapes world, drawn on the training device.

Nothing is stored on disk. A clip is a number: it seeds the choice of prompts and the clip itself,
so a run is repeated by its numbers. Held-out prompts are never drawn, not even as the second prompt
of a clip with a switch.
"""

# Shape suffixes: B batch, T frames, F latent frames, C channels, H W rows and columns.

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from longlive.data.shapes_motion import Timeline
from longlive.data.shapes_world import render_timelines
from longlive.geometry import frames_of
from longlive.models.reconstruction import FramePair
from longlive.models.text_encoder import TEXT_ENCODER_SIZES
from longlive.models.tokenizer import PromptTokenizer, build_word_tokenizer
from longlive.models.vae import WanVAE
from longlive.models.vae_layers import use_channels_last
from longlive.shapes import SLOTS, ShapePrompt, held_out_prompts, training_prompts
from longlive.weights.embedded import load_vae


def shapes_tokenizer() -> PromptTokenizer:
    """The tokenizer of the embedded model: the words of the shapes world, and no other."""
    slots = [word for values in SLOTS.values() for value in values for word in value.split()]
    return PromptTokenizer(
        build_word_tokenizer(["a", *slots, "over"]), TEXT_ENCODER_SIZES["tiny"].text_len
    )


@dataclass(frozen=True, slots=True)
class Clip:
    """What one training clip shows.

    Attributes:
        seed: Seeds positions and background.
        timeline: ``(first frame, prompt)``, the first at frame 0.
        start: First latent frame under the last prompt.
    """

    seed: int
    timeline: tuple[tuple[int, ShapePrompt], ...]
    start: int

    @property
    def prompt(self) -> ShapePrompt:
        """The last prompt, the one the clip is labeled with."""
        return self.timeline[-1][1]


def draw_clip(number: int, latent_frames: int, switch_share: float, block: int = 3) -> Clip:
    """Choose what clip ``number`` shows.

    Args:
        number: Seeds everything.
        latent_frames: Length of the clip.
        switch_share: How often the prompt changes on the way, at a block start.
        block: Latent frames denoised together.
    """
    draw = random.Random(number)
    prompts = training_prompts()
    first = draw.choice(prompts)
    if draw.random() >= switch_share or latent_frames < 2 * block:
        return Clip(number, ((0, first),), 0)
    start = block * draw.randrange(1, latent_frames // block)
    return Clip(number, ((0, first), (frames_of(start), draw.choice(prompts))), start)


SHORT_CLIPS = 10_000_000
"""Short clips are numbered from here, so that none repeats a long one."""
CLIPS_OF_A_PROCESS = 1 << 30
"""Each process counts from a multiple of this, so that none trains on the clips of another."""


class _Numbers(IterableDataset[int]):
    """Clip numbers without an end."""

    def __init__(self, first: int, stop: int | None = None) -> None:
        self.first, self.stop = first, stop

    def __iter__(self) -> Iterator[int]:
        number = self.first
        while self.stop is None or number < self.stop:
            yield number
            number += 1


@cache
def _small_stars() -> list[ShapePrompt]:
    return [p for p in training_prompts() if (p.size, p.shape) == ("small", "star")]


def draw_hard_clip(number: int, latent_frames: int, hard_share: float) -> Clip:
    """As :func:`draw_clip`, a share of the clips with small stars, a tenth of the others switching.

    Small stars are the hardest to give back: five points on a few pixels.
    """
    # Not the number alone, or the coin would decide on the prompts of the other clips, too.
    draw = random.Random(f"hard {number}")
    if draw.random() >= hard_share:
        return draw_clip(number, latent_frames, 0.1)
    return Clip(number, ((0, draw.choice(_small_stars())),), 0)


class ShapesClips(pl.LightningDataModule):
    """Rendered clips for the VAE: batches of frames ``[B, T, 3, side, side]`` in [0, 1].

    The target has no noise and no stars: a latent that need not hold them is easier to generate,
    and the world's rules ask for neither. Every other batch holds four times as many clips of a
    quarter of the length: more scenes for the same work. Without the long ones the VAE would fail
    past the length it has seen.

    Args:
        batch_size: Clips of a training step, in each process.
        latent_frames: Length of a long clip.
        side: Height and width in pixels.
        seed: First clip number.
        validation_clips: Clips of held-out prompts to validate on.
        hard_share: How many of the training clips show small stars.
    """

    def __init__(
        self,
        batch_size: int = 8,
        latent_frames: int = 21,
        side: int = 96,
        seed: int = 0,
        validation_clips: int = 16,
        hard_share: float = 0.0,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.latent_frames = latent_frames
        self.side = side
        self.seed = seed
        self.validation_clips = validation_clips
        self.hard_share = hard_share

    def train_dataloader(self) -> DataLoader[int]:
        first = self.seed + CLIPS_OF_A_PROCESS * cast(pl.Trainer, self.trainer).global_rank
        return DataLoader(_Numbers(first), batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[int]:
        return DataLoader(_Numbers(0, self.validation_clips), batch_size=self.batch_size)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> FramePair:
        """Draw the clips where they are used."""
        numbers, latent_frames = batch.tolist(), self.latent_frames
        if not cast(pl.Trainer, self.trainer).training:
            held_out = held_out_prompts()
            shown = [((0, held_out[number % len(held_out)]),) for number in numbers]
            return self._pair(shown, numbers, latent_frames, batch.device)
        if numbers[0] // self.batch_size % 2:
            latent_frames = max(1, latent_frames // 4)
            numbers = [SHORT_CLIPS + 4 * number + part for number in numbers for part in range(4)]
        clips = [draw_hard_clip(number, latent_frames, self.hard_share) for number in numbers]
        timelines = [clip.timeline for clip in clips]
        return self._pair(timelines, numbers, latent_frames, batch.device)

    def _pair(
        self,
        timelines: Sequence[Timeline],
        numbers: list[int],
        latent_frames: int,
        device: torch.device,
    ) -> FramePair:
        frames, target = (
            render_timelines(
                timelines, numbers, frames_of(latent_frames), self.side, device, has_texture
            )
            for has_texture in (True, False)
        )
        return FramePair(frames, target)


class ClipBatch(NamedTuple):
    """Training clips of the diffusion transformer, before the text encoder.

    Attributes:
        latents: ``[B, F, C, H, W]``.
        ids: Tokens of the prompts ``[B, M]``.
        mask: One for tokens, zero for padding ``[B, M]``.
        starts: First latent frame that follows the prompt ``[B]``.
    """

    latents: Tensor
    ids: Tensor
    mask: Tensor
    starts: Tensor

    def rows(self, indices: Tensor) -> "ClipBatch":
        """Some of the clips."""
        return ClipBatch(*(column[indices] for column in self))


class ShapesLatents(pl.LightningDataModule):
    """Encoded clips for the diffusion transformer, rendered and encoded once at the start.

    Args:
        vae: Folder of the embedded model's weights; None takes the ones in the package.
        clips: Clips to encode; they stay on the training device.
        batch_size: Clips of a training step.
        latent_frames: Length of a clip.
        switch_share: How many clips change their prompt; what lies before the change is history.
        side: Height and width in pixels.
        seed: First clip number.
    """

    def __init__(
        self,
        vae: str | None = None,
        clips: int = 16384,
        batch_size: int = 32,
        latent_frames: int = 21,
        switch_share: float = 0.25,
        side: int = 96,
        seed: int = 1_000_000,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.clips = clips
        self.batch_size = batch_size
        self.latent_frames = latent_frames
        self.switch_share = switch_share
        self.side = side
        self.seed = seed
        self.encoded: ClipBatch | None = None

    def setup(self, stage: str) -> None:
        """Render and encode every clip on the training device."""
        if stage != "fit" or self.encoded is not None:
            return
        device = cast(pl.Trainer, self.trainer).strategy.root_device
        numbers = range(self.seed, self.seed + self.clips)
        chosen = [draw_clip(number, self.latent_frames, self.switch_share) for number in numbers]
        self.encoded = clip_batch(load_vae(self.vae), chosen, self.latent_frames, self.side, device)

    def train_dataloader(self) -> DataLoader[Any]:
        # Batches of indices: the latents are on the device already.
        return DataLoader(range(self.clips), self.batch_size, shuffle=True, drop_last=True)  # type: ignore[arg-type]

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> ClipBatch:
        """Look up the clips where they lie."""
        assert self.encoded is not None
        return self.encoded.rows(batch)


def clip_batch(
    vae: WanVAE, clips: list[Clip], latent_frames: int, side: int, device: torch.device
) -> ClipBatch:
    """Render and encode clips, and their prompts with them, on the device."""
    tokens = shapes_tokenizer()([clip.prompt.text for clip in clips])
    return ClipBatch(
        latents=encode_clips(vae, clips, latent_frames, side, device),
        ids=tokens.ids.to(device),
        mask=tokens.mask.to(device),
        starts=torch.tensor([clip.start for clip in clips], device=device),
    )


@torch.no_grad()
def encode_clips(
    vae: WanVAE,
    clips: list[Clip],
    latent_frames: int,
    side: int,
    device: torch.device,
    batch_size: int = 32,
) -> Tensor:
    """Render and encode clips, ``[clips, F, C, H, W]`` float32 on the device."""
    vae = vae.to(device).eval()
    use_channels_last(vae)
    parts = []
    for first in range(0, len(clips), batch_size):
        some = clips[first : first + batch_size]
        frames = render_timelines(
            [clip.timeline for clip in some],
            [clip.seed for clip in some],
            frames_of(latent_frames),
            side,
            device,
        )
        # On a CPU, bfloat16 convolutions take many times as long as float32 ones.
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            parts.append(vae.encode(frames, latents_at_once=None))
    return torch.cat(parts)
