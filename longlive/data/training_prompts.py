"""Prompts to train a student on: of a file, of two files side by side, or of the shapes world."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl

from longlive.data.prompt_files import read_prompt_file
from longlive.data.seeded_batches import SeededBatches
from longlive.errors import UserError
from longlive.shapes import training_prompts


class PromptBatch(NamedTuple):
    """Prompts of some videos.

    Attributes:
        first: What each shows first.
        second: What each shows after a switch.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]


PromptPair = tuple[str, str]


class TrainingPrompts(pl.LightningDataModule):
    """Batches of prompts of files, one video per line.

    Args:
        prompts: A ``.txt`` of prompts, or a ``.jsonl`` whose lines hold one prompt or two.
        second_prompts: A ``.txt`` or ``.jsonl`` of as many prompts; line i is what follows line i.
            Without it, and without pairs in ``prompts``, another line follows, drawn by the seed.
        batch_size: Videos of a training step, on one process.
        seed: Of the order.

    Raises:
        UserError: In ``setup``, if files are missing or malformed or do not fit together.
    """

    def __init__(
        self,
        prompts: Path,
        second_prompts: Path | None = None,
        batch_size: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.prompts = prompts
        self.second_prompts = second_prompts
        self.batch_size = batch_size
        self.seed = seed
        self.pairs: list[PromptPair] = []

    def setup(self, stage: str) -> None:
        self.pairs = read_pairs(Path(self.prompts), self.second_prompts, self.seed)

    def train_dataloader(self) -> SeededBatches[PromptBatch]:
        return batches_of(self, len(self.pairs), lambda numbers: _batch(self.pairs, numbers))


class ShapesPrompts(pl.LightningDataModule):
    """Batches of prompts of the shapes world; held-out ones are never among them.

    Args:
        batch_size: Videos of a training step, on one process.
        seed: Of the order, and of which prompt follows which.
    """

    def __init__(self, batch_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed

    def train_dataloader(self) -> SeededBatches[PromptBatch]:
        texts = [prompt.text for prompt in training_prompts()]
        pairs = _with_others(texts, self.seed)
        return batches_of(self, len(pairs), lambda numbers: _batch(pairs, numbers))


def batches_of(
    data: "TrainingPrompts | ShapesPrompts",
    count: int,
    read: Callable[[Sequence[int]], PromptBatch],
) -> SeededBatches[PromptBatch]:
    """The batches of a data module on this process."""
    trainer = data.trainer
    return SeededBatches(
        count,
        data.batch_size,
        read,
        seed=data.seed,
        rank=trainer.global_rank if trainer else 0,
        ranks=trainer.world_size if trainer else 1,
    )


def read_pairs(prompts: Path, second_prompts: Path | None, seed: int) -> list[PromptPair]:
    """Read what each video shows first and after a switch.

    Args:
        prompts: File of prompts or pairs.
        second_prompts: File of what follows.
        seed: Draws what follows where no file says it.

    Raises:
        UserError: If the files are missing or malformed or do not fit together.
    """
    entries = read_prompt_file(prompts)
    for entry in entries:
        if len(entry.prompts) > 2:
            raise UserError(
                f"{entry.place} has {len(entry.prompts)} prompts and training takes one or a pair: "
                "leave the others out"
            )
    if second_prompts is not None:
        second = read_prompt_file(Path(second_prompts))
        if len(second) != len(entries):
            raise UserError(
                f"{prompts} has {len(entries)} lines and {second_prompts} {len(second)}: line i of "
                "one goes with line i of the other"
            )
        return [(a.prompts[0], b.prompts[0]) for a, b in zip(entries, second, strict=True)]
    lengths = {len(entry.prompts) for entry in entries}
    if lengths == {1, 2}:
        raise UserError(f"{prompts} mixes single prompts and pairs: give every line as many")
    if lengths == {2}:
        return [(entry.prompts[0], entry.prompts[1]) for entry in entries]
    return _with_others([entry.prompts[0] for entry in entries], seed)


def _with_others(texts: Sequence[str], seed: int) -> list[PromptPair]:
    """Let a prompt be followed by another one of the list."""
    draw = random.Random(seed)
    ring = list(texts)
    draw.shuffle(ring)
    following = dict(zip(ring, [*ring[1:], ring[0]], strict=True))
    return [(text, following[text]) for text in texts]


def _batch(pairs: Sequence[PromptPair], numbers: Sequence[int]) -> PromptBatch:
    chosen = [pairs[number] for number in numbers]
    return PromptBatch(tuple(a for a, _ in chosen), tuple(b for _, b in chosen))
