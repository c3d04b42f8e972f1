"""Which states are kept when not all fit."""

import pytest
import torch

from longlive.live.snapshots import Place, SnapshotStore
from longlive.rollout.snapshot import RolloutSnapshot


def snapshot(mebibytes: int = 1) -> RolloutSnapshot:
    keys = torch.zeros(mebibytes * 2**20 // 4)
    held = (keys, torch.zeros(0))
    return RolloutSnapshot(0, "", (), None, (0, 0, 0, 0), (), None, held, [], None)


def fill(store: SnapshotStore, blocks: range, owner: int = 0, pins: tuple[int, ...] = ()) -> None:
    for block in blocks:
        store.put(Place(owner, block), snapshot(), pin=block in pins)


def kept(store: SnapshotStore, owner: int = 0, last: int = 100) -> list[int]:
    return [block for block in range(last) if Place(owner, block) in store]


def test_all_are_kept_while_they_fit():
    store = SnapshotStore(8 * 2**20)
    fill(store, range(1, 9))
    assert kept(store) == list(range(1, 9))
    assert store.nbytes == 8 * 2**20


@pytest.mark.parametrize("room", [2, 5, 8])
def test_a_full_store_holds_the_newest_and_spreads_the_others(room):
    store = SnapshotStore(room * 2**20)
    fill(store, range(1, 61))
    blocks = kept(store)
    assert len(blocks) == room
    assert blocks[-1] == 60
    gaps = [after - before for before, after in zip([0, *blocks], blocks, strict=False)]
    assert max(gaps) <= 2 * 60 / room + 1


def test_a_pinned_one_is_kept_when_all_around_it_go():
    store = SnapshotStore(3 * 2**20)
    fill(store, range(1, 40), pins=(7,))
    assert 7 in kept(store)
    assert kept(store)[-1] == 39


def test_one_that_does_not_fit_alone_is_not_kept():
    store = SnapshotStore(2**20)
    store.put(Place(0, 3), snapshot(2), pin=True)
    assert len(store) == 0


def test_branches_do_not_share_places():
    store = SnapshotStore(8 * 2**20)
    fill(store, range(1, 3))
    fill(store, range(2, 4), owner=1)
    assert kept(store, 0) == [1, 2]
    assert kept(store, 1) == [2, 3]
    store.clear()
    assert len(store) == 0
