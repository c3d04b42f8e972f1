"""The judge of the shapes world reads what is there, through codecs and noise, and nothing else.

The clips come from the renderer; only ground truth may read 100 %.
"""

import io
import math
from itertools import product

import av
import numpy as np
import pytest
import torch
from torch.nn import functional

from longlive.data.shapes_motion import trace
from longlive.data.shapes_world import render_clips, render_timeline
from longlive.errors import UserError
from longlive.metrics.shapes_adherence import ShapesAdherence
from longlive.metrics.shapes_judge import (
    Reading,
    judge_clip,
    judge_clips,
    judge_timeline,
    read_clip,
    score,
    switch_lag,
)
from longlive.metrics.shapes_path import read_motion
from longlive.metrics.shapes_reading import read_frames
from longlive.metrics.shapes_stability import background_change, drift, flicker, seam
from longlive.shapes import COLOURS, OUTLINES, SLOTS, ShapePrompt, coverage

FPS = 16


def prompt(motion="stays still", shape="square", size="small", colour="red", background="grey"):
    return ShapePrompt(size, colour, shape, motion, background)


def clip(asked, seed=0, frames=49, side=96):
    return render_clips([asked], [seed], frames, side)[0]


def through_h264(frames, crf=23):
    """Encode with libx264 in yuv420p, and decode."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": str(crf)})
        stream.width = stream.height = frames.shape[-1]
        stream.pix_fmt = "yuv420p"
        for image in (frames * 255).round().byte().permute(0, 2, 3, 1).numpy():
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def blurred(frames, sigma):
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = functional.pad(frames, (reach,) * 4, mode="circular")
    return functional.conv2d(
        functional.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3
    )


def generated(frames, seed):
    """What a network would add: soft edges, noise, shifted colours, speckles."""
    source = torch.Generator().manual_seed(seed)
    frames = blurred(frames, 0.8) + 0.04 * torch.randn(frames.shape, generator=source)
    frames = frames + 0.1 * torch.rand(1, 3, 1, 1, generator=source) - 0.05
    is_speckle = torch.rand(len(frames), 1, *frames.shape[2:], generator=source) < 0.002
    speckled = torch.where(is_speckle, torch.rand(frames.shape, generator=source), frames)
    return speckled.clamp(0, 1)


def pairs():
    """Every shape with every motion; sizes, colours and backgrounds take turns."""
    for index, (shape, motion) in enumerate(product(SLOTS["shape"], SLOTS["motion"])):
        yield prompt(
            motion,
            shape,
            SLOTS["size"][index % 2],
            SLOTS["colour"][index % 6],
            SLOTS["background"][index // 2 % 4],
        )


# --- ground truth ----------------------------------------------------------------------------


@pytest.mark.parametrize("asked", pairs(), ids=lambda asked: asked.text)
def test_a_ground_truth_clip_reads_right_in_all_five(asked):
    assert judge_clip(clip(asked, seed=3), asked).all_five


@pytest.mark.parametrize("asked", list(pairs())[::6], ids=lambda asked: asked.text)
def test_h264_changes_no_reading(asked):
    assert judge_clip(through_h264(clip(asked, seed=4)), asked).all_five


@pytest.mark.parametrize("asked", list(pairs())[3::7], ids=lambda asked: asked.text)
def test_blur_noise_speckles_and_shifted_colors_change_no_reading(asked):
    assert judge_clip(generated(clip(asked, seed=5), seed=5), asked).all_five


@pytest.mark.parametrize("side", [144, 208, 480])
def test_the_side_does_not_matter(side):
    asked = prompt("pulses", "star", "large", "yellow", "night")
    assert judge_clip(clip(asked, 6, 33, side), asked).all_five


def test_autocast_and_half_precision_frames_change_no_reading():
    asked = prompt("circles", "square", "small", "cyan", "sand")
    frames = clip(asked, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert judge_clip(frames.bfloat16(), asked).all_five
        within = read_frames(frames)
    assert torch.equal(within.centre, read_frames(frames).centre)


def test_measured_centers_areas_and_turns_are_those_drawn():
    asked = prompt("spins", "triangle", "large", "blue", "sand")
    track, readings = trace([(0, asked)], 1, 33), read_frames(clip(asked, 1, 33))
    centre = np.stack([track.pose.x, track.pose.y], axis=1)
    off = readings.centre.numpy() - centre
    assert np.abs(off - np.round(off)).max() < 0.1 / 96
    area = OUTLINES["triangle"].area * 0.18**2
    np.testing.assert_allclose(readings.area.numpy(), area, rtol=0.01)
    turn = readings.turn[:, SLOTS["shape"].index("triangle")].numpy() - track.pose.rotation
    third = 2 * math.pi / 3
    assert np.abs(turn - third * np.round(turn / third)).max() < math.radians(1.5)


# --- what is not there -----------------------------------------------------------------------


@pytest.mark.parametrize("slot", list(SLOTS))
def test_each_wrong_word_costs_its_own_slot_and_no_other(slot):
    asked = prompt("moves left", "star", "large", "cyan", "snow")
    words = {name: getattr(asked, name) for name in SLOTS}
    frames = clip(asked, 2)
    for word in set(SLOTS[slot]) - {words[slot]}:
        got = judge_clip(frames, ShapePrompt(**{**words, slot: word}))
        assert not getattr(got, slot)
        assert got.mean == pytest.approx(0.8)
        assert not got.all_five


def test_an_empty_frame_shows_only_its_background():
    frames = torch.full((40, 3, 96, 96), 0.5)
    assert read_clip(frames) == Reading(None, None, None, None, "grey")


def test_an_unlisted_color_and_background_read_as_nothing():
    frames = clip(prompt(shape="circle", size="large"))
    frames = torch.where((frames[:, :1] > 0.6), torch.tensor([0.9, 0.5, 0.1]).view(3, 1, 1), frames)
    assert read_clip(frames).colour is None
    assert read_clip(frames).shape == "circle"
    assert read_clip(1 - clip(prompt(background="sand"))).background is None


def test_a_shape_outside_the_five_reads_as_nothing():
    frames = torch.full((33, 3, 96, 96), 0.5)
    for channel, value in enumerate(COLOURS["red"]):
        frames[:, channel, 46:50, 20:76] = value
    assert read_clip(frames).shape is None
    assert read_clip(frames).size is None
    assert read_clip(frames).colour == "red"


def test_a_clip_played_backwards_shows_the_other_direction_or_nothing():
    shown = {
        motion: read_clip(clip(prompt(motion, "star", "large"), 1).flip(0)).motion
        for motion in SLOTS["motion"]
    }
    assert shown == {
        "moves left": "moves right",
        "moves right": "moves left",
        "moves up": "moves down",
        "moves down": "moves up",
        "circles": None,
        "bounces": "bounces",
        "spins": None,
        "pulses": "pulses",
        "stays still": "stays still",
    }


def test_the_larger_of_two_objects_is_read():
    frames = clip(prompt("moves left", "triangle", "large", "blue"), 3)
    small = clip(prompt("stays still", "circle", "small", "red"), 8)
    is_free = (frames - 0.5).abs().amax(1, keepdim=True) < 0.01
    reading = read_clip(torch.where(is_free, small, frames))
    assert (reading.colour, reading.motion) == ("blue", "moves left")


@pytest.mark.parametrize("shape", ["circle", "ring"])
def test_for_a_round_shape_spinning_and_standing_still_are_the_same(shape):
    frames = clip(prompt("stays still", shape))
    assert judge_clip(frames, prompt("spins", shape)).all_five
    assert judge_clip(frames, prompt("stays still", shape)).all_five
    assert not judge_clip(frames, prompt("pulses", shape)).motion
    moving = Reading("small", "red", shape, "moves up", "grey")
    assert not score(moving, prompt("spins", shape)).motion
    spinning = Reading("small", "red", "square", "spins", "grey")
    assert not score(spinning, prompt("stays still", "square")).motion


# --- paths without pixels --------------------------------------------------------------------


def shown(x, y, turn=0.0, radius=0.1, shape="square", frames=49):
    t = np.arange(frames) / FPS
    values = [np.broadcast_to(f(t) if callable(f) else f, t.shape) for f in (x, y, turn, radius)]
    noise = np.random.default_rng(0).normal(0, 0.003, (frames, 2))
    centre = np.mod(np.stack(values[:2], axis=1) + noise, 1.0)
    return read_motion(centre, OUTLINES[shape].area * values[3] ** 2, values[2], shape)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("frames", [32, 49, 81])
def test_an_orbit_the_other_way_round_reads_as_nothing(frames, seed):
    def around(sign):
        return (
            lambda t: 0.5 + 0.22 * np.cos(seed + sign * t * math.pi / 2),
            lambda t: 0.5 + 0.22 * np.sin(seed + sign * t * math.pi / 2),
        )

    assert shown(*around(+1), frames=frames) == "circles"
    assert shown(*around(-1), frames=frames) is None


def test_motions_outside_the_nine_read_as_nothing():
    quarter = math.pi / 2
    assert shown(0.5, 0.5, turn=lambda t: -quarter * t) is None
    assert shown(0.5, 0.5, turn=lambda t: 2.5 * quarter * t) is None
    assert shown(lambda t: 0.9 + 0.212 * t, lambda t: 0.4 + 0.212 * t) is None  # over the edge
    assert shown(lambda t: 0.25 * t, 0.3, turn=lambda t: quarter * t) is None
    assert shown(lambda t: 0.08 * t, 0.3) is None
    assert shown(lambda t: 0.5 * t, 0.3) is None
    pulse = {"radius": lambda t: 0.1 * (1 + 0.35 * np.sin(math.pi * t))}
    assert shown(0.5, 0.5, **pulse) == "pulses"
    assert shown(0.5, 0.5, turn=lambda t: quarter * t, **pulse) is None
    assert shown(0.5, 0.5, radius=lambda t: 0.1 * (1 + 0.35 * np.sin(3 * math.pi * t))) is None


def test_speeds_a_quarter_off_still_read_right():
    assert shown(lambda t: 0.5 + 0.31 * t, 0.5) == "moves right"
    assert shown(lambda t: 0.5 - 0.19 * t, 0.5) == "moves left"
    assert shown(0.5, 0.5, turn=lambda t: 1.25 * math.pi / 2 * t) == "spins"


def test_less_than_two_seconds_show_no_motion():
    assert shown(0.5, 0.5, frames=31) is None
    assert shown(0.5, 0.5, frames=32) == "stays still"


def test_paths_of_random_clips_and_switches_read_right_from_two_seconds_on():
    draw = np.random.default_rng(0)
    for seed in range(150):
        old, new = (
            prompt(draw.choice(SLOTS["motion"]), "star", draw.choice(SLOTS["size"]))
            for _ in range(2)
        )
        switch, held = int(draw.choice([32, 49, 64])), int(draw.choice([64, 80]))
        track = trace([(0, old), (switch, new)], seed, switch + held)
        for asked, start, end in ((old, 0, switch), (new, switch + 32, switch + held)):
            centre = np.stack([track.pose.x, track.pose.y], axis=1)[start:end]
            area = OUTLINES["star"].area * track.radius_T[start:end] ** 2
            turn = track.pose.rotation[start:end]
            assert read_motion(centre, area, turn, "star") == asked.motion, (seed, asked)


# --- switches --------------------------------------------------------------------------------

SWITCHES = [
    (0, prompt("spins", "square", "large", "red", "sand")),
    (69, prompt("circles", "triangle", "small", "cyan", "night")),
    (141, prompt("circles", "ring", "large", "magenta", "sand")),
]


@pytest.fixture(scope="module")
def switched():
    return through_h264(render_timeline(SWITCHES, 4, 217))


def test_every_prompt_of_a_timeline_is_judged_on_its_own_span(switched):
    assert all(got.all_five for got in judge_timeline(switched, SWITCHES))
    swapped = [SWITCHES[0], (69, SWITCHES[2][1]), (141, SWITCHES[1][1])]
    assert [got.mean for got in judge_timeline(switched, swapped)] == pytest.approx([1, 0.2, 0.2])


def test_the_seconds_after_a_switch_are_not_judged():
    old, new = prompt("stays still", colour="blue"), prompt("moves right", colour="red")
    first, second = clip(old, 1, 80), clip(new, 1, 80)
    late_look = torch.cat([first[:16], second[16:]])
    assert judge_clip(late_look, new, is_after_switch=True).all_five
    late_motion = torch.cat([clip(prompt(colour="red"), 1, 30), second[30:]])
    assert judge_clip(late_motion, new, is_after_switch=True).all_five


def test_a_ground_truth_switch_has_no_lag(switched):
    readings = read_frames(switched)
    for (start, asked), end in zip(SWITCHES[1:], (141, 217), strict=True):
        assert switch_lag(readings, asked, start, end) == 0


def test_the_lag_counts_to_the_first_of_four_right_frames():
    old, new = clip(prompt(colour="blue"), frames=20), clip(prompt(colour="red"), frames=20)
    frames = torch.cat([old, old[:5], new[:3], old[:1], new])
    assert switch_lag(frames, prompt(colour="red"), 20) == 9
    assert switch_lag(frames, prompt(colour="red"), 20, end=31) is None
    assert switch_lag(frames, prompt(colour="green"), 20) is None


def test_a_span_without_frames_is_refused():
    with pytest.raises(UserError, match="at least 4 seconds"):
        read_clip(clip(prompt(), frames=16), is_after_switch=True)


@pytest.mark.parametrize("shape", [(3, 96, 96), (4, 3, 96, 112), (4, 1, 96, 96), (0, 3, 96, 96)])
def test_what_is_no_clip_is_refused(shape):
    with pytest.raises(UserError, match="clip must be|do not fit"):
        read_frames(torch.zeros(shape))


# --- stability -------------------------------------------------------------------------------


def test_ground_truth_does_not_drift():
    for motion, background in (("pulses", "night"), ("moves up", "snow")):
        asked = prompt(motion, "star", "large", "green", background)
        got = drift(through_h264(clip(asked, 2, 170)), asked)
        assert abs(got.saturation) < 0.01
        assert abs(got.area) < 0.01
        assert abs(got.background) < 0.01


def test_drift_measures_each_change_against_the_beginning():
    asked = prompt("stays still", "circle", "large", "red", "grey")
    at = (torch.arange(96) + 0.5) / 96 - 0.5
    radii = torch.linspace(0.18, 0.144, 100)[:, None, None]
    share = coverage("circle", at, at[:, None], radii, torch.zeros(()), 1 / 96)[:, None]
    fade = torch.linspace(0, 1, 100)[:, None, None, None]
    colour = torch.tensor(COLOURS["red"]).view(3, 1, 1) + fade * torch.tensor([0.0, 0.2, 0.2]).view(
        3, 1, 1
    )
    frames = torch.lerp(0.5 + 0.1 * fade, colour, share)
    got = drift(frames, asked)
    # The tenths are the frames 0 to 9 and 90 to 99, so what is seen is 90/99 of the way.
    way = torch.linspace(0, 1, 100)
    first, last = way[:10], way[90:]
    area = [(0.18 - 0.036 * part).square().mean() for part in (first, last)]
    assert got.area == pytest.approx(float(area[1] / area[0] - 1), abs=0.01)
    assert got.background == pytest.approx(
        float(0.1 * (last.mean() - first.mean()) / 0.505), abs=2e-3
    )
    saturation = [float((1 - (0.1 + 0.2 * part) / 0.9).mean()) for part in (first, last)]
    assert got.saturation == pytest.approx(saturation[1] / saturation[0] - 1, abs=0.01)


def test_the_tenths_of_a_pulse_are_whole_periods():
    asked = prompt("pulses", "circle", "large")
    # Tenths of 10 frames would compare a swelling with a shrinking object.
    assert abs(drift(clip(asked, 0, 100), asked).area) < 0.005
    assert abs(drift(clip(asked, 0, 100), prompt("stays still", "circle")).area) > 0.2
    with pytest.raises(UserError, match="at least 64"):
        drift(clip(asked, 0, 63), asked)


@pytest.mark.parametrize("motion", ["moves left", "spins", "pulses"])
def test_ground_truth_does_not_flicker(motion):
    frames = clip(prompt(motion, "star", "large", "yellow", "night"), 3, 33)
    assert background_change(frames) < 1e-5
    assert flicker(frames, frames) == 0


def test_flicker_is_what_the_background_changes_beyond_the_truth():
    truth = clip(prompt("moves left", "star", "large", "yellow", "sand"), 3, 33)
    flash = 0.02 * (torch.arange(33) % 2).view(-1, 1, 1, 1)
    assert flicker((truth + flash).clamp(0, 1), truth) == pytest.approx(0.02, rel=0.02)
    stored = through_h264(truth)
    assert abs(flicker(stored, stored)) == 0
    assert background_change(stored) > 1e-4


def test_switch_frames_are_left_out_of_flicker_and_seam():
    timeline = [(0, prompt(background="snow")), (9, prompt(background="night"))]
    frames = render_timeline(timeline, 1, 33)
    assert background_change(frames) > 0.02
    assert background_change(frames, [9]) < 1e-5
    assert seam(frames) > 2
    assert seam(frames, [9]) == 1.0


def test_ground_truth_has_no_seam():
    frames = clip(prompt("circles", "star", "large"), 3, 129)
    assert seam(frames) == pytest.approx(1, abs=0.05)


def test_a_jump_at_each_block_start_is_a_seam():
    frames = torch.zeros(45, 3, 16, 16)
    for start in (9, 21, 33):
        frames[start:] += 0.06
    frames += 0.02 * torch.arange(45).view(-1, 1, 1, 1)
    assert seam(frames) == pytest.approx(4.0, rel=1e-4)
    with pytest.raises(UserError, match="longer than one block of 9"):
        seam(frames[:9])


# --- the metric ------------------------------------------------------------------------------


def test_the_metric_averages_over_all_updates():
    right, wrong = prompt("moves up"), prompt("moves down", colour="blue")
    frames = render_clips([right, right, right], [1, 2, 3], 33)
    metric = ShapesAdherence()
    metric.update(judge_clips(frames[:1], [right.text]))
    metric.update(judge_clips(frames[1:], [right, wrong]))
    got = metric.compute()
    assert got["adherence"].dtype == torch.float64
    assert float(got["adherence"]) == pytest.approx((5 + 5 + 3) / 15)
    assert float(got["all_five"]) == pytest.approx(2 / 3)
    assert float(got["motion"]) == float(got["colour"]) == pytest.approx(2 / 3)
    assert float(got["shape"]) == 1
    metric.reset()
    assert float(metric.clips) == 0


def test_metrics_of_two_processes_add_up():
    asked = prompt("moves up")
    parts = [ShapesAdherence(), ShapesAdherence()]
    parts[0].update(judge_clips(clip(asked, 1, 33)[None], [asked]))
    both = render_clips([asked] * 2, [2, 3], 33)
    parts[1].update(judge_clips(both, [asked, prompt("spins")]))
    parts[0].merge_state(parts[1])
    assert float(parts[0].clips) == 3
    assert float(parts[0].compute()["all_five"]) == pytest.approx(2 / 3)


def test_clips_and_prompts_must_match_in_number():
    with pytest.raises(UserError, match="as many prompts"):
        judge_clips(clip(prompt(), 1, 33)[None], [])
