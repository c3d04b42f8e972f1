"""Pairs of noise and clean clip, with states in between, in safetensors files of many pairs each.

A shard ``pairs-00000.safetensors`` holds ``states`` ``[N, S, F, C, H, W]`` in float16, from noise
to clean, and in its header the prompts and the S noise levels.
"""

# Shape suffixes: N pairs, S states, F latent frames, C channels, H W latent rows and columns.

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longlive.data.seeded_batches import SeededBatches
from longlive.errors import UserError
from longlive.video.atomic import cannot_write, make_parent, part_path

_PATTERN = "pairs-*.safetensors"
_STATES = "states"


class PairBatch(NamedTuple):
    """Pairs to learn from.

    Attributes:
        states: ``[B, S, F, C, H, W]`` float32, from noise to clean.
        sigmas: Noise levels of the states, ``[S]``; the last is 0.
        prompts: One for each pair.
    """

    states: Tensor
    sigmas: Tensor
    prompts: tuple[str, ...]


class _Shard(NamedTuple):
    path: Path
    prompts: list[str]
    sigmas: list[float]
    shape: tuple[int, ...]


def shard_path(folder: Path, number: int) -> Path:
    """Where shard ``number`` of a folder is."""
    return folder / f"pairs-{number:05d}.safetensors"


def write_shard(
    path: Path, states_NSFCHW: Tensor, prompts: Sequence[str], sigmas: Sequence[float]
) -> None:
    """Write a shard: all of it, or nothing.

    Args:
        path: Of :func:`shard_path`.
        states_NSFCHW: States from noise to clean; stored as float16.
        prompts: One for each pair.
        sigmas: Noise levels of the states; the last must be 0.

    Raises:
        UserError: If it cannot be written.
    """
    make_parent(path)
    part = part_path(path)
    header = {"prompts": json.dumps(list(prompts)), "sigmas": json.dumps(list(sigmas))}
    tensors = {_STATES: states_NSFCHW.to("cpu", torch.float16).contiguous()}
    try:
        save_file(tensors, part, header)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise cannot_write(path, error if isinstance(error, OSError) else OSError(error)) from error


class PairShards:
    """The pairs of a folder, read one by one.

    Args:
        folder: With the shards.

    Raises:
        UserError: If there is none, or one is damaged or unlike the others. One line names it.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob(_PATTERN))
        if not paths:
            raise UserError(
                f"no {_PATTERN} in {folder}: make them with tools/make_ode_pairs.py, or name "
                "another folder"
            )
        self.shards = [_open(path) for path in paths]
        first = self.shards[0]
        for shard in self.shards:
            if (shard.shape[1:], shard.sigmas) != (first.shape[1:], first.sigmas):
                raise UserError(
                    f"{shard.path} holds pairs of another shape or other noise levels than "
                    f"{first.path.name}: keep pairs of one kind in a folder"
                )
        self.sigmas = torch.tensor(first.sigmas)
        self._places = [(shard, row) for shard in self.shards for row in range(shard.shape[0])]

    def __len__(self) -> int:
        return len(self._places)

    def read(self, numbers: Sequence[int]) -> PairBatch:
        """Read the pairs with the given numbers.

        Raises:
            UserError: If a shard was changed meanwhile, or holds values that are not finite.
        """
        rows, prompts = [], []
        for shard, row in (self._places[number] for number in numbers):
            try:
                with safe_open(shard.path, framework="pt") as file:
                    states = file.get_slice(_STATES)[row].float()
            except (SafetensorError, OSError) as error:
                raise _damaged(shard.path, str(error)) from error
            if not torch.isfinite(states).all():
                raise _damaged(shard.path, f"pair {row} has values that are not finite")
            rows.append(states)
            prompts.append(shard.prompts[row])
        return PairBatch(torch.stack(rows), self.sigmas, tuple(prompts))


class OdePairs(pl.LightningDataModule):
    """Batches of stored pairs.

    Args:
        folder: With the shards.
        batch_size: Pairs of a training step, on one process.
        seed: Of the order.
    """

    def __init__(self, folder: Path, batch_size: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.folder = folder
        self.batch_size = batch_size
        self.seed = seed
        self.pairs: PairShards | None = None

    def setup(self, stage: str) -> None:
        self.pairs = PairShards(Path(self.folder))

    def train_dataloader(self) -> SeededBatches[PairBatch]:
        assert self.pairs is not None
        trainer = self.trainer
        return SeededBatches(
            len(self.pairs),
            self.batch_size,
            self.pairs.read,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            ranks=trainer.world_size if trainer else 1,
        )


def _open(path: Path) -> _Shard:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            shape = tuple(file.get_slice(_STATES).get_shape())
        shard = _Shard(path, json.loads(header["prompts"]), json.loads(header["sigmas"]), shape)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if shape[:2] != (len(shard.prompts), len(shard.sigmas)) or shard.sigmas[-1] != 0:
        raise _damaged(path, "prompts, noise levels and states do not fit together")
    return shard


def _damaged(path: Path, reason: str) -> UserError:
    first_line = (reason.splitlines() or ["unreadable"])[0]
    return UserError(f"{path} is damaged ({first_line}): delete it, and make its pairs again")
