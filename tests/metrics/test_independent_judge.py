"""The judge agrees with one written from the description alone; both read ground truth."""

from functools import cache

import numpy as np
import pytest
import torch
from check_judge import main as check_judge
from independent_judge import SLOTS, IndependentJudge, drift, restlessness, seam, switch_lag

from longlive.data.shapes_world import render_clips, render_timeline
from longlive.metrics.shapes_judge import read_clip
from longlive.metrics.shapes_judge import switch_lag as our_lag
from longlive.metrics.shapes_stability import background_change
from longlive.metrics.shapes_stability import drift as our_drift
from longlive.metrics.shapes_stability import seam as our_seam
from longlive.shapes import OUTLINES, Round, ShapePrompt, all_prompts

AGREEMENT = 0.98
FRAMES = 33


@pytest.fixture(scope="module")
def judge():
    return IndependentJudge(96)


def pixels(frames_TCHW):
    return frames_TCHW.permute(0, 2, 3, 1).numpy().astype(np.float64)


def faults():
    """What generated clips look like when they go wrong."""
    source = torch.Generator().manual_seed(0)
    yield "as it is", lambda f: f
    yield "noise", lambda f: (f + 0.04 * torch.randn(f.shape, generator=source)).clamp(0, 1)
    yield "backwards", lambda f: f.flip(0)
    yield "mirrored", lambda f: f.flip(3)
    yield "frozen", lambda f: f[:1].expand_as(f)
    yield "other colors", lambda f: f[:, [1, 2, 0]]
    # Snow at 0.9 is 0.16 from its color, and the description does not say what is too far.
    yield "darker", lambda f: 0.95 * f
    yield "nothing", lambda f: torch.full_like(f, 0.5)
    yield "half speed", lambda f: f[torch.arange(len(f)) // 2]
    yield "eight bits", lambda f: (f * 255).round() / 255


FAULTS = dict(faults())
# The description does not say how far from its speed a motion is none.
SILENT = "half speed"
# Not a divisor of the number of prompts, or all would share a background.
SAMPLE = all_prompts()[5::263]


@cache
def compared(name):
    """How many readings are alike, of how many, and those that are not."""
    judge, readings, apart = IndependentJudge(96), 0, []
    for number, asked in enumerate(SAMPLE):
        clip = FAULTS[name](render_clips([asked], [number], FRAMES)[0])
        ours, theirs = read_clip(clip), judge.readings(pixels(clip))
        readings += len(SLOTS)
        pairs = ((slot, getattr(ours, slot), theirs[slot]) for slot in SLOTS)
        apart += [(asked.text, *pair) for pair in pairs if pair[1] != pair[2]]
    return readings - len(apart), readings, apart


@pytest.mark.parametrize("name", [name for name in FAULTS if name != SILENT])
def test_two_judges_agree(name):
    alike, readings, apart = compared(name)
    assert alike >= AGREEMENT * readings, apart


def test_they_agree_on_all_together_even_where_the_description_is_silent():
    results = [compared(name) for name in FAULTS]
    assert sum(r[0] for r in results) >= AGREEMENT * sum(r[1] for r in results), results
    # What they say of the rate may differ, and nothing else.
    assert {slot for _, slot, _, _ in compared(SILENT)[2]} <= {"motion"}


def test_the_independent_judge_reads_ground_truth(judge):
    for number, asked in enumerate(all_prompts()[::179]):
        got = judge.readings(pixels(render_clips([asked], [number], FRAMES)[0]))
        wanted = {slot: getattr(asked, slot) for slot in SLOTS}
        if isinstance(OUTLINES[asked.shape], Round) and asked.motion == "spins":
            wanted["motion"] = "stays still"
        assert got == wanted


def test_stability_and_lag_agree_as_well(judge):
    asked = ShapePrompt("large", "green", "star", "pulses", "night")
    frames = render_clips([asked], [1], 105)[0]
    fade = torch.linspace(0, 0.1, 105).view(-1, 1, 1, 1)
    jumps = torch.zeros(105)
    jumps[9::12] = 0.03
    flash = 0.01 * (torch.arange(105) % 2).view(-1, 1, 1, 1)
    worse = (frames + fade + flash + jumps.view(-1, 1, 1, 1)).clamp(0, 1)
    read = judge.frames(pixels(worse))
    ours = our_drift(worse, asked)
    np.testing.assert_allclose(
        drift(pixels(worse), read, pulses=True),
        [ours.saturation, ours.area, ours.background],
        atol=0.02,
    )
    assert seam(pixels(worse)) == pytest.approx(our_seam(worse), rel=1e-5)
    assert restlessness(pixels(worse), read) == pytest.approx(background_change(worse), rel=0.02)

    other = ShapePrompt("small", "red", "ring", "moves up", "sand")
    switched = render_timeline([(0, asked), (48, other)], 1, 105)
    late = torch.cat([switched[:48], frames[48:60], switched[60:]])
    wanted = {slot: getattr(other, slot) for slot in SLOTS}
    assert switch_lag(judge.frames(pixels(late)), wanted, 48) == our_lag(late, other, 48) == 12


def test_ground_truth_reads_right_through_h264(capsys):
    """A part of what ``python tools/check_judge.py`` does with all 2160 prompts."""
    assert check_judge(["--every", "131", "--frames", "33"]) == 0
    assert '"clips": 17, "wrong": 0, "adherence": 1.0' in capsys.readouterr().out


def test_the_tool_fails_where_a_clip_reads_wrong(monkeypatch, capsys):
    monkeypatch.setattr("check_judge.through_h264", lambda frames, folder: 1 - frames)
    assert check_judge(["--every", "1080"]) == 1
    assert "colour reads" in capsys.readouterr().out
