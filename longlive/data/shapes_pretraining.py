"""Data of the embedded transformer's pretraining: whole clips, and many more first blocks."""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from longlive.data.shapes_data import CLIPS_OF_A_PROCESS, ClipBatch, clip_batch, draw_clip
from longlive.errors import UserError
from longlive.weights.embedded import load_vae

SIDE = 96
"""Of the clips of the embedded model, in pixels."""
OPENING = 3
"""Latent frames of an opening: one block."""


class PretrainingBatch(NamedTuple):
    """What one step of pretraining learns from.

    Attributes:
        clips: Whole clips.
        openings: First blocks of other clips.
    """

    clips: ClipBatch
    openings: ClipBatch


class _Shuffled(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches of indices of two tables, each in a random order, over and over."""

    def __init__(self, rows: tuple[int, int], batch_sizes: tuple[int, int]) -> None:
        self.rows, self.batch_sizes = rows, batch_sizes

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        tables = zip(self.rows, self.batch_sizes, strict=True)
        first, second = (_shuffled(rows, batch_size) for rows, batch_size in tables)
        return zip(first, second, strict=True)


def _shuffled(rows: int, batch_size: int) -> Iterator[Tensor]:
    while True:
        batches = torch.randperm(rows).split(batch_size)
        yield from (batch for batch in batches if len(batch) == batch_size)


class ShapesPretraining(pl.LightningDataModule):
    """Encoded clips and, beside them, many more openings: clips of one block.

    What a prompt looks like is decided in the first block; the later ones can copy it from their
    history. A clip of seven blocks therefore says as much about the words as one block does, and
    costs fourteen times as much.

    Everything is rendered and encoded once at the start, each process its own share, and stays on
    the training device.

    Args:
        vae: Folder of the embedded model's weights; None takes the ones in the package.
        clips: Clips to encode, all processes together.
        openings: Openings to encode, all processes together.
        batch_size: Clips of a training step, in each process.
        openings_batch_size: Openings of a training step, in each process.
        latent_frames: Length of a clip.
        switch_share: How many clips change their prompt; what lies before the change is history.
        seed: First clip number.

    Raises:
        UserError: If a process would get less than a batch.
    """

    def __init__(
        self,
        vae: str | None = None,
        clips: int = 10_240,
        openings: int = 49_152,
        batch_size: int = 16,
        openings_batch_size: int = 128,
        latent_frames: int = 21,
        switch_share: float = 0.25,
        seed: int = 1_000_000,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.rows = (clips, openings)
        self.batch_sizes = (batch_size, openings_batch_size)
        self.lengths = (latent_frames, OPENING)
        self.switch_share = switch_share
        self.seed = seed
        self.encoded: tuple[ClipBatch, ...] = ()

    def setup(self, stage: str) -> None:
        """Render and encode this process's share on the training device."""
        if stage != "fit" or self.encoded:
            return
        trainer = cast(pl.Trainer, self.trainer)
        vae, device = load_vae(self.vae), trainer.strategy.root_device
        first = self.seed + CLIPS_OF_A_PROCESS * trainer.global_rank
        tables = []
        for rows, frames in zip(self._shares(trainer.world_size), self.lengths, strict=True):
            # Consecutive numbers: no opening is the beginning of a clip.
            chosen = [
                draw_clip(number, frames, self.switch_share)
                for number in range(first, first + rows)
            ]
            first += rows
            tables.append(clip_batch(vae, chosen, frames, SIDE, device))
        self.encoded = tuple(tables)

    def train_dataloader(self) -> DataLoader[Any]:
        # Indices: the latents are on the device already.
        shares = self._shares(cast(pl.Trainer, self.trainer).world_size)
        return DataLoader(_Shuffled(shares, self.batch_sizes), batch_size=None)

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor], dataloader_idx: int
    ) -> PretrainingBatch:
        """Look up the clips where they lie."""
        tables = zip(self.encoded, batch, strict=True)
        return PretrainingBatch(*(table.rows(indices) for table, indices in tables))

    def _shares(self, processes: int) -> tuple[int, int]:
        clips, openings = (rows // processes for rows in self.rows)
        for share, batch_size in zip((clips, openings), self.batch_sizes, strict=True):
            if share < batch_size:
                raise UserError(
                    f"{share} clips for each process do not fill a batch of {batch_size}: draw "
                    "more clips and openings, or make the batches smaller"
                )
        return clips, openings
