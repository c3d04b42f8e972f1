"""What happens in time: each number rises with what it names, and with nothing else."""

import math

import numpy as np
import pytest
import torch

from longlive.errors import UserError
from longlive.metrics import temporal
from longlive.metrics.temporal import VALUES, TemporalStability

AGREES = 1e-6


def wave(frames=33, speed=0.5, side=48, seed=None):
    """A sine that moves to the right, in pixels a frame."""
    x = torch.arange(side, dtype=torch.float64)
    shift = speed * torch.arange(frames, dtype=torch.float64)
    rows = 0.5 + 0.3 * torch.sin(2 * math.pi * (x - shift[:, None]) / 16)
    return rows[:, None, None, :].expand(-1, 3, side, -1).contiguous()


def measured(frames, switches=(), block=3):
    metric = TemporalStability(block)
    metric.update(frames, switches)
    return {name: float(value) for name, value in metric.compute().items()}


def numpy_values(frames, block_starts):
    """The definitions again, on whole arrays."""
    step = np.diff(frames, axis=0)
    change = np.abs(step).mean((1, 2, 3))
    is_border = np.isin(np.arange(1, len(frames)), block_starts)
    luma = np.tensordot(frames, [0.299, 0.587, 0.114], axes=([1], [0]))

    def slope(planes):
        right = (planes[:, 1:-1, 2:] - planes[:, 1:-1, :-2]) / 2
        down = (planes[:, 2:, 1:-1] - planes[:, :-2, 1:-1]) / 2
        return np.sqrt(right**2 + down**2)

    between = slope((luma[1:] + luma[:-1]) / 2)
    inner = np.abs(np.diff(luma, axis=0))[:, 1:-1, 1:-1]
    back = step[1:] * step[:-1] < 0
    tenth = max(1, round(len(frames) / 10))
    color = frames.mean((2, 3))
    sharp, contrast = slope(luma).mean((1, 2)), luma.std((1, 2))
    return {
        "block_seam": change[is_border].mean() / change[~is_border].mean(),
        "reverting_change": (np.minimum(np.abs(step[1:]), np.abs(step[:-1])) * back).mean(),
        "motion": (inner.sum((1, 2)) / between.sum((1, 2))).mean(),
        "temporal_flickering": 1 - change.mean(),
        "color_drift": np.linalg.norm(color[-tenth:].mean(0) - color[:tenth].mean(0)),
        "sharpness_drift": sharp[-tenth:].mean() / sharp[:tenth].mean() - 1,
        "contrast_drift": contrast[-tenth:].mean() / contrast[:tenth].mean() - 1,
    }


@pytest.mark.parametrize("chunk_pixels", [1 << 20, 24 * 20 * 4, 24 * 20 * 7])
def test_all_values_agree_with_numpy_however_the_video_is_cut(chunk_pixels, monkeypatch):
    monkeypatch.setattr(temporal, "_CHUNK_PIXELS", chunk_pixels)
    frames = np.random.default_rng(0).uniform(size=(30, 3, 24, 20))
    expected = numpy_values(frames, [9, 21])
    got = measured(torch.from_numpy(frames))
    assert got.keys() == expected.keys() == set(VALUES)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=AGREES), name


def test_two_ranks_together_equal_one_pass():
    videos = [torch.rand(24, 3, 20, 20, dtype=torch.float64) for _ in range(3)]
    whole, first, second = (TemporalStability() for _ in range(3))
    for video in videos:
        whole.update(video)
    first.update(videos[0])
    second.update(videos[1])
    second.update(videos[2])
    first.merge_state(second)
    for name, value in whole.compute().items():
        torch.testing.assert_close(first.compute()[name], value, atol=1e-12, rtol=0)


def test_motion_is_pixels_a_frame():
    assert measured(wave(speed=0.5))["motion"] == pytest.approx(0.5, rel=0.03)
    assert measured(wave(speed=1.0))["motion"] == pytest.approx(1.0, rel=0.05)
    assert measured(wave(speed=0))["motion"] == 0


def test_steady_motion_hardly_reverts_and_flicker_does():
    steady = measured(wave())
    flash = 0.04 * (torch.arange(33) % 2).view(-1, 1, 1, 1)
    flickering = measured(wave() + flash)
    assert steady["reverting_change"] < 0.002
    assert measured(wave(speed=0) + flash)["reverting_change"] == pytest.approx(0.04)
    assert flickering["reverting_change"] > 5 * steady["reverting_change"]


def test_a_jump_at_the_borders_of_blocks_is_a_seam():
    jumps = torch.zeros(33)
    jumps[[9, 21]] = 0.2
    with_seams = wave() + jumps.cumsum(0).view(-1, 1, 1, 1)
    assert measured(wave())["block_seam"] == pytest.approx(1, abs=0.01)
    assert measured(with_seams)["block_seam"] > 3
    # Blocks of six latent frames have their only border at frame 21.
    assert measured(with_seams, block=6)["block_seam"] != measured(with_seams)["block_seam"]


def test_a_frozen_video_has_no_seam_no_motion_and_no_drift():
    got = measured(wave(speed=0))
    assert got["block_seam"] == 1
    assert got["temporal_flickering"] == 1
    assert {got[name] for name in VALUES if "drift" in name or name == "motion"} == {0}


def test_color_sharpness_and_contrast_drift_apart():
    still = wave(frames=40, speed=0)
    fade = torch.linspace(0, 0.2, 40, dtype=torch.float64).view(-1, 1, 1, 1)
    got = measured(still + fade * torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
    assert got["color_drift"] == pytest.approx(0.2 * 36 / 39)
    assert abs(got["sharpness_drift"]) < 1e-9
    got = measured(0.5 + (still - 0.5) * (1 - fade))
    assert got["contrast_drift"] == pytest.approx(got["sharpness_drift"])
    assert got["contrast_drift"] == pytest.approx(-0.2 * 36 / 39 / (1 - 0.2 * 1.5 / 39), rel=0.01)
    assert got["color_drift"] < 1e-9


def test_prompt_switches_are_left_out_and_there_is_no_drift_across_them():
    cut = torch.cat([wave(15), 1 - wave(15)])
    assert measured(cut, [15])["temporal_flickering"] > measured(cut)["temporal_flickering"]
    assert measured(cut, [15])["block_seam"] == pytest.approx(1, abs=0.02)
    assert math.isnan(measured(cut, [15])["color_drift"])
    metric = TemporalStability()
    metric.update(cut, [15])
    metric.update(wave(30))
    assert float(metric.compute()["color_drift"]) == measured(wave(30))["color_drift"]


def test_eight_bit_frames_are_read_in_units_of_the_value_range():
    frames = torch.randint(0, 256, (12, 3, 20, 20), dtype=torch.uint8)
    assert measured(frames) == measured(frames.double() / 255)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (9, 1, 16, 16), (9, 16, 16)])
def test_what_is_no_video_is_refused(shape):
    with pytest.raises(UserError, match="at least 3"):
        TemporalStability().update(torch.zeros(shape))
