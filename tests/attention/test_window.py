"""The ring of slots against a cache that is really shifted, and against the published tables."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlive.attention.window import SlotWindow, WindowPlan, check_window
from longlive.errors import UserError

ZERO = "zero"
"""What a slot holds that was never written, or was zeroed."""


@dataclass
class ShiftedCache:
    """The reference's cache: an array of slots that is shifted when a block does not fit."""

    capacity: int
    window: int
    sink: int
    evicts: bool = True
    slots: list[object] = field(default_factory=list)
    global_end: int = 0
    local_end: int = 0

    def __post_init__(self) -> None:
        self.slots = [ZERO] * self.capacity

    def call(self, start: int, rows: list[object], *, protects_sink: bool = True) -> list[object]:
        """Write a call's rows, one per latent frame, and return what its queries see."""
        n, end = len(rows), start + len(rows)
        is_recompute = end <= self.global_end and start > 0
        local_end = self.local_end + (end - self.global_end)
        if self.evicts and end > self.global_end and self.local_end + n > self.capacity:
            evicted = self.local_end + n - self.capacity
            kept = max(0, self.local_end - evicted - self.sink)
            survivors = self.slots[self.sink + evicted : self.sink + evicted + kept]
            self.slots[self.sink : self.sink + kept] = survivors
            local_end -= evicted
        first = local_end - n
        written = max(first, self.sink) if is_recompute and protects_sink else first
        self.slots[written:local_end] = rows[written - first :]
        if not is_recompute:
            self.global_end, self.local_end = end, local_end
        if self.sink == 0:
            return self.slots[max(0, local_end - self.window) : local_end]
        recent = max(self.sink, local_end - (self.window - self.sink))
        return self.slots[: self.sink] + self.slots[recent:local_end]


@dataclass
class PinnedCache:
    """Our cache: slots that change only when a plan writes them."""

    window: SlotWindow
    slots: list[object] = field(default_factory=list)
    plans: list[WindowPlan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = [ZERO] * self.window.capacity

    def call(self, start: int, rows: list[object], *, protects_sink: bool = True) -> list[object]:
        plan = self.window.plan(start, len(rows), protects_sink=protects_sink)
        for slot, row in zip(plan.write_slots, rows[plan.dropped :], strict=True):
            self.slots[slot] = row
        self.window.commit(plan)
        self.plans.append(plan)
        return [self.slots[slot] for slot in plan.read_slots]

    @property
    def logical_slots(self) -> list[object]:
        """The slots in the reference's order, as far as they are in use."""
        window = self.window
        return [self.slots[window.physical(i, window.head)] for i in range(window.filled)]


def rows_of(start: int, frames: int, name: str) -> list[object]:
    return [f"{name}{frame}" for frame in range(start, start + frames)]


@st.composite
def shapes(draw: Callable) -> tuple[int, int, int, int]:
    """Capacity, window, sink and block, the combinations that users may not ask for included."""
    sink, block = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    window = draw(st.integers(max(sink, block), 14))
    return window + draw(st.sampled_from([0, 0, 1, 5, 21])), window, sink, block


@settings(deadline=None)
@given(shapes(), st.data())
def test_the_ring_sees_and_holds_what_a_shifted_cache_would(shape, data):
    capacity, window, sink, block = shape
    theirs = ShiftedCache(capacity, window, sink)
    ours = PinnedCache(SlotWindow(capacity, window, sink))

    def both(start: int, frames: int, name: str, *, protects_sink: bool = True) -> None:
        rows = rows_of(start, frames, name)
        seen = theirs.call(start, rows, protects_sink=protects_sink)
        assert ours.call(start, rows, protects_sink=protects_sink) == seen
        assert ours.logical_slots == theirs.slots[: theirs.local_end]
        assert (ours.window.end, ours.window.filled) == (theirs.global_end, theirs.local_end)

    repeats = st.lists(st.sampled_from(["step", "recache", "revisit"]), max_size=3)
    for index, repeated in enumerate(data.draw(st.lists(repeats, min_size=1, max_size=25))):
        start, end = index * block, (index + 1) * block
        both(start, block, f"new{index}:")
        for number, call in enumerate(repeated):
            name = f"{call}{index}.{number}:"
            if call == "step":
                both(start, block, name)
            elif call == "recache":
                frames = min(data.draw(st.sampled_from([capacity, window])), end)
                protects_sink = data.draw(st.booleans())
                both(end - frames, frames, name, protects_sink=protects_sink)
            elif start > block and theirs.local_end >= 2 * block:
                both(start - block, block, name)


@settings(deadline=None)
@given(st.integers(0, 4), st.integers(1, 4), st.integers(1, 20), st.integers(1, 30))
def test_without_eviction_every_latent_frame_keeps_its_slot(sink, block, blocks, span):
    capacity = blocks * block
    theirs = ShiftedCache(capacity, min(span, capacity), min(sink, span), evicts=False)
    window = SlotWindow(capacity, min(span, capacity), min(sink, span), evicts=False)
    ours = PinnedCache(window)
    for start in range(0, capacity, block):
        for name in ("first", "second"):
            rows = rows_of(start, block, name)
            assert ours.call(start, rows) == theirs.call(start, rows)
            plan = ours.plans[-1]
            assert plan.write_slots == tuple(range(start + plan.dropped, start + block))


@settings(deadline=None)
@given(shapes(), st.integers(1, 30))
def test_a_latent_frame_stays_in_the_slot_it_was_written_to(shape, blocks):
    capacity, window, sink, block = shape
    if window < sink + block:
        return
    ours = PinnedCache(SlotWindow(capacity, window, sink))
    slot_of: dict[object, int] = {}
    for start in range(0, blocks * block, block):
        rows = rows_of(start, block, "frame")
        ours.call(start, rows)
        slot_of.update(zip(rows, ours.plans[-1].write_slots, strict=True))
        for slot, row in enumerate(ours.slots):
            assert row == ZERO or slot_of[row] == slot
        assert ours.slots[:sink] == rows_of(0, sink, "frame")[: start + block] + [ZERO] * max(
            0, sink - start - block
        )


def span(*ranges: tuple[int, int]) -> list[int]:
    """Latent frames of inclusive ranges, as the published tables write them."""
    return [frame for first, last in ranges for frame in range(first, last + 1)]


# Block start: latent frames that are attended, for windows of 12, 9 and 6 with a sink of 3.
ATTENDED = {
    0: (span((0, 2)), span((0, 2)), span((0, 2))),
    3: (span((0, 5)), span((0, 5)), span((0, 5))),
    6: (span((0, 8)), span((0, 8)), span((0, 2), (6, 8))),
    9: (span((0, 11)), span((0, 2), (6, 11)), span((0, 2), (9, 11))),
    12: (span((0, 2), (6, 14)), span((0, 2), (9, 14)), span((0, 2), (12, 14))),
    15: (span((0, 2), (9, 17)), span((0, 2), (12, 17)), span((0, 2), (15, 17))),
    30: (span((0, 2), (24, 32)), span((0, 2), (27, 32)), span((0, 2), (30, 32))),
}


@pytest.mark.parametrize(
    ("capacity", "window", "column"),
    [(12, 12, 0), (9, 9, 1), (6, 6, 2), (33, 12, 0)],
    ids=["12", "9", "6", "training"],
)
def test_the_attended_latent_frames_are_those_of_the_published_table(capacity, window, column):
    cache = PinnedCache(SlotWindow(capacity, window, 3))
    for start in range(0, 42, 3):
        for _ in range(5):  # four denoising steps and the context update
            seen = cache.call(start, list(range(start, start + 3)))
            if start in ATTENDED:
                assert seen == ATTENDED[start][column]


def test_without_a_sink_the_window_is_the_most_recent_latent_frames():
    cache = PinnedCache(SlotWindow(12, 12, 0))
    seen = [cache.call(start, list(range(start, start + 3))) for start in range(0, 15, 3)]
    assert seen[4] == span((3, 14))


@pytest.mark.parametrize(("capacity", "first"), [(12, 12), (9, 9), (6, 6), (33, 33)])
def test_the_first_eviction_is_when_the_slots_run_out(capacity, first):
    cache = PinnedCache(SlotWindow(capacity, min(capacity, 12), 3))
    for start in range(0, first + 3, 3):
        cache.call(start, [0, 1, 2])
        fresh = (start, start + 1, start + 2)
        assert cache.plans[-1].write_slots == (fresh if start < first else (3, 4, 5))


def renewed(*ranges: tuple[int, int]) -> list[object]:
    return [f"R{frame}" for frame in span(*ranges)]


# Switch at, sink protected: keys the recache sees, logical slots afterwards, keys the next block
# sees. A string is a latent frame under the new prompt, a number one under the old prompt.
RECACHES = {
    (9, True): (renewed((0, 8)), renewed((0, 8)), renewed((0, 8))),
    (9, False): (renewed((0, 8)), renewed((0, 8)), renewed((0, 8))),
    (12, True): (renewed((0, 11)), renewed((0, 11)), renewed((0, 2), (6, 11))),
    (12, False): (renewed((0, 11)), renewed((0, 11)), renewed((0, 2), (6, 11))),
    (15, True): (
        [0, 1, 2, *renewed((6, 14))],
        [0, 1, 2, *renewed((6, 14))],
        [0, 1, 2, *renewed((9, 14))],
    ),
    (15, False): (renewed((3, 14)), renewed((3, 14)), renewed((3, 5), (9, 14))),
    (39, True): (
        [0, 1, 2, *renewed((30, 38))],
        [0, 1, 2, *renewed((30, 38))],
        [0, 1, 2, *renewed((33, 38))],
    ),
    (39, False): (renewed((27, 38)), renewed((27, 38)), renewed((27, 29), (33, 38))),
}


@pytest.mark.parametrize(("switch", "keeps_sink"), RECACHES)
def test_a_recache_leaves_the_window_of_the_published_table(switch, keeps_sink):
    during, after, following = RECACHES[switch, keeps_sink]
    cache = PinnedCache(SlotWindow(12, 12, 3))
    for start in range(0, switch, 3):
        cache.call(start, list(range(start, start + 3)))
    frames = min(12, switch)
    rows = renewed((switch - frames, switch - 1))
    assert cache.call(switch - frames, rows, protects_sink=keeps_sink) == during
    assert cache.plans[-1].dropped == (3 if keeps_sink and switch > 12 else 0)
    assert cache.logical_slots == after
    own = list(range(switch, switch + 3))
    for _ in range(2):
        assert cache.call(switch, own) == [*following, *own]


def test_a_training_recache_over_a_zeroed_sink_sees_the_zeros():
    cache = PinnedCache(SlotWindow(33, 12, 3))
    for start in range(0, 39, 3):
        cache.call(start, list(range(start, start + 3)))
    cache.slots = [ZERO] * 33
    seen = cache.call(18, renewed((18, 38)))
    assert seen == [ZERO] * 3 + renewed((30, 38))
    assert cache.call(39, [39, 40, 41]) == [ZERO] * 3 + renewed((33, 38)) + [39, 40, 41]


def test_a_training_recache_of_everything_rewrites_the_sink():
    cache = PinnedCache(SlotWindow(33, 12, 3))
    for start in range(0, 21, 3):
        cache.call(start, list(range(start, start + 3)))
    cache.slots = [ZERO] * 33
    assert cache.call(0, renewed((0, 20))) == renewed((0, 2), (12, 20))


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(1, 3), st.integers(0, 9), st.integers(1, 30))
def test_with_the_sink_moved_up_positions_go_from_the_oldest_to_the_newest(
    sink, block, more, blocks
):
    sink = min(sink, block)
    window = sink + block + more
    cache = PinnedCache(SlotWindow(window, window, sink))
    for start in range(0, blocks * block, block):
        seen = cache.call(start, list(range(start, start + block)))
    at = cache.plans[-1].sink_position
    positions = [at + place if place < sink else frame for place, frame in enumerate(seen)]
    assert positions == list(range(at, at + len(seen)))
    assert at == max(0, blocks * block - window)


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(1, 3), st.integers(0, 9), st.integers(1, 30))
def test_a_cache_as_large_as_the_window_is_always_read_as_a_prefix(sink, block, more, blocks):
    sink = min(sink, block)
    window = sink + block + more
    cache = PinnedCache(SlotWindow(window, window, sink))
    for start in range(0, blocks * block, block):
        cache.call(start, list(range(start, start + block)))
        assert cache.plans[-1].read_prefix == min(window, start + block)


def test_a_gap_between_sink_and_recent_latent_frames_is_not_a_prefix():
    window = SlotWindow(33, 12, 3)
    for start in range(0, 15, 3):
        plan = window.plan(start, 3)
        window.commit(plan)
    assert plan.read_prefix is None
    assert plan.read_slots == (0, 1, 2, *range(6, 15))


def test_a_plan_changes_nothing_until_it_is_committed():
    window = SlotWindow(6, 6, 2)
    assert window.plan(0, 2) == window.plan(0, 2)
    window.commit(window.plan(0, 2))
    assert window.plan(2, 2).write_slots == (2, 3)


@pytest.mark.parametrize(
    ("window", "sink", "block"), [(12, 3, 3), (6, 3, 3), (3, 0, 3), (None, 3, 3)]
)
def test_a_window_with_room_for_sink_and_block_is_accepted(window, sink, block):
    check_window(window, sink, block)


@pytest.mark.parametrize(
    ("window", "sink", "block", "message"),
    [
        (12, -1, 3, "cannot be negative, got -1"),
        (12, 4, 3, "set sink_latent_frames to at most 3"),
        (None, 4, 3, "set sink_latent_frames to at most 3"),
        (5, 3, 3, "set window_latent_frames to at least 6"),
        (0, 0, 3, "set window_latent_frames to at least 3"),
    ],
)
def test_a_window_that_cannot_work_is_a_user_error_that_names_the_fix(window, sink, block, message):
    with pytest.raises(UserError, match=message):
        check_window(window, sink, block)
