"""The whole judge as a metric: a fault of a clip costs the numbers that name it, and no others."""

import math
from functools import cache

import pytest
import torch

from longlive.data.shapes_world import render_clips, render_timeline
from longlive.errors import UserError
from longlive.metrics.shapes_video import VALUES, ShapesVideos
from longlive.shapes import COLOURS, SLOTS, ShapePrompt, coverage

ASKED = ShapePrompt("large", "green", "star", "moves left", "grey")
FRAMES = 93  # 8 blocks
SWITCHED = 149  # with a switch at 81
# How far a number may move before it counts as changed.
SLACK = dict.fromkeys(SLOTS, 0.0) | {
    **dict.fromkeys(("adherence", "all_five", "switch_missed"), 0.0),
    **dict.fromkeys(("adherence_first", "adherence_last"), 0.0),
    **dict.fromkeys(("drift_saturation", "drift_area", "drift_background"), 0.01),
    "flicker": 1e-3,
    "seam": 0.1,
}


def clip(asked=ASKED, seed=3, frames=FRAMES):
    return render_clips([asked], [seed], frames)[0]


def judged(frames, timeline=((0, ASKED),), truth=None):
    metric = ShapesVideos()
    metric.update(frames, timeline, truth)
    return {
        # torchmetrics makes a scalar of a list of one.
        name: value.reshape(-1).tolist() if name == "switch_lags" else float(value)
        for name, value in metric.compute().items()
    }


@cache
def perfect():
    return judged(clip(), truth=clip())


def changed(frames, truth):
    """Names of the numbers that differ from the ground truth's."""
    got, right = judged(frames, truth=truth), perfect()
    return {
        name
        for name in VALUES
        if not (got[name] == right[name] or abs(got[name] - right[name]) <= SLACK[name])
        and not (math.isnan(got[name]) and math.isnan(right[name]))
    }


def blended(radius=None, color=None, ground=None):
    """A still star; what is given runs from its first to its second value over the clip."""
    at = (torch.arange(96) + 0.5) / 96 - 0.5
    time = torch.linspace(0, 1, FRAMES)[:, None, None]
    first, last = radius or (0.18, 0.18)
    share = coverage("star", at, at[:, None], first + (last - first) * time, time * 0, 1 / 96)
    fade = time[:, None]
    start = torch.tensor(COLOURS["green"]).view(3, 1, 1)
    end = start if color is None else torch.tensor(color).view(3, 1, 1)
    first, last = ground or (0.5, 0.5)
    return torch.lerp(first + (last - first) * fade, torch.lerp(start, end, fade), share[:, None])


STILL = ShapePrompt("large", "green", "star", "stays still", "grey")


def test_ground_truth_is_perfect():
    got = perfect()
    for name in ("adherence", "all_five", *SLOTS):
        assert got[name] == 1
    assert (got["flicker"], got["seam"]) == (0, pytest.approx(1, abs=0.05))
    assert max(got[name] for name in VALUES if name.startswith("drift")) < 0.005
    assert math.isnan(got["switch_lag"])
    assert math.isnan(got["switch_missed"])


def test_a_wrong_color_costs_the_color():
    wrong = clip(ShapePrompt("large", "red", "star", "moves left", "grey"))
    assert changed(wrong, clip()) == {"colour", "adherence", "all_five"}
    assert judged(wrong)["adherence"] == pytest.approx(0.8)


def test_a_wrong_direction_costs_the_motion():
    wrong = clip(ShapePrompt("large", "green", "star", "moves up", "grey"))
    assert changed(wrong, clip()) == {"motion", "adherence", "all_five"}


def test_a_frozen_clip_costs_the_motion():
    truth = clip()
    assert changed(truth[:1].expand_as(truth), truth) == {"motion", "adherence", "all_five"}


def test_a_flickering_background_costs_flicker():
    truth = clip()
    flash = 0.02 * (torch.arange(FRAMES) % 2).view(-1, 1, 1, 1)
    assert changed((truth + flash).clamp(0, 1), truth) == {"flicker"}
    assert judged(truth + flash, truth=truth)["flicker"] == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ({"radius": (0.18, 0.16)}, "drift_area"),
        ({"color": (0.30, 0.80, 0.34)}, "drift_saturation"),
        ({"ground": (0.5, 0.58)}, "drift_background"),
    ],
)
def test_a_drifting_clip_costs_the_drift_of_what_drifts(fault, name):
    truth, drifting = blended(), blended(**fault)
    got, right = (judged(f, [(0, STILL)], truth) for f in (drifting, truth))
    assert {n for n in VALUES if abs(got[n] - right[n]) > SLACK[n]} == {name}


def test_seams_of_blocks_cost_the_seam():
    truth = clip()
    shift = torch.zeros(FRAMES, dtype=torch.long)
    for number, start in enumerate(range(9, FRAMES, 12)):
        shift[start:] = 3 * ((number + 1) % 2)
    # The background is one gray, so only the object jumps, by three pixels and back.
    jumping = torch.stack(
        [frame.roll(int(by), dims=1) for frame, by in zip(truth, shift, strict=True)]
    )
    assert changed(jumping, truth) == {"seam"}
    assert judged(jumping)["seam"] > 1.5


def test_every_prompt_of_a_video_is_judged_and_the_video_counts_once():
    other = ShapePrompt("large", "cyan", "ring", "circles", "night")
    timeline = [(0, ASKED), (81, other)]
    truth = render_timeline(timeline, 1, SWITCHED)
    got = judged(truth, timeline, truth)
    assert (got["all_five"], got["switch_missed"], got["switch_lag"]) == (1, 0, 0)
    assert got["switch_lags"] == [0]
    assert math.isnan(got["drift_area"])
    late = torch.cat([truth[:81], clip(frames=20), truth[101:]])
    assert judged(late, timeline)["switch_lags"] == [20]
    never = torch.cat([truth[:81], clip(frames=SWITCHED)[81:]])
    got = judged(never, timeline)
    assert got["switch_missed"] == 1
    assert math.isnan(got["switch_lag"])
    assert got["all_five"] == 0.5

    metric = ShapesVideos()
    metric.update(truth, timeline)
    metric.update(never, timeline)
    metric.update(clip(), [(0, ASKED)])
    assert float(metric.compute()["all_five"]) == pytest.approx((1 + 0.5 + 1) / 3)
    assert float(metric.compute()["switch_missed"]) == 0.5


def test_the_two_ends_of_a_long_video_are_judged_apart():
    asked = ShapePrompt("small", "red", "square", "stays still", "grey")
    wrong = ShapePrompt("small", "blue", "square", "stays still", "grey")
    long = torch.cat([clip(asked, frames=200), clip(wrong, frames=161)])
    metric = ShapesVideos()
    metric.update(long, [(0, asked)])
    got = metric.compute()
    assert (float(got["adherence_first"]), float(got["adherence_last"])) == (1, pytest.approx(0.8))
    assert math.isnan(judged(clip())["adherence_first"])


def test_two_ranks_together_equal_one_pass():
    other = ShapePrompt("large", "cyan", "ring", "circles", "night")
    timeline = [(0, ASKED), (81, other)]
    videos = [
        (clip(), [(0, ASKED)], clip()),
        (render_timeline(timeline, 1, SWITCHED), timeline, None),
        (clip(), [(0, other)], None),
    ]
    whole, first, second = ShapesVideos(), ShapesVideos(), ShapesVideos()
    for video in videos:
        whole.update(*video)
    first.update(*videos[0])
    second.update(*videos[1])
    second.update(*videos[2])
    first.merge_state(second)
    for name, value in whole.compute().items():
        assert first.compute()[name].dtype == torch.float64
        torch.testing.assert_close(first.compute()[name], value, equal_nan=True)


def test_eight_bit_frames_and_short_clips_are_judged_as_far_as_they_go():
    asked = ShapePrompt("small", "red", "square", "stays still", "grey")
    frames = (clip(asked, frames=9) * 255).round().byte()
    metric = ShapesVideos()
    metric.update(frames, [(0, asked)])
    got = metric.compute()
    assert float(got["shape"]) == 1
    assert float(got["motion"]) == 0  # less than two seconds show none
    assert math.isnan(got["seam"])
    with pytest.raises(UserError, match="at least 4 seconds"):
        ShapesVideos().update(clip(frames=90), [(0, ASKED), (80, ASKED)])
