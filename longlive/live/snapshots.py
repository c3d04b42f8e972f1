"""The states a session can go back to, as many as memory allows.

A snapshot of the published model is gigabytes, of the embedded one a few megabytes. When the budget
is spent the one whose loss costs least is dropped: the one with the nearest earlier neighbor. From
where none is kept the session makes the blocks again from the nearest earlier one, with the same
noise and prompts and so exactly.
"""

from dataclasses import dataclass

from longlive.rollout.snapshot import RolloutSnapshot


@dataclass(frozen=True, slots=True)
class Place:
    """Between two blocks.

    Attributes:
        owner: The branch that made the block before.
        block: The block after.
    """

    owner: int
    block: int


class SnapshotStore:
    """Snapshots by place. Not thread-safe: the rollout's thread alone uses it.

    Args:
        budget_bytes: What they may hold together; one that is larger alone is not kept, and those
            that were asked for by name go last.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._kept: dict[Place, RolloutSnapshot] = {}
        self._pinned: set[Place] = set()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, place: Place) -> bool:
        return place in self._kept

    @property
    def nbytes(self) -> int:
        """What they hold together."""
        return sum(snapshot.nbytes for snapshot in self._kept.values())

    def get(self, place: Place) -> RolloutSnapshot | None:
        """The snapshot of a place, if it is kept."""
        return self._kept.get(place)

    def put(self, place: Place, snapshot: RolloutSnapshot, *, pin: bool = False) -> None:
        """Keep a snapshot, and drop others for it if need be."""
        self._kept[place] = snapshot
        if pin:
            self._pinned.add(place)
        while self.nbytes > self.budget_bytes and self._kept:
            del self._kept[self._cheapest_loss()]

    def pin(self, place: Place) -> None:
        """Keep a place that is kept already for good."""
        self._pinned.add(place)

    def clear(self) -> None:
        """Drop all."""
        self._kept.clear()
        self._pinned.clear()

    def _cheapest_loss(self) -> Place:
        """The place whose blocks are quickest to make again; pinned ones only if no other is."""
        candidates = [place for place in self._kept if place not in self._pinned]
        newest = max(self._kept, key=lambda place: (place.owner, place.block))
        if len(candidates) > 1 and newest in candidates:
            candidates.remove(newest)
        return min(candidates or self._kept, key=self._distance)

    def _distance(self, place: Place) -> tuple[int, int]:
        earlier = [
            kept.block
            for kept in self._kept
            if kept.owner == place.owner and kept.block < place.block
        ]
        return place.block - max(earlier, default=0), place.block
