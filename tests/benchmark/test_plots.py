"""What is drawn is what was measured, in files that are the same every time."""

from dataclasses import replace
from statistics import median

import pytest
from made_results import (
    BLOCKS,
    CEILINGS,
    ENVIRONMENT,
    GIB,
    SWITCH,
    ablation,
    results,
    rollout,
    steady,
)

from longlive.benchmark.plot_ablation import plot_ablation
from longlive.benchmark.plot_budget import plot_time_budget
from longlive.benchmark.plot_latency import plot_inter_frame_latency
from longlive.benchmark.plot_layers import plot_layers
from longlive.benchmark.plot_memory import plot_memory
from longlive.benchmark.plot_roofline import plot_roofline
from longlive.benchmark.plot_style import LAYER_COLORS, PART_COLORS, UNIT_COLORS, save, style
from longlive.benchmark.plots import PLOTS, ablation_plot

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _in_style():
    with style():
        yield


def texts(figure) -> list[str]:
    """Every text of a figure, axes included."""
    from matplotlib.text import Text

    return [found.get_text() for found in figure.findobj(Text) if found.get_text()]


def line(axes, label: str):
    (found,) = (one for one in axes.get_lines() if str(one.get_label()).startswith(label))
    return found


@pytest.mark.parametrize("name", PLOTS)
def test_a_picture_says_what_is_measured_on_which_machine_with_which_weights(name):
    figure = PLOTS[name](results(iterations=2))
    title, context = (found.get_text() for found in figure.texts[:2])
    assert len(title) > 20
    assert "NVIDIA H200" in context
    assert "synthetic weights" in context
    assert "INCOMPLETE" not in context
    broken = PLOTS[name](results(iterations=2, complete=False))
    assert "INCOMPLETE" in broken.texts[1].get_text()


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        (
            "inter_frame_latency",
            [("time since the request, s", "ms per frame"), ("ms per frame", "blocks")],
        ),
        ("time_budget", [("ms per frame", ""), ("block", "ms per frame")]),
        ("layers", [("layer", "ms per pass and layer"), ("ms per pass", "")] * 2),
        ("roofline", [("FLOPs per byte", "TFLOP/s"), ("share of the measured time", "")]),
        ("memory", [("time in the rollouts, s", "GiB")]),
    ],
)
def test_axes_are_labelled_with_their_units(name, labels):
    drawn = PLOTS[name](results(iterations=2)).axes
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in drawn] == labels


@pytest.mark.parametrize("name", PLOTS)
def test_nothing_measured_is_nothing_drawn(name):
    empty = results(rollouts=(), breakdown=None, work=())
    assert PLOTS[name](empty) is None


def test_every_point_of_the_latency_is_a_period_over_its_frames():
    made = results(iterations=3)
    time, spread = plot_inter_frame_latency(made).axes
    drawn = line(time, "period, median")
    each = [rollout(i).blocks for i in range(3)]
    for index in range(BLOCKS):
        periods = [blocks[index].period_ms / blocks[index].frames for blocks in each]
        assert drawn.get_ydata()[index] == pytest.approx(median(periods))
        ends = [blocks[index].end_ms / 1000 for blocks in each]
        assert drawn.get_xdata()[index] == pytest.approx(median(ends))
    switch = line(time, "prompt switch").get_xdata()[0]
    assert switch == pytest.approx(median(blocks[SWITCH].start_ms / 1000 for blocks in each))
    assert sum(bar.get_height() for bar in spread.patches) == sum(
        len(steady(rollout(i))) for i in range(3)
    )
    p50 = made.figures["inter_frame_ms"].distribution.p50
    assert line(spread, "p50").get_xdata()[0] == pytest.approx(p50)


def test_the_line_of_real_time_is_left_out_where_it_would_squeeze_the_rest():
    assert "16 fps" in texts(plot_inter_frame_latency(results(iterations=1)))
    assert "16 fps" not in texts(plot_inter_frame_latency(results(iterations=1, speed=0.1)))


def test_bars_of_the_budget_add_up_to_the_time_of_a_frame():
    made = results(iterations=3)
    sorts, places = plot_time_budget(made).axes
    totals = {}
    for bar in sorts.patches:
        row = round(bar.get_y(), 3)
        totals[row] = totals.get(row, 0.0) + bar.get_width()
    blocks = [steady(rollout(i)) for i in range(3)]
    flat = [block for one in blocks for block in one]
    expected = sum(block.period_ms for block in flat) / (12 * len(flat))
    assert sorted(totals.items())[1][1] == pytest.approx(expected)
    at_switch = [
        bar.get_height()
        for bar in places.patches
        if bar.get_x() < SWITCH < bar.get_x() + bar.get_width()
    ]
    switched = [rollout(i).blocks[SWITCH].period_ms / 12 for i in range(3)]
    assert sum(at_switch) == pytest.approx(sum(switched) / 3)


def test_bars_of_the_layers_are_the_times_of_their_parts():
    made = results(iterations=1)
    figure = plot_layers(made)
    assert len(figure.axes) == 4
    layered, sums = figure.axes[:2]
    rows = [row for row in made.breakdown.layers if row.pass_kind == "denoising step"]
    total = sum(sum(row.layers_ms) for row in rows)
    assert sum(bar.get_height() for bar in layered.patches) == pytest.approx(total)
    assert sum(bar.get_width() for bar in sums.patches) == pytest.approx(total)
    assert sums.get_title(loc="left") == f"all layers: {total:.4g} ms"


def test_points_of_the_roofline_are_rate_over_intensity_of_what_was_timed():
    made = results(iterations=1)
    roof, shares = plot_roofline(made).axes
    timed = [row for row in made.work if row.measured_ms]
    points = [
        one for one in roof.get_lines() if one.get_marker() == "o" and len(one.get_xdata()) == 1
    ]
    for row, point in zip(timed, points, strict=True):
        assert point.get_xdata()[0] == pytest.approx(row.flops / row.moved_bytes)
        assert point.get_ydata()[0] == pytest.approx(row.flops / (row.measured_ms / 1e3) / 1e12)
    lengths = [bar.get_width() for bar in shares.patches]
    assert lengths == [pytest.approx(row.floor_ms / row.measured_ms) for row in timed]
    flats = [max(one.get_ydata()) for one in roof.get_lines() if len(one.get_xdata()) == 3]
    assert sorted(flats) == [CEILINGS["attention_tflops"], CEILINGS["gemm_tflops"]]


def test_without_ceilings_the_roofline_shows_rates_alone():
    made = results(iterations=1, ceilings=None)
    bare = replace(made, work=tuple(replace(row, floor_ms=None) for row in made.work))
    figure = plot_roofline(bare)
    assert "no ceilings" in figure.texts[0].get_text()
    assert not [one for one in figure.axes[0].get_lines() if len(one.get_xdata()) > 1]
    timed = [row.measured_ms for row in made.work if row.measured_ms]
    assert [bar.get_width() for bar in figure.axes[1].patches] == timed


def test_memory_runs_through_all_rollouts():
    made = results(iterations=3)
    (axes,) = plot_memory(made).axes
    reserved = line(axes, "reserved")
    assert list(reserved.get_ydata()) == [26.0] * (3 * BLOCKS)
    times = list(reserved.get_xdata())
    assert times == sorted(times)
    assert times[-1] == pytest.approx(sum(rollout(i).blocks[-1].end_ms for i in range(3)) / 1000)
    assert line(axes, "weights").get_ydata()[0] == 14.0
    peak = max(block.memory.peak_bytes for block in rollout(0).blocks) / GIB
    assert max(line(axes, "peak").get_ydata()) == pytest.approx(peak)


def test_memory_that_was_not_read_is_not_drawn():
    made = results(iterations=1)
    one = made.rollouts[0]
    blind = replace(one, blocks=tuple(replace(block, memory=None) for block in one.blocks))
    assert plot_memory(replace(made, rollouts=(blind,))) is None


def test_the_same_results_give_the_same_bytes(tmp_path):
    written = [
        [path.read_bytes() for path in save(plot_memory(results(iterations=2)), tmp_path / name)]
        for name in ("a", "b")
    ]
    assert written[0] == written[1]
    assert all(
        b"<dc:date>" not in data and b"matplotlib version" not in data for data in written[0]
    )


def test_one_block_of_one_rollout_is_enough_for_a_picture():
    one = rollout(0, blocks=1)
    made = results(iterations=1, rollouts=(one,))
    for name in ("inter_frame_latency", "time_budget", "memory"):
        assert PLOTS[name](made).axes


def test_whoever_draws_keeps_their_settings(tmp_path):
    matplotlib.rcParams["font.size"] = 31
    backend = matplotlib.rcParams["backend"]
    with style():
        assert matplotlib.rcParams["font.size"] == 10
    assert matplotlib.rcParams["font.size"] == 31
    assert matplotlib.rcParams["backend"] == backend


@pytest.mark.parametrize("colors", [PART_COLORS, LAYER_COLORS, UNIT_COLORS])
def test_no_two_things_have_one_color(colors):
    assert len(set(colors.values())) == len(colors)


def test_an_ablation_shows_the_median_of_the_repeats_and_why_a_row_is_missing():
    made = ablation()
    figure = plot_ablation(made)
    for axes, name in zip(figure.axes, made.figures, strict=True):
        scale = GIB if name.endswith("bytes") else 1
        medians = [median(row.samples[name]) / scale for row in made.rows if row.samples[name]]
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(medians)
    assert " not measured: no FP8 on this device" in texts(figure)
    ratio = 18.3 / 16.8 - 1
    assert any(text.endswith(f"{100 * ratio:+.0f} %") for text in texts(figure.axes[0]))


def test_an_ablation_becomes_two_files_and_none_if_nothing_was_measured(tmp_path):
    files = ablation_plot(ablation(), tmp_path / "ablation.png")
    assert files == [tmp_path / "ablation.png", tmp_path / "ablation.svg"]
    assert all(path.stat().st_size > 1000 for path in files)
    nothing = ablation(rows=(ablation().rows[-1],))
    assert ablation_plot(nothing, tmp_path / "none.png") == []


def test_a_processor_is_named_like_a_gpu():
    made = results(iterations=1, environment=replace(ENVIRONMENT, device_name="a CPU"))
    assert "a CPU" in plot_memory(made).texts[1].get_text()
