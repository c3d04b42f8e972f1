"""Two results side by side: what exceeds the spread, what does not, and what cannot be compared."""

from dataclasses import replace

import numpy as np
import pytest
from made_results import ENVIRONMENT, GPU, RECIPE, changed, results

from longlive.benchmark.compare import (
    FEWEST_ITERATIONS,
    Comparison,
    compare,
    comparison_text,
    spread_interval,
)
from longlive.benchmark.results import Results
from longlive.benchmark.samples import DECODE
from longlive.benchmark.unlike import warnings


def by_title(a: Results, b: Results) -> dict[str, Comparison]:
    found = compare(a, b)
    assert len({one.title for one in found}) == len(found)
    return {one.title: one for one in found}


def with_iterations(values: list[float], name: str = "inter_frame_ms") -> Results:
    value = float(np.median(values))
    return changed(results(), name, iterations=tuple(values), value=value)


def verdict(a: list[float], b: list[float]) -> str:
    found = by_title(with_iterations(a), with_iterations(b))
    return found["inter-frame latency"].verdict


def test_a_result_does_not_differ_from_itself():
    made = results()
    for one in compare(made, made):
        assert one.verdict in ("within the spread", "no spread")
        assert one.ratio in (1, None)
    assert warnings(made, made) == []
    assert "Nothing." in comparison_text(made, made)


def test_half_the_speed_is_worse_in_times_and_in_rates():
    found = by_title(results(), results(speed=2.0))
    latency, fps = found["inter-frame latency"], found["frames per second"]
    assert latency.verdict == fps.verdict == "worse"
    assert latency.ratio == pytest.approx(2, rel=0.01)
    assert fps.ratio == pytest.approx(0.5, rel=0.01)
    assert found["peak memory"].verdict == "within the spread"
    back = by_title(results(speed=2.0), results())
    assert back["inter-frame latency"].verdict == back["frames per second"].verdict == "better"


def test_a_difference_inside_the_spread_is_none():
    a = [10.0, 10.1, 9.9, 10.2, 9.8, 10.0, 10.1]
    assert verdict(a, [value * 1.003 for value in a]) == "within the spread"
    assert verdict(a, [value * 1.1 for value in a]) == "worse"


def test_without_any_spread_the_smallest_difference_exceeds_it():
    assert verdict([10.0] * 6, [10.0] * 6) == "within the spread"
    assert verdict([10.0] * 6, [10.001] * 6) == "worse"


@pytest.mark.parametrize("short", [(4, 10), (10, 4), (1, 1)])
def test_too_few_iterations_are_no_spread(short):
    a, b = (
        [10.0 + scale + 0.1 * i for i in range(n)] for scale, n in zip((0, 9), short, strict=True)
    )
    assert verdict(a, b) == "too few"
    text = comparison_text(with_iterations(a), with_iterations(b))
    assert f"too few iterations to say ({FEWEST_ITERATIONS} on both sides)" in text


def test_single_numbers_have_no_spread():
    found = by_title(results(), changed(results(), "load_s", value=25.0))
    assert found["loading"].verdict == "no spread"
    assert found["loading"].ratio == 2


def test_a_slower_decode_is_found_in_its_part_alone():
    made = results()

    def slower(block):
        parts = {**block.parts_ms, DECODE: block.parts_ms[DECODE] * 1.2}
        return replace(block, parts_ms=parts)

    slow = replace(
        made,
        rollouts=tuple(
            replace(one, blocks=tuple(map(slower, one.blocks))) for one in made.rollouts
        ),
    )
    found = by_title(made, slow)
    decode = found["· VAE decode, per steady frame"]
    assert decode.verdict == "worse"
    assert decode.ratio == pytest.approx(1.2)
    assert found["· diffusion, per steady frame"].verdict == "within the spread"
    assert "· recache, per steady frame" not in found


def test_the_interval_is_of_the_change_of_the_median_and_always_the_same():
    a, b = [10.0, 11.0, 12.0, 13.0, 14.0], [20.0, 21.0, 22.0, 23.0, 24.0, 25.0]
    low, high = spread_interval(a, b)
    assert low < 10.5 < high
    assert (low, high) == spread_interval(a, b)
    assert 20 - 14 <= low < high <= 25 - 10
    assert spread_interval([1.0] * 5, [3.0] * 7) == (2.0, 2.0)


def test_equal_distributions_seldom_come_out_apart():
    random = np.random.default_rng(3)
    apart = 0
    for _ in range(60):
        low, high = spread_interval(random.normal(size=10), random.normal(size=10))
        apart += not low <= 0 <= high
    assert apart <= 2


def test_a_figure_of_zero_has_no_ratio_and_is_compared_all_the_same():
    none = changed(results(), "stalls", value=0.0, iterations=(0.0,) * 10)
    found = by_title(none, results())["stalls of a playout at 16 fps"]
    assert found.ratio is None
    assert found.verdict == "worse"


def test_what_could_not_be_measured_has_a_dash():
    text = comparison_text(results(), results())
    (row,) = (line for line in text.splitlines() if line.startswith("| prompt to pixel"))
    assert row.split(" | ")[1:4] == ["–", "–", "–"]


def test_figures_of_one_side_are_named():
    made = results()
    less = replace(made, figures={k: v for k, v in made.figures.items() if k != "fps"})
    assert "Only in A: `fps`." in comparison_text(made, less)
    assert "Only in B: `fps`." in comparison_text(less, made)


def test_values_ratio_and_interval_stand_in_one_row():
    a, b = results(), results(speed=2.0)
    text = comparison_text(a, b, ("one", "two"))
    (row,) = (line for line in text.splitlines() if line.startswith("| inter-frame latency |"))
    values = [made.figures["inter_frame_ms"].value for made in (a, b)]
    cells = row.split(" | ")
    assert cells[1:4] == [*(f"{value:.2f} ms" for value in values), f"{values[1] / values[0]:.3f}"]
    assert cells[4].startswith("+99.") or cells[4].startswith("+100.")
    assert "**worse**, exceeds the spread" in cells[5]
    assert "* A: `one`, base+synthetic on NVIDIA H200, synthetic weights" in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"environment": replace(ENVIRONMENT, device_name="NVIDIA H100")},
            "not the same machine or software: device name (NVIDIA H200 and NVIDIA H100)",
        ),
        ({"environment": replace(ENVIRONMENT, driver=None)}, "driver (580.1 and –)"),
        ({"environment": replace(ENVIRONMENT, torch="2.13.0")}, "torch (2.11.0 and 2.13.0)"),
        ({"environment": replace(ENVIRONMENT, longlive="9.9.9")}, "may define figures"),
        (
            {"environment": replace(ENVIRONMENT, gpu_after=replace(GPU, sm_clock_mhz=1400.0))},
            "sm clock mhz after the run differs: 1755 and 1400",
        ),
        (
            {"environment": replace(ENVIRONMENT, gpu_after=replace(GPU, throttle_reasons="0x4"))},
            "throttle reasons after the run differs",
        ),
        ({"environment": replace(ENVIRONMENT, gpu_after=None)}, "clocks of only one"),
        ({"recipe": replace(RECIPE, weights_kind="embedded")}, "different models"),
        ({"recipe": replace(RECIPE, height_px=720)}, "not the same video: height px (480 and 720)"),
        ({"recipe": replace(RECIPE, batch_size=2)}, "batch size (1 and 2)"),
        ({"complete": False, "ended": "interrupted"}, "B is incomplete (interrupted)"),
        (
            {"benchmark": {"num_output_frames": 9}},
            "not measured alike: num_output_frames (42 and 9)",
        ),
    ],
)
def test_unlike_circumstances_are_warned_of(changes, told):
    a, b = results(), results(**changes)
    found = warnings(a, b)
    assert any(told in warning for warning in found), found
    assert f"> **Warning**: {found[0]}." in comparison_text(a, b)


def test_other_definitions_are_warned_of():
    a = results()
    b = changed(a, "fps", definition="rollout_fps")
    assert "fps is defined differently" in " ".join(warnings(a, b))


def test_clocks_and_power_that_wander_a_little_are_not_warned_of():
    warmer = replace(GPU, sm_clock_mhz=1740.0, temperature_c=66.0, power_w=500.0)
    assert warnings(results(), results(environment=replace(ENVIRONMENT, gpu_after=warmer))) == []


def test_more_iterations_are_no_reason_to_warn():
    assert warnings(results(), results(iterations=12)) == []


def test_settings_that_differ_are_listed_with_both_values():
    other = replace(
        RECIPE,
        settings={"model": {**RECIPE.settings["model"], "window": 9}, "output": "elsewhere"},
        callbacks=(),
    )
    text = comparison_text(results(), results(recipe=other))
    listed = text.split("## What was set differently")[1]
    assert "| `model.window` | not set | `9` |" in listed
    assert "| `callbacks` | `CompileDenoiser` | – |" in listed
    assert "denoising_steps" not in listed
    assert "output" not in listed
