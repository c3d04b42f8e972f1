"""What a second GPU gives: which ways are measured, and when a block is there."""

import pytest
from check_devices import WAYS, block_times, ways_of


class NoRecipe:
    def build_callbacks(self):
        return []


@pytest.mark.parametrize("pieces", [(12,), (4, 8), (4, 4, 4)])
def test_a_block_is_there_when_its_last_piece_is(pieces):
    frames, expected, now = [], [], 0.0
    for block in range(12):
        for added in (1, 8) if block == 0 else pieces if block == 7 else (12,):
            now += 1
            frames.append((added, now))
        expected.append(now)
    assert block_times(frames, 3) == expected


def test_ways_are_measured_in_the_order_in_which_they_are_named():
    names = ("rests", "one", "uneven", "decoder", "shared")
    assert set(names) == set(WAYS)
    chosen = ways_of(NoRecipe(), [1, 2], [2, 1], names)  # type: ignore[arg-type]
    assert list(chosen) == [
        "shared, the first rests in 2 steps",
        "shared, the first rests in 1 steps",
        "one GPU",
        "shared 1:2",
        "decoder on the second",
        "passes shared",
    ]
    assert [is_shared for is_shared, _ in chosen.values()] == [True, True, False, True, False, True]
