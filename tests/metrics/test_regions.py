"""Regions on a clock that the test turns by hand: how they nest, what they come to."""

import gc
import json
import mmap
from itertools import pairwise

import numpy as np
import pytest
import torch

from longlive.metrics import clocks
from longlive.metrics.clocks import CudaClock, HostClock, MemoryReading, Stamp, memory_gauge_of
from longlive.metrics.region_statistics import RegionStats, layer_breakdowns, statistics
from longlive.metrics.regions import Path, RegionRecorder, Sample
from longlive.metrics.rollout_profile import RolloutProfile, step_name
from longlive.metrics.trace import chrome_trace


class HandClock(HostClock):
    """Stands still until it is turned."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1000.0
        self.ranges: list[str] = []
        self.stamps = 0

    def turn(self, ms: float) -> None:
        self.now_ms += ms

    def stamp(self) -> Stamp:
        self.stamps += 1
        return Stamp(round(self.now_ms * 1e6))

    def enter(self, name: str) -> None:
        self.ranges.append(name)

    def leave(self) -> None:
        self.ranges.append("/")


class HandGauge:
    """Memory that the test allocates; the peak is forgotten at each reading."""

    kind = "by hand"

    def __init__(self) -> None:
        self.allocated = self.peak = 0
        self.readings = 0

    def change(self, by: int) -> None:
        self.allocated += by
        self.peak = max(self.peak, self.allocated)

    def read(self) -> MemoryReading:
        self.readings += 1
        reading = MemoryReading(self.allocated, 2 * self.allocated, self.peak)
        self.peak = self.allocated
        return reading


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def recorder(clock) -> RegionRecorder:
    return RegionRecorder(clock)


def sample(path: str, ms: float, *, start_ms: float = 0.0, **more: object) -> Sample:
    return Sample(tuple(path.split("/")), start_ms, ms, start_ms, ms, **more)


def rows_of(samples: list[Sample]) -> dict[Path, RegionStats]:
    return {row.path: row for row in statistics(samples)}


def test_a_region_lasts_from_where_it_was_opened_to_where_it_was_closed(recorder, clock):
    recorder.open("block")
    clock.turn(3)
    recorder.open("step")
    clock.turn(5)
    recorder.close()
    clock.turn(2)
    recorder.close()
    block, step = recorder.samples()
    assert (block.path, block.start_ms, block.ms) == (("block",), 0, pytest.approx(10))
    assert (step.path, step.start_ms, step.ms) == (("block", "step"), 3, pytest.approx(5))


def test_neighbors_share_a_stamp_and_so_add_up_to_what_is_round_them(recorder, clock):
    at = recorder.open("layer")
    recorder.open("a", at=at)
    clock.turn(1.25)
    recorder.swap("b")
    clock.turn(0.5)
    recorder.close(recorder.close())
    layer, a, b = recorder.samples()
    assert clock.stamps == 3
    assert (a.ms, b.ms) == (pytest.approx(1.25), pytest.approx(0.5))
    assert a.ms + b.ms == pytest.approx(layer.ms, rel=1e-12)


def test_closing_through_a_region_ends_what_is_left_open_inside_it(recorder, clock):
    recorder.open("rollout")
    recorder.open("text")
    recorder.open("encoder")
    clock.turn(2)
    recorder.close_through("text")
    assert recorder.current == "rollout"
    recorder.close_through("text")
    assert recorder.current == "rollout"
    assert [s.path[-1] for s in recorder.samples()] == ["text", "encoder"]
    assert clock.ranges == ["rollout", "text", "encoder", "/", "/"]


def test_a_canceled_region_leaves_no_sample_and_the_others_stay(recorder, clock):
    recorder.open("block")
    recorder.open("decode")
    clock.turn(1)
    recorder.cancel()
    recorder.close()
    assert [s.path for s in recorder.samples()] == [("block",)]
    assert clock.ranges.count("/") == 2


def test_what_was_cut_short_counts_nowhere_nor_does_what_is_inside_it(recorder, clock):
    recorder.open("rollout")
    for is_cut in (False, True):
        recorder.open("block")
        recorder.open("step")
        clock.turn(10)
        recorder.close()
        recorder.unwind() if is_cut else recorder.close()
    samples = recorder.samples()
    assert [s.is_whole for s in samples] == [True, True, True, False, False]
    rows = rows_of(samples)
    assert rows["rollout", "block"].count == rows["rollout", "block", "step"].count == 1
    assert rows["rollout",].total_ms == pytest.approx(20)


def test_samples_can_be_read_again_while_more_come_in(recorder, clock):
    for expected in ([7.0], [7.0, 4.0]):
        recorder.open("block")
        clock.turn(expected[-1])
        recorder.close()
        assert [s.ms for s in recorder.samples()] == pytest.approx(expected)
    starts = [s.start_ms for s in recorder.samples()]
    assert starts == pytest.approx([0, 7])


def test_rollout_block_and_layer_are_those_of_the_moment_a_region_began(recorder):
    recorder.rollout, recorder.block = 2, 5
    recorder.open("layer", layer=3)
    recorder.open("part")
    recorder.block = 6
    recorder.unwind()
    assert [(s.rollout, s.block, s.layer) for s in recorder.samples()] == [(2, 5, 3)] * 2
    assert recorder.block is None


def test_memory_belongs_to_the_region_in_which_it_was_taken(clock):
    gauge = HandGauge()
    recorder = RegionRecorder(clock, gauge)
    recorder.open("rollout")
    recorder.open("decode")
    gauge.change(100)
    gauge.change(-60)
    recorder.swap("update")
    gauge.change(7)
    recorder.unwind()
    rollout, decode, update = (s.memory for s in recorder.samples())
    assert (decode.peak, decode.allocated, decode.grown) == (100, 40, 40)
    # The peak of its neighbor is not its own, but that of what is round both.
    assert (update.peak, update.grown, update.reserved) == (47, 7, 94)
    assert (rollout.peak, rollout.grown) == (100, 47)


def test_a_peak_inside_a_region_without_memory_is_seen_by_those_round_it(clock):
    gauge = HandGauge()
    recorder = RegionRecorder(clock, gauge)
    recorder.open("step")
    readings = gauge.readings
    recorder.open("layer", memory=False)
    gauge.change(50)
    gauge.change(-50)
    recorder.close()
    assert gauge.readings == readings
    recorder.close()
    step, layer = recorder.samples()
    assert step.memory.peak == 50
    assert layer.memory is None


def test_percentiles_of_one_to_a_hundred_and_one_are_the_numbers_themselves():
    times = np.random.default_rng(0).permutation(np.arange(1.0, 102.0))
    row = statistics([sample("block", ms) for ms in times])[0]
    assert (row.count, row.mean_ms, row.max_ms, row.total_ms) == (101, 51, 101, 5151)
    assert (row.p50_ms, row.p95_ms, row.p99_ms) == (51, 96, 100)


def test_percentiles_between_samples_are_those_of_numpy():
    times = np.random.default_rng(1).gamma(2.0, 30.0, size=37)
    row = statistics([sample("block", float(ms)) for ms in times])[0]
    expected = [float(np.percentile(times, q)) for q in (50, 95, 99)]
    assert [row.p50_ms, row.p95_ms, row.p99_ms] == pytest.approx(expected, rel=1e-12)


def test_shares_are_of_the_region_round_and_own_time_is_what_nothing_inside_covers():
    rows = rows_of(
        [
            sample("rollout", 100),
            sample("rollout/block", 30),
            sample("rollout/block", 50),
            sample("rollout/block/step", 12),
            sample("rollout/block/step", 28),
        ]
    )
    assert rows["rollout",].share_of_parent is None
    assert rows["rollout", "block"].share_of_parent == pytest.approx(0.8)
    assert rows["rollout", "block", "step"].share_of_parent == pytest.approx(0.5)
    owns = {path[-1]: row.own_ms for path, row in rows.items()}
    assert owns == {"rollout": 20, "block": 40, "step": 40}


def test_rows_are_in_the_order_of_the_tree_though_a_region_comes_late():
    names = ["rollout", "rollout/text", "rollout/block", "rollout/block/step"]
    late = ["rollout/recache", "rollout/block", "rollout/block/output", "rollout/text/encoder"]
    rows = statistics([sample(name, 1) for name in names + late])
    assert ["/".join(row.path) for row in rows] == [
        "rollout",
        "rollout/text",
        "rollout/text/encoder",
        "rollout/block",
        "rollout/block/step",
        "rollout/block/output",
        "rollout/recache",
    ]


def test_the_host_has_a_mean_of_its_own():
    slow = Sample(("block",), 0, 100, 0, 10)
    fast = Sample(("block",), 100, 100, 10, 20)
    row = statistics([slow, fast])[0]
    assert (row.mean_ms, row.host_mean_ms) == (100, 15)


def test_parts_of_layers_are_summed_per_pass_and_told_apart_by_kind_of_pass():
    samples = []
    for step in ("step 1000", "step 500", "context"):
        samples.append(sample(f"block/{step}", 99))
        for layer in range(2):
            scale = 10 if step == "context" else 1
            inside = f"block/{step}/layer"
            samples.append(sample(inside, 9 * scale, layer=layer))
            samples += [sample(f"{inside}/RoPE", scale, layer=layer) for _ in range(2)]
            samples.append(sample(f"{inside}/FFN", (3 + layer) * scale, layer=layer))
    step, context = layer_breakdowns(samples, "layer", lambda name: name.split()[0])
    assert (step.kind, step.passes) == ("step", 2)
    assert step.parts_ms == {"RoPE": [2, 2], "FFN": [3, 4]}
    assert (context.passes, context.total_ms) == (1, 110)


def test_the_steady_state_leaves_out_the_first_blocks_and_what_is_outside_of_blocks():
    samples = [sample("rollout", 100)]
    samples += [sample("rollout/block", 10.0 * block, block=block) for block in range(1, 6)]
    rows = RolloutProfile(samples).summary(from_block=3)["regions"]
    assert [(row["path"], row["count"], row["mean_ms"]) for row in rows] == [
        (("rollout", "block"), 3, 40.0)
    ]


def test_a_step_is_named_by_the_networks_timestep():
    assert [step_name(sigma) for sigma in (1.0, 0.9375, 0.625)] == [
        "step 1000",
        "step 937.5",
        "step 625",
    ]


def events_of(trace: dict, thread: int) -> list[dict]:
    return [e for e in trace["traceEvents"] if e["ph"] == "X" and e["tid"] == thread]


def assert_nested(events: list[dict]) -> None:
    """Two events of a thread touch, or one contains the other; Perfetto drops what overlaps."""
    open_until: list[int] = []
    for event in events:
        start, end = (round(1000 * x) for x in (event["ts"], event["ts"] + event["dur"]))
        while open_until and open_until[-1] <= start:
            open_until.pop()
        assert not open_until or end <= open_until[-1], event
        open_until.append(end)


def test_the_trace_has_valid_events_that_nest(recorder, clock):
    times = np.random.default_rng(2).uniform(0, 0.3, size=600)
    recorder.open("rollout")
    for block, (a, b, c) in enumerate(times.reshape(-1, 3)):
        recorder.block = block
        recorder.open("block")
        clock.turn(a)
        recorder.open("step")
        clock.turn(b)
        recorder.swap("decode")
        clock.turn(c)
        recorder.close(recorder.close())
    recorder.unwind()
    trace = chrome_trace(recorder.samples(), process="test", has_device_clock=False)
    trace = json.loads(json.dumps(trace))
    events = events_of(trace, thread=1)
    assert len(events) == 1 + 3 * 200
    for event in events:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert event["ts"] >= 0
        assert event["dur"] >= 0
    assert_nested(events)
    total_us = 1000 * times.sum()
    assert events[0]["dur"] == pytest.approx(total_us, rel=1e-4)
    names = {e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    assert {"test", "rollout"} <= names


def test_a_device_has_a_track_of_its_own_beside_the_hosts():
    queued = Sample(("block",), start_ms=5, ms=300, host_start_ms=1, host_ms=2)
    written = Sample(("write",), 7, 4, 7, 4, track="writer")
    trace = chrome_trace([queued, written], process="test", has_device_clock=True)
    device, host, writer = (events_of(trace, thread)[0] for thread in (1, 2, 3))
    assert (device["ts"], device["dur"]) == (5000, 300_000)
    assert (host["ts"], host["dur"]) == (1000, 2000)
    assert (writer["name"], writer["ts"]) == ("write", 7000)
    assert len(events_of(trace, 2)) == 1


class FakeEvent:
    """An event of a device that stamps its own time and tells differences in float32."""

    now_ms = 0.0
    is_reading = False

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        self.ms = FakeEvent.now_ms

    def synchronize(self) -> None:
        FakeEvent.is_reading = True

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert FakeEvent.is_reading, "nobody has waited for the device"
        return float(np.float32(end.ms - self.ms))


def test_device_times_stay_exact_and_in_order_after_an_hour(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(FakeEvent, "now_ms", 0.0)
    monkeypatch.setattr(FakeEvent, "is_reading", False)
    clock = CudaClock(torch.device("cuda"))
    gaps = np.random.default_rng(3).choice([0.0, 0.0011, 0.4, 61.0, 1700.0], size=9000)
    stamps = []
    for gap in gaps:
        FakeEvent.now_ms += float(gap)
        stamps.append(clock.stamp())
    positions = clock.positions_ms(stamps[:4000])
    positions += clock.positions_ms(stamps[4000:])
    assert all(a <= b for a, b in pairwise(positions))
    expected = np.cumsum(gaps) - gaps[0]
    assert expected[-1] > 3_600_000 / 2
    # One float32 of the whole would be off by 0.25 ms here.
    assert np.abs(np.diff(positions) - gaps[1:]).max() < 2e-4
    assert np.abs(np.array(positions) - expected).max() < 0.02


def test_nvtx_ranges_are_pushed_and_popped_only_where_wanted(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", told.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: told.append("/"))
    for wanted in (True, False):
        clock = CudaClock(torch.device("cuda"), nvtx=wanted)
        clock.enter("block")
        clock.leave()
    assert told == ["block", "/"]


def test_the_allocators_peak_is_that_since_the_last_reading(monkeypatch):
    gauge = HandGauge()

    def stats(device: torch.device) -> dict[str, dict[str, dict[str, int]]]:
        allocated = {"current": gauge.allocated, "peak": gauge.peak}
        return {"allocated_bytes": {"all": allocated}, "reserved_bytes": {"all": {"current": 512}}}

    def forget(device: torch.device) -> None:
        gauge.peak = gauge.allocated

    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", stats)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forget)
    tested = memory_gauge_of(torch.device("cuda"))
    gauge.change(100)
    gauge.change(-70)
    assert tested.read() == MemoryReading(allocated=30, reserved=512, peak=100)
    assert tested.read() == MemoryReading(allocated=30, reserved=512, peak=30)


@pytest.mark.skipif(memory_gauge_of(torch.device("cpu")) is None, reason="needs /proc")
def test_resident_memory_grows_by_what_is_touched():
    # What earlier tests left behind must not be freed meanwhile.
    gc.collect()
    gauge = memory_gauge_of(torch.device("cpu"))
    before = gauge.read()
    # Straight from the system: the allocator might hand out pages that were resident already.
    with mmap.mmap(-1, 64 * 2**20) as kept:
        for page in range(0, len(kept), mmap.PAGESIZE):
            kept[page] = 1
        grown = gauge.read().allocated - before.allocated
    assert grown == pytest.approx(64 * 2**20, rel=0.1)


def test_where_the_system_does_not_tell_memory_is_not_read(monkeypatch, tmp_path):
    monkeypatch.setattr(clocks, "_STATM", tmp_path / "none")
    assert memory_gauge_of(torch.device("cpu")) is None
