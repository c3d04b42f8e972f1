"""Each metric on numbers made by hand."""

from dataclasses import replace

import pytest
from made_rollouts import PERIOD_MS, USUAL, made_block, made_rollout

from longlive.benchmark import latency
from longlive.benchmark.definitions import DEFINITIONS
from longlive.benchmark.figures import figures_of
from longlive.benchmark.playout import play
from longlive.benchmark.provenance import StartUp
from longlive.benchmark.rollouts import Arrival, changes_of
from longlive.benchmark.samples import (
    ARRIVAL,
    CACHED,
    DECODE,
    DIFFUSION,
    LATENTS,
    OTHER,
    RECACHE,
    TEXT,
    Piece,
    PromptChange,
)

START_UP = StartUp(load_s=2.0, warm_up_s=(16.0, 6.0), weights_bytes=700)


def test_steady_blocks_are_those_from_the_fourth_on_with_no_prompt_switch_near():
    rollout = made_rollout(blocks=8, switched=(2, 5))
    assert [block.index for block in latency.steady_blocks(rollout)] == [3, 6, 7]


def test_inter_frame_latency_is_the_period_over_the_frames_of_the_block():
    blocks = [made_block(3, 0.0), made_block(4, 0.0, {**USUAL, DECODE: 300.0})]
    assert latency.inter_frame_ms(blocks) == [PERIOD_MS / 12, (PERIOD_MS + 60) / 12]


def test_frame_rates_weigh_blocks_by_their_time():
    blocks = [made_block(3, 0.0), made_block(4, 0.0, {**USUAL, DIFFUSION: 900.0})]
    assert latency.fps(blocks) == pytest.approx(24 / 2.0)
    assert latency.diffusion_fps(blocks) == pytest.approx(24 / 1.5)


def test_the_rate_of_a_whole_video_counts_all_frames_over_the_wall_clock():
    rollout = made_rollout(blocks=2, wall_ms=1500.0)
    assert latency.rollout_fps([rollout]) == pytest.approx(21 / 1.5)
    assert latency.rollout_fps([replace(rollout, wall_ms=None)]) is None
    assert latency.rollout_fps([replace(rollout, is_whole=False)]) is None


def test_the_wall_clock_is_compared_with_the_sum_of_all_parts():
    rollout = made_rollout(blocks=2)
    total = 20 + 2 * PERIOD_MS + 60
    assert latency.wall_agreement([rollout]) == [1.0]
    assert latency.wall_agreement([replace(rollout, wall_ms=1.1 * total)]) == [pytest.approx(1.1)]


def test_gaps_at_the_host_are_between_neighboring_blocks():
    late = made_block(4, 20 + 4 * PERIOD_MS, {**USUAL, DECODE: 300.0})
    rollout = made_rollout(blocks=5)
    rollout = replace(rollout, blocks=(*rollout.blocks[:4], replace(late, start_ms=2330.0)))
    first, second = latency.host_gaps_ms(rollout)
    assert first == PERIOD_MS
    assert second == late.on_host_ms - rollout.blocks[3].on_host_ms


def test_a_first_frame_consists_of_all_that_happens_before_it():
    split = latency.first_frame(made_rollout())
    assert split.total_ms == 20 + 60 + 400 + 240 + 2 + 1
    assert split.parts_ms == {
        "initialization": 20.0,
        "text encoding": 60.0,
        "recache": 0.0,
        "diffusion": 400.0,
        "VAE decode": 240.0,
        "copy to host": 2.0,
        "other": 1.0,
    }
    assert latency.first_frame(replace(made_rollout(), blocks=())) is None


def test_a_switch_from_a_border_lasts_until_its_first_frames_are_on_the_host():
    (split,) = latency.switches_from_border(made_rollout(switched=(5,)))
    assert split.total_ms == 60 + 190 + 400 + 240 + 2 + 1
    assert split.parts_ms[RECACHE] == 190
    assert sum(split.parts_ms.values()) == split.total_ms


def test_a_switch_adds_less_what_it_spares_the_block_before_it():
    made = made_rollout(switched=(5,))
    spared = replace(made.blocks[4], end_ms=made.blocks[4].end_ms - 100)
    rollout = replace(made, blocks=(*made.blocks[:4], spared, *made.blocks[5:]))
    assert latency.switches_added_ms(rollout) == [150.0]
    # After another switch the block before is none to compare.
    twice = replace(
        rollout, blocks=tuple(replace(b, switches=b.index in (4, 5)) for b in rollout.blocks)
    )
    assert latency.switches_added_ms(twice)[1] == 250.0


def test_a_switch_adds_what_its_block_takes_longer_than_the_median_of_its_rollout():
    assert latency.switches_added_ms(made_rollout(switched=(5,))) == [250.0]
    assert latency.switches_added_ms(made_rollout(switched=(2, 5))) == [250.0]
    assert latency.switches_added_ms(made_rollout(blocks=3, switched=(2,))) == []


def test_older_literature_divides_by_latent_frames():
    blocks = [made_block(3, 0.0)]
    assert latency.per_latent_frame_ms(blocks) == [PERIOD_MS / 3]
    assert latency.diffusion_per_latent_frame_ms(blocks) == [500.0 / 3]
    assert latency.first_latents_ms([made_rollout()]) == [400.0 / 3]


def test_a_playout_waits_for_late_frames_and_never_catches_up():
    # Due at 0, 100, 200: the third is 50 ms late, and so is everything after it, unseen.
    playout = play([0.0, 90.0, 250.0, 340.0, 350.0], fps=10)
    assert playout.gaps_ms == (100.0, 150.0, 100.0, 100.0)
    assert (playout.stalls, playout.stalled_ms) == (1, 50.0)


def test_a_playout_of_frames_that_are_there_in_time_does_not_stall():
    playout = play([0.0] * 9 + [562.5] * 12 + [1312.5] * 12)
    assert (playout.stalls, playout.stalled_ms) == (0, 0.0)
    assert set(playout.gaps_ms) == {62.5}


def test_frames_of_a_block_arrive_together_and_a_slow_block_is_one_stall():
    # Nine frames play for 562.5 ms and the next block comes 750 - 60 = 690 ms after the first.
    rollout = made_rollout(blocks=2)
    playout = latency.playout_of(rollout)
    assert playout.stalls == 1
    assert playout.stalled_ms == pytest.approx(rollout.blocks[1].on_host_ms - 723 - 562.5)


def test_frames_that_come_in_pieces_count_from_the_first_piece():
    first = made_rollout(switched=(5,)).blocks[5]
    pieces = (Piece(1, 30.0, 0.5, first.start_ms + 700.0), Piece(11, 240.0, 2.0, first.on_host_ms))
    # Decoding ran beside the next block: the border was 40 ms before the end of the frames.
    block = replace(first, pieces=pieces, border_ms=first.start_ms - 40.0)
    rollout = replace(made_rollout(), blocks=(block,))
    (switch,) = latency.switches_from_border(rollout)
    assert switch.total_ms == pytest.approx(740)
    assert switch.parts_ms[DECODE] == 30
    assert switch.parts_ms[OTHER] == pytest.approx(740 - 60 - 190 - 400 - 30 - 0.5)
    playout = latency.playout_of(rollout)
    assert len(playout.gaps_ms) == 11
    assert playout.stalls == 1
    (change,) = changes_of([(Arrival(5, 0.0, "a"), first.start_ms)], [block])
    assert change.prompt_to_pixel_ms == 700


def test_prompts_at_random_moments_are_matched_with_the_blocks_at_which_they_acted():
    blocks = made_rollout(blocks=12, switched=(3, 7, 11)).blocks
    asked = [(Arrival(3, 0.0, "a"), 2000.0), (Arrival(6, 0.9, "b"), 5000.0)]
    first, second = changes_of(asked, blocks)
    assert (first.acted_block, second.acted_block) == (3, 7)
    assert second.prompt_to_pixel_ms == blocks[7].on_host_ms - 5000.0


def test_a_prompt_that_never_acted_is_no_sample():
    blocks = made_rollout(blocks=6).blocks
    assert changes_of([(Arrival(3, 0.5, "a"), 2000.0)], blocks) == ()


# All of them together.


@pytest.fixture
def figures():
    change = PromptChange(block=3, share=0.5, requested_ms=100.0, acted_block=4, on_host_ms=900.0)
    rollouts = [
        made_rollout(switched=(5,)),
        made_rollout(switched=(5,), iteration=1),
        made_rollout(blocks=1, kind=CACHED),
        made_rollout(kind=ARRIVAL, changes=(change,)),
    ]
    return figures_of(rollouts, START_UP)


def test_every_figure_has_a_definition_and_the_unit_of_it(figures):
    assert list(figures) == list(DEFINITIONS)
    for name, figure in figures.items():
        assert (figure.definition, figure.unit) == (name, DEFINITIONS[name].unit)
        assert figure.value is not None


def test_figures_are_those_of_the_samples(figures):
    values = {name: figure.value for name, figure in figures.items()}
    assert values["inter_frame_ms"] == 62.5
    assert values["fps"] == pytest.approx(16)
    assert values["diffusion_fps"] == pytest.approx(24)
    assert values["diffusion_ms"] == 500
    assert values["decode_ms"] == 240
    assert values["jitter_p99"] == values["jitter_max"] == 1
    assert values["host_gap_ms"] == pytest.approx(PERIOD_MS)
    assert values["first_frame_cold_ms"] == 723
    assert values["switch_border_ms"] == 893
    assert values["switch_added_ms"] == 250
    assert values["prompt_to_pixel_ms"] == 800
    assert values["peak_memory_bytes"] == 2007
    assert values["reserved_memory_bytes"] == 3000
    assert values["weights_memory_bytes"] == 700
    assert values["load_s"] == 2
    assert values["warm_up_s"] == 22
    # The median rollout takes 20 + 60 + 8 * 750 + 250 ms.
    assert values["compile_s"] == pytest.approx(16 - 6.33)
    assert values["wall_agreement"] == 1


def test_diffusion_beside_a_decoder_is_no_figure_and_that_of_latents_only_rollouts_is():
    # The decode of a block runs beside the passes of the next one, and both take longer.
    shared = {**USUAL, DIFFUSION: 600.0, DECODE: 300.0, OTHER: -250.0}
    plain = made_rollout()
    blocks = tuple(made_block(b.index, b.start_ms, shared) for b in plain.blocks)
    plain = replace(plain, blocks=blocks)
    quiet = {DIFFUSION: 400.0, "context update": 100.0}
    alone = replace(
        plain,
        kind=LATENTS,
        blocks=tuple(made_block(b.index, 500.0 * b.index, quiet) for b in plain.blocks),
    )
    names = ("diffusion_fps", "diffusion_ms", "literature_diffusion_ms_per_latent_frame")
    names += ("literature_diffusion_fps", "literature_first_block_latent_ms")
    found = figures_of([plain], START_UP)
    for name in names:
        assert found[name].value is None
        assert "decoded beside the transformer" in found[name].reason
    assert found["fps"].value is not None
    found = figures_of([plain, alone], START_UP)
    assert found["diffusion_ms"].value == 500
    assert found["diffusion_fps"].value == pytest.approx(24)
    assert found["literature_diffusion_fps"].value == pytest.approx((9 + 7 * 12) / 4.0)
    assert found["literature_first_block_latent_ms"].value == pytest.approx(400 / 3)
    assert found["decode_ms"].value == 300
    assert found["block_period_ms"].value == PERIOD_MS + 2


def test_components_add_up_to_the_mean_of_their_figure(figures):
    with_parts = [figure for figure in figures.values() if figure.components]
    assert len(with_parts) == 5
    for figure in with_parts:
        assert sum(figure.components.values()) == pytest.approx(figure.distribution.mean)
    assert set(figures["block_period_ms"].components).isdisjoint({TEXT, RECACHE})
    assert figures["block_period_ms"].components[OTHER] == 8


def test_the_spread_between_iterations_is_kept(figures):
    assert figures["inter_frame_ms"].iterations == (62.5, 62.5)
    assert figures["inter_frame_ms"].distribution.count == 6


def test_jitter_sees_one_slow_block():
    rollout = made_rollout(blocks=13)
    slow = replace(rollout.blocks[-1], end_ms=rollout.blocks[-1].start_ms + 2 * PERIOD_MS)
    found = figures_of([replace(rollout, blocks=(*rollout.blocks[:-1], slow))], START_UP)
    assert found["jitter_max"].value == 2
    assert 1.8 < found["jitter_p99"].value < 2


def test_what_could_not_be_measured_says_why():
    found = figures_of([made_rollout(blocks=3)], StartUp(1.0, (), None))
    missing = {name for name, figure in found.items() if figure.value is None}
    assert {"fps", "jitter_p99", "switch_border_ms", "prompt_to_pixel_ms", "warm_up_s"} <= missing
    assert {"first_frame_cold_ms", "load_s", "literature_diffusion_fps"}.isdisjoint(missing)
    assert all(found[name].reason for name in missing)
    assert not any(found[name].reason for name in set(found) - missing)
