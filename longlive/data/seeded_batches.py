"""Batches in an order that depends on a seed alone, shared out to processes, resumed exactly."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch

from longlive.errors import UserError

T = TypeVar("T")


class SeededBatches(Generic[T]):
    """Shuffled batches without workers; remembers where it stands.

    Each epoch has an order of its own, the same on every process. Of every ``batch_size * ranks``
    consecutive items each process takes its ``batch_size``, so two processes see together what one
    with twice the batch does. What does not fill a whole batch is left out of the epoch.

    Args:
        count: Items there are.
        batch_size: Items of a batch, on one process.
        read: Makes a batch of the items with the given numbers.
        seed: Of the order.
        rank: Which process this is.
        ranks: Processes in all.

    Raises:
        UserError: If there are fewer items than one batch on every process takes.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        read: Callable[[Sequence[int]], T],
        *,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"a batch needs at least one item, got batch_size {batch_size}")
        if count < batch_size * ranks:
            raise UserError(
                f"there are {count} items to train on and {ranks} process(es) with batches of "
                f"{batch_size} take {batch_size * ranks}: make batch_size smaller"
            )
        self.count = count
        self.batch_size = batch_size
        self.read = read
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.position = 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.count // (self.batch_size * self.ranks)

    def __iter__(self) -> Iterator[T]:
        """Go on to the end of the epoch."""
        epoch, first = divmod(self.position, len(self))
        order = torch.randperm(
            self.count, generator=torch.Generator().manual_seed(self.seed + epoch)
        ).tolist()
        for index in range(first, len(self)):
            start = (index * self.ranks + self.rank) * self.batch_size
            # Counted before it is used: a checkpoint after this batch goes on with the next.
            self.position += 1
            yield self.read(order[start : start + self.batch_size])

    def state_dict(self) -> dict[str, Any]:
        """Batches that were taken."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that were taken."""
        self.position = state["position"]
