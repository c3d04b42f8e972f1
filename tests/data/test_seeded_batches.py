"""Batches that depend on a seed alone, are shared out to processes, and are resumed exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlive.data.seeded_batches import SeededBatches
from longlive.errors import UserError


def batches(count: int = 13, size: int = 2, **options) -> SeededBatches[list[int]]:
    return SeededBatches(count, size, list, **options)


@given(ranks=st.integers(1, 4), size=st.integers(1, 3), seed=st.integers(0, 5))
def test_processes_together_see_what_one_with_the_whole_batch_does(ranks, size, seed):
    whole = list(batches(size=size * ranks, seed=seed))
    shares = [list(batches(size=size, seed=seed, rank=r, ranks=ranks)) for r in range(ranks)]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == whole


@given(taken=st.integers(0, 20))
def test_a_resumed_loader_goes_on_with_the_next_batch(taken):
    def stream(loader, count):
        found = []
        while len(found) < count:
            for batch in loader:
                found.append(batch)
                if len(found) == count:
                    break
        return found

    expected = stream(batches(), 24)
    first = batches()
    stream(first, taken)
    resumed = batches()
    resumed.load_state_dict(first.state_dict())
    assert stream(resumed, 24 - taken) == expected[taken:]


def test_every_epoch_has_another_order_and_no_item_twice():
    loader = batches(count=12)
    first, second = list(loader), list(loader)
    assert len(loader) == 6
    assert first != second
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(12))


def test_too_few_items_are_refused_with_the_fix():
    with pytest.raises(UserError, match="make batch_size smaller"):
        batches(count=3, size=2, ranks=2)
    with pytest.raises(UserError, match="batch_size 0"):
        batches(size=0)
