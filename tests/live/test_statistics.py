"""What the server counts."""

import pytest

from longlive.live.statistics import Statistics


def test_a_block_takes_what_the_median_of_the_last_ones_did():
    statistics = Statistics()
    assert statistics.last_blocks_ms(3) == 0
    for seconds in (9.0, 0.5, 2.0, 0.6):
        statistics.made_block(seconds)
    assert statistics.last_blocks_ms(3) == pytest.approx(600)
    assert statistics.last_blocks_ms(1) == pytest.approx(600)
    assert statistics.last_block_ms == pytest.approx(600)
