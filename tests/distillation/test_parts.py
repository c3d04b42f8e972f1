"""Time and memory of the parts of a training step."""

import pytest
import torch

from longlive.distillation.parts import PartClock

GIB = 1 << 30


class Gauge:
    """Memory of a made-up GPU."""

    def __init__(self, monkeypatch) -> None:
        self.now = self.peak = 0
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: self.now)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self._reset)

    def _reset(self, device: torch.device) -> None:
        self.peak = self.now

    def use(self, gib: int) -> None:
        """Take memory for a moment."""
        self.peak = max(self.peak, self.now + gib * GIB)


@pytest.fixture
def gauge(monkeypatch) -> Gauge:
    # Events need a GPU, and times are not what is looked at.
    monkeypatch.setattr(PartClock, "_mark", lambda self: 0.0)
    return Gauge(monkeypatch)


def test_the_peak_of_a_part_holds_those_of_the_parts_inside_it_and_no_others(gauge):
    clock = PartClock(torch.device("cuda"))
    gauge.use(9)
    with clock.part("whole"):
        gauge.use(2)
        with clock.part("first"):
            gauge.use(5)
        with clock.part("second"):
            gauge.now = 1 * GIB
            gauge.use(2)
        gauge.use(1)
    assert {name: value for name, value in clock.read().items() if "memory" in name} == {
        "memory/whole_gib": 5,
        "memory/first_gib": 5,
        "memory/second_gib": 3,
        "memory/resident_gib": 1,
    }
    assert clock.read() == {"memory/resident_gib": 1}


def test_a_part_that_is_measured_again_forgets_what_it_was(gauge):
    clock = PartClock(torch.device("cuda"))
    for gib in (4, 2):
        with clock.part("again"):
            gauge.use(gib)
    assert clock.read()["memory/again_gib"] == 2


def test_a_part_that_fails_is_not_under_way_any_more(gauge):
    clock = PartClock(torch.device("cuda"))
    with pytest.raises(ZeroDivisionError), clock.part("broken"):
        raise ZeroDivisionError
    gauge.use(7)
    with clock.part("next"):
        gauge.use(1)
    read = clock.read()
    assert read["memory/next_gib"] == 1
    assert "time/broken_s" not in read
    assert read["memory/broken_gib"] == 0


def test_on_a_cpu_there_are_times_alone():
    clock = PartClock(torch.device("cpu"))
    with clock.part("outer"), clock.part("inner"):
        pass
    read = clock.read()
    assert list(read) == ["time/inner_s", "time/outer_s"]
    assert 0 <= read["time/inner_s"] <= read["time/outer_s"]
