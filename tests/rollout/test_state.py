"""What may be asked for, and what one denoiser call is told."""

from dataclasses import replace

import pytest
import torch
from nano import CONFIG, CPU, GEOMETRY, SPEC, spec

from longlive.attention.rope import rotate, turn
from longlive.errors import UserError
from longlive.rollout.state import RolloutState, without_dropped


def state_of(**changes: object) -> RolloutState:
    return RolloutState.allocate(spec(**changes), CONFIG, torch.float32, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_frames": 5}, "5 latent frames are not whole blocks of 2: .* latent_frames to 6"),
        ({"latent_frames": 0}, "set latent_frames to 2"),
        ({"latent_frames": -3}, "set latent_frames to 2"),
        ({"window_latent_frames": 3}, "set window_latent_frames to at least 4"),
        ({"sink_latent_frames": 3}, "set sink_latent_frames to at most 2"),
        ({"sink_latent_frames": -1}, "cannot be negative"),
        (
            {"latent_frames": None, "window_latent_frames": None, "positions": "relative"},
            "without an end needs a window: set window_latent_frames",
        ),
        ({"latent_frames": 1024}, "absolute positions end at 1023"),
        ({"latent_frames": 1026}, "absolute positions end at 1023 .* set positions to relative"),
        ({"cached_latent_frames": 3}, "a cache of 3 latent frames is smaller than the window"),
        ({"latent_frames": None}, "without an end was asked for: set positions to relative"),
        ({"recached_latent_frames": 0}, "rebuilds nothing: set recaches to false"),
        ({"recached_latent_frames": -2}, "rebuilds nothing: set recaches to false"),
        ({"recached_latent_frames": 3}, "not whole blocks of 2: set recached_latent_frames to 4"),
        ({"recached_latent_frames": 8}, "larger than the window of 6: leave recached_latent_fr"),
    ],
)
def test_a_rollout_that_cannot_work_is_a_user_error_that_names_the_setting(changes, message):
    with pytest.raises(UserError, match=message) as error:
        replace(SPEC, **changes).check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"latent_frames": 1022},
        {"cached_latent_frames": 30},
        {"latent_frames": 2000, "positions": "relative"},
        {"latent_frames": None, "positions": "relative"},
        {"window_latent_frames": None},
        {"window_latent_frames": 4},
        {"sink_latent_frames": 0},
    ],
)
def test_a_rollout_that_can_work_passes_its_check(changes):
    asked = replace(SPEC, **changes)
    assert asked.check() is asked


def test_three_latent_frames_a_block_end_at_1023_with_absolute_positions():
    geometry = replace(GEOMETRY, block_latent_frames=3)
    longest = replace(SPEC, geometry=geometry, latent_frames=1023)
    assert longest.check().blocks == 341
    with pytest.raises(UserError, match="set positions to relative"):
        replace(longest, latent_frames=1026).check()


def test_a_spec_counts_blocks_slots_and_the_network_s_batch():
    assert spec().blocks == 8
    assert spec(latent_frames=None, positions="relative").blocks is None
    assert spec().slots == 6
    assert spec(window_latent_frames=None).slots == 16
    assert spec(batch=3).network_batch == 3
    assert spec(batch=3, guidance=5.0).network_batch == 6


def test_guidance_doubles_the_cache_and_nothing_else():
    assert state_of(guidance=3.0, batch=2).cache.k.shape[1] == 4
    assert spec(guidance=3.0, batch=2).geometry.block_shape(2)[0] == 2


@pytest.mark.parametrize(("window", "kept"), [(6, 3), (7, 4), (None, 8)])
def test_the_clean_latents_that_are_kept_cover_the_window(window, kept):
    assert state_of(window_latent_frames=window).recent.maxlen == kept


def test_a_misspelled_attribute_raises():
    with pytest.raises(AttributeError):
        state_of().blok_index = 1


def inputs_at(block_index: int, **changes: object):
    state = state_of(**changes)
    for index in range(block_index):
        state.block_index = index
        state.window.commit(state.plan_block())
    state.block_index = block_index
    return state.step_inputs(state.plan_block(), 0.8333333134651184)


def test_absolute_positions_are_the_latent_frames_own_indices():
    inputs = inputs_at(5)
    assert inputs.positions_F.tolist() == [10, 11]
    assert inputs.timestep_BF.tolist() == [[833.3333129882812]]
    assert inputs.timestep_BF.dtype == torch.float32
    assert inputs.dropped == 0
    assert not inputs.keys_only


def test_a_window_that_wraps_around_the_ring_is_written_in_time_order():
    # Slots 2 to 4 are the ring; the third block took 4 and 2, so 3 is the oldest.
    assert inputs_at(2, window_latent_frames=5).write_slots_F.tolist() == [4, 2]
    assert inputs_at(3, window_latent_frames=5).write_slots_F.tolist() == [3, 4]


def test_relative_positions_move_the_sink_and_nothing_else():
    state = state_of(positions="relative")
    state.cache.k.normal_()
    written = state.cache.k.clone()
    for index, position in enumerate([0, 0, 0, 2, 4]):
        state.block_index = index
        plan = state.plan_block()
        state.place_sink(plan)
        assert state.step_inputs(plan, 1.0).positions_F.tolist() == [2 * index, 2 * index + 1]
        assert state.cache.sink.position == position
        state.window.commit(plan)
    by = turn(4, written.shape[-1], torch.float32)
    torch.testing.assert_close(state.cache.k[:, :, :2], rotate(written[:, :, :2], by))
    assert torch.equal(state.cache.k[:, :, 2:], written[:, :, 2:])


@pytest.mark.parametrize(("block_index", "read"), [(0, 2), (1, 4), (2, 6), (3, 6), (7, 6)])
def test_what_is_read_is_a_number_of_leading_slots(block_index, read):
    assert inputs_at(block_index).read == read


def test_a_call_that_stores_nothing_has_no_slots():
    state = state_of()
    assert state.slots_on_device(()).tolist() == []
    assert state.slots_on_device(()).dtype == torch.int64


def test_leaving_out_what_is_dropped_keeps_the_rest_of_a_plan():
    state = state_of()
    for index in range(5):
        state.block_index = index
        state.window.commit(state.plan_block())
    plan = state.window.plan(4, 6)
    short = without_dropped(plan)
    assert (plan.dropped, plan.start, plan.frames) == (2, 4, 6)
    assert (short.dropped, short.start, short.frames) == (0, 6, 4)
    assert short.sink_position == plan.sink_position == 4
    assert short.write_slots == plan.write_slots
    assert short.read_slots == plan.read_slots
