"""The shapes world: where things are, what a switch does, and that pixels follow."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from longlive.data.shapes_motion import trace
from longlive.data.shapes_world import (
    NOISE_STD,
    background_image,
    render_clips,
    render_timeline,
    render_timelines,
)
from longlive.errors import UserError
from longlive.shapes import BACKGROUNDS, COLOURS, SLOTS, ShapePrompt

SIDE = 96
FPS = 16


def prompt(motion="stays still", shape="square", size="small", colour="red", background="grey"):
    return ShapePrompt(size, colour, shape, motion, background)


def path(timeline, seed=0, frames=161):
    timeline = timeline if isinstance(timeline, list) else [(0, timeline)]
    return trace(timeline, seed, frames)


def opened(angles):
    return np.unwrap(angles)


def wrapped(difference):
    return difference - np.round(difference)


def share_of_object(frame_CHW, colour, background="grey"):
    """Each pixel's place on the line from a flat background to the object's colour."""
    flat = torch.tensor(BACKGROUNDS[background]).view(3, 1, 1)
    line = torch.tensor(COLOURS[colour]).view(3, 1, 1) - flat
    return ((frame_CHW - flat) * line).sum(0) / (line**2).sum()


def samples_in_square(cx, cy, half, fine=8):
    """Share of every pixel inside an upright square on the torus, from 8 x 8 samples."""
    at = (np.arange(SIDE * fine) + 0.5) / (SIDE * fine)
    is_in_x, is_in_y = (np.abs(wrapped(at - c)) < half for c in (cx, cy))
    return (is_in_y[:, None] & is_in_x).reshape(SIDE, fine, SIDE, fine).mean(axis=(1, 3))


# --- motions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("motion", "direction"),
    [
        ("moves left", (-1, 0)),
        ("moves right", (1, 0)),
        ("moves up", (0, -1)),
        ("moves down", (0, 1)),
    ],
)
def test_a_move_covers_a_quarter_of_the_side_each_second_and_wraps(motion, direction):
    pose = path(prompt(motion)).pose
    for values, sign in zip((pose.x, pose.y), direction, strict=True):
        assert ((values >= 0) & (values < 1)).all()
        np.testing.assert_allclose(wrapped(np.diff(values)), sign * 0.25 / FPS, atol=1e-12)
    assert not pose.rotation.any()


def test_an_orbit_has_radius_022_and_runs_clockwise_once_in_4_seconds():
    pose = path(prompt("circles")).pose
    dx, dy = pose.x - 0.5, pose.y - 0.5
    np.testing.assert_allclose(np.hypot(dx, dy), 0.22, atol=1e-12)
    # With y down, an angle that grows goes round clockwise as seen.
    np.testing.assert_allclose(np.diff(opened(np.arctan2(dy, dx))), 2 * math.pi / 64, atol=1e-12)


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_bounce_turns_at_its_radius_from_the_edge(size):
    wall = {"small": 0.10, "large": 0.18}[size]
    pose = path(prompt("bounces", size=size), frames=4000).pose
    for values in (pose.x, pose.y):
        assert values.min() == pytest.approx(wall, abs=0.01)
        assert values.max() == pytest.approx(1 - wall, abs=0.01)
        speed = np.abs(np.diff(values)) * FPS
        assert speed.max() == pytest.approx(0.30 / math.sqrt(2))
        # Only a frame in which it turns covers less.
        assert (speed < 0.212).mean() < 0.03
        signs = np.sign(np.diff(values))
        turns = np.flatnonzero(np.diff(signs)) + 1
        assert (np.minimum(values[turns] - wall, 1 - wall - values[turns]) < 0.014).all()


def test_the_seed_draws_all_four_diagonals():
    heads = set()
    for seed in range(40):
        pose = path(prompt("bounces"), seed, frames=2).pose
        heads.add((np.sign(np.diff(pose.x)).item(), np.sign(np.diff(pose.y)).item()))
    assert heads == set(product((-1.0, 1.0), repeat=2))


def test_a_spin_turns_clockwise_a_quarter_each_second_from_any_start():
    starts = [path(prompt("spins"), seed).pose for seed in range(30)]
    for pose in starts:
        np.testing.assert_allclose(np.diff(pose.rotation), 2 * math.pi * 0.25 / FPS)
        assert np.ptp(pose.x) == np.ptp(pose.y) == 0
    quarters = {int(pose.rotation[0] / (math.pi / 2)) for pose in starts}
    assert quarters == {0, 1, 2, 3}


def test_a_pulse_swells_by_35_percent_with_a_period_of_2_seconds():
    track = path(prompt("pulses", size="large"))
    t = np.arange(161) / FPS
    np.testing.assert_allclose(track.radius_T, 0.18 * (1 + 0.35 * np.sin(math.pi * t)))
    assert track.pose.rotation[0] == 0


def test_start_positions_fill_the_frame_and_those_of_bounces_keep_off_the_edges():
    still = np.array([[p.x[0], p.y[0]] for p in (path(prompt(), s, 1).pose for s in range(300))])
    assert still.min() < 0.02
    assert still.max() > 0.98
    inner = np.array(
        [p.x[0] for p in (path(prompt("bounces", size="large"), s, 1).pose for s in range(300))]
    )
    assert 0.18 <= inner.min() < 0.20
    assert 0.80 < inner.max() <= 0.82


# --- switches --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [(old, new) for old, new in product(SLOTS["motion"], repeat=2) if old != new],
)
def test_a_switch_keeps_position_and_rotation(old, new):
    switch = 37
    alone = path(prompt(old), 5).pose
    pose = path([(0, prompt(old)), (switch, prompt(new, size="large"))], 5).pose
    assert wrapped(pose.x[switch] - alone.x[switch]) == pytest.approx(0, abs=1e-9)
    assert wrapped(pose.y[switch] - alone.y[switch]) == pytest.approx(0, abs=1e-9)
    assert pose.rotation[switch] == pytest.approx(alone.rotation[switch])
    assert pose.scale[switch] == pytest.approx(1)  # a new pulse begins at its rest size
    np.testing.assert_array_equal(pose.x[:switch], alone.x[:switch])


@pytest.mark.parametrize("motion", SLOTS["motion"])
def test_a_shared_motion_goes_on_unbroken(motion):
    alone = path(prompt(motion), 3)
    changed = path([(0, prompt(motion)), (21, prompt(motion, "ring", colour="blue"))], 3)
    for field in ("x", "y", "rotation", "scale"):
        values = getattr(changed.pose, field)
        np.testing.assert_allclose(values, getattr(alone.pose, field), atol=1e-12)


def test_a_shared_pulse_takes_the_new_size_in_the_middle_of_its_swing():
    changed = path([(0, prompt("pulses")), (24, prompt("pulses", size="large"))])
    assert changed.radius_T[23] == pytest.approx(0.10 * (1 + 0.35 * math.sin(math.pi * 23 / 16)))
    assert changed.radius_T[24] == pytest.approx(0.18 * (1 - 0.35))


def test_a_new_pulse_begins_at_the_switch_frame():
    scale = path([(0, prompt()), (21, prompt("pulses"))]).pose.scale
    assert scale[21] == 1
    assert scale[21 + 8] == pytest.approx(1.35)


def test_a_spin_goes_on_from_the_rotation_that_was_left():
    timeline = [(0, prompt("spins")), (30, prompt()), (60, prompt("spins"))]
    rotation = path(timeline).pose.rotation
    np.testing.assert_allclose(rotation[30:61], rotation[30])
    np.testing.assert_allclose(np.diff(rotation[60:]), math.pi / 2 / FPS)


@pytest.mark.parametrize("seed", range(8))
def test_a_bounce_that_begins_outside_its_walls_heads_inside_and_stays_there(seed):
    old = "moves left" if seed % 2 else "moves down"
    pose = path([(0, prompt(old)), (16, prompt("bounces", size="large"))], seed).pose
    for values in (pose.x[16:], pose.y[16:]):
        if values[0] < 0.18:
            assert values[1] > values[0]
        if values[0] > 0.82:
            assert values[1] < values[0]
        assert np.abs(np.diff(values)).max() <= 0.30 / math.sqrt(2) / FPS + 1e-12
        settled = values[14:]  # 0.18 at 0.212 a second
        assert settled.min() >= 0.18 - 1e-9
        assert settled.max() <= 0.82 + 1e-9


def test_a_bounce_that_grows_keeps_its_direction_unless_it_is_outside():
    for seed in range(12):
        alone = path(prompt("bounces"), seed).pose
        grown = path([(0, prompt("bounces")), (40, prompt("bounces", size="large"))], seed).pose
        for before, after in ((alone.x, grown.x), (alone.y, grown.y)):
            step = after[41] - after[40]
            if 0.2 < after[40] < 0.8:
                assert step == pytest.approx(before[41] - before[40])
            elif after[40] < 0.18:
                assert step > 0
            elif after[40] > 0.82:
                assert step < 0


def test_a_new_orbit_is_reached_straight_at_a_quarter_a_second_and_then_followed():
    for seed in range(12):
        pose = path([(0, prompt("moves up")), (10, prompt("circles"))], seed, 200).pose
        dx, dy = pose.x[10:] - 0.5, pose.y[10:] - 0.5
        radius, angle = np.hypot(dx, dy), opened(np.arctan2(dy, dx))
        arrival = abs(radius[0] - 0.22) / 0.25 * FPS
        coming = np.arange(len(radius)) <= arrival
        np.testing.assert_allclose(angle[coming], angle[0], atol=1e-9)
        np.testing.assert_allclose(
            np.abs(radius[coming] - radius[0]), 0.25 / FPS * np.arange(coming.sum()), atol=1e-9
        )
        np.testing.assert_allclose(radius[~coming], 0.22, atol=1e-9)
        followed = angle[0] + 2 * math.pi / 64 * (np.arange(len(radius)) - arrival)
        np.testing.assert_allclose(angle[~coming], followed[~coming], atol=1e-9)


def test_from_the_very_center_an_orbit_is_entered_on_the_right():
    from longlive.data.shapes_motion import Leg

    leg = Leg("circles", 0.0, 0.5, 0.5, 0.0, (1.0, 1.0), 0.1)
    pose = leg.pose(np.array([0.44, 0.88, 1.88]))
    np.testing.assert_allclose(pose.x, [0.61, 0.72, 0.5], atol=1e-9)
    np.testing.assert_allclose(pose.y, [0.5, 0.5, 0.72], atol=1e-9)


@pytest.mark.parametrize("starts", [[], [3], [0, 9, 9], [0, 9, 5]])
def test_a_timeline_out_of_order_is_refused(starts):
    with pytest.raises(UserError, match="timeline"):
        path([(start, prompt()) for start in starts] or [], 0)


# --- pixels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("motion", ["moves right", "moves up", "pulses", "bounces"])
def test_what_sticks_out_over_an_edge_is_drawn_on_the_opposite_side(motion):
    asked = prompt(motion, size="large")
    seen_wrapped = 0
    for seed in range(6):
        track = path(asked, seed, 33)
        clip = render_clips([asked], [seed], 33)[0]
        for n in (0, 16, 32):
            half = 0.886 * track.radius_T[n]
            x, y = track.pose.x[n], track.pose.y[n]
            seen_wrapped += min(x, y) < half or max(x, y) > 1 - half
            slow = samples_in_square(x, y, half)
            drawn = share_of_object(clip[n], "red").numpy()
            assert np.abs(drawn - slow).max() < 0.3  # at the corners
            assert np.abs(drawn - slow).mean() < 2e-3
    assert seen_wrapped or motion == "bounces"


def test_a_star_points_up_and_turns_clockwise():
    asked = prompt("spins", "star", size="large")
    clip = render_clips([asked], [4], 17)[0]
    track = path(asked, 4, 17)
    for n in (0, 16):
        share = share_of_object(clip[n], "red")
        angle = track.pose.rotation[n] - math.pi / 2
        for k in range(10):
            distance = (1.25 if k % 2 == 0 else 0.75) * 0.18
            x = track.pose.x[n] + distance * math.cos(angle + k * math.pi / 5)
            y = track.pose.y[n] + distance * math.sin(angle + k * math.pi / 5)
            value = share[int(y % 1 * SIDE), int(x % 1 * SIDE)]
            assert (value > 0.5) == (k % 2 == 0)


def test_the_background_shows_through_a_ring():
    asked = prompt("stays still", "ring", size="large", background="sand")
    frame = render_clips([asked], [1], 1)[0, 0]
    pose = path(asked, 1, 1).pose
    row, column = int(pose.y[0] * SIDE), int(pose.x[0] * SIDE)
    assert torch.equal(frame[:, row, column], background_image("sand", 1, SIDE)[:, row, column])


@pytest.mark.parametrize("background", list(NOISE_STD))
def test_noise_is_fixed_gray_and_of_the_stated_strength(background):
    image = background_image(background, 7, 256)
    noise = image - torch.tensor(BACKGROUNDS[background]).view(3, 1, 1)
    assert noise.mean().abs() < 1e-3
    assert noise.std() == pytest.approx({"snow": 0.02, "sand": 0.03}[background], rel=0.02)
    torch.testing.assert_close(noise[0], noise[1], atol=1e-6, rtol=0)
    assert image.max() <= 1
    clip = render_clips([prompt(background=background)], [7], 3)[0]
    assert torch.equal(clip[0], clip[2])


def test_the_night_has_24_white_stars_of_radius_0006():
    image = background_image("night", 3, 480)
    light = (image[0] - 0.04) / 0.96
    assert light.sum() / 480**2 == pytest.approx(24 * math.pi * 0.006**2, rel=0.05)
    assert light.max() == 1
    torch.testing.assert_close((image[2] - 0.12) / 0.88, light, atol=1e-5, rtol=0)


def test_a_background_that_comes_back_is_the_same_one():
    night, snow = prompt(background="night"), prompt(background="snow")
    clip = render_timeline([(0, night), (2, snow), (4, night)], 11, 6)
    assert torch.equal(clip[0], clip[5])
    assert not torch.equal(clip[0], render_clips([night], [12], 1)[0, 0])


def test_the_new_look_is_there_on_the_switch_frame_itself():
    old, new = prompt("moves right"), prompt("moves up", "circle", colour="blue")
    clip = render_timeline([(0, old), (5, new)], 2, 8)
    at = (path(old, 2, 8).pose.x[5], path(old, 2, 8).pose.y[5])
    row, column = int(at[1] * SIDE), int(at[0] * SIDE)
    torch.testing.assert_close(clip[5, :, row, column], torch.tensor(COLOURS["blue"]))
    torch.testing.assert_close(clip[:5], render_clips([old], [2], 5)[0])


def test_a_clip_depends_on_neither_its_batch_nor_its_length():
    prompts = [
        prompt("spins", "star", background="night"),
        prompt("bounces", "circle", "large", "cyan", "sand"),
        prompt("circles", "star", "large", "green", "snow"),
    ]
    batch = render_clips(prompts, [5, 6, 7], 25)
    assert batch.shape == (3, 25, 3, SIDE, SIDE)
    assert batch.dtype == torch.float32
    assert 0 <= batch.min() <= batch.max() <= 1
    for index, asked in enumerate(prompts):
        alone = render_clips([asked], [5 + index], 9)[0]
        torch.testing.assert_close(alone, batch[index, :9], atol=1e-6, rtol=0)


def test_a_larger_side_shows_the_same_clip():
    asked = prompt("circles", "triangle", "large")
    small, large = (render_clips([asked], [8], 2, side=side)[0, 1] for side in (96, 192))
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    assert (shrunk - small).abs().mean() < 1e-3


def test_timelines_of_a_batch_are_drawn_each_for_itself():
    timelines = [[(0, prompt()), (3, prompt(background="snow"))], [(0, prompt("moves left"))]]
    batch = render_timelines(timelines, [1, 2], 6)
    for clip, timeline, seed in zip(batch, timelines, (1, 2), strict=True):
        torch.testing.assert_close(clip, render_timeline(timeline, seed, 6))


@pytest.mark.parametrize("side", [80, 100])
def test_a_side_the_world_does_not_have_is_refused(side):
    with pytest.raises(UserError, match="multiple of 16 from 96"):
        render_clips([prompt()], [0], 1, side=side)


def test_prompts_and_seeds_must_match_and_seeds_are_not_negative():
    with pytest.raises(UserError, match="as many seeds"):
        render_clips([prompt()], [0, 1], 1)
    with pytest.raises(UserError, match="negative"):
        render_clips([prompt()], [-1], 1)


@pytest.mark.gpu
def test_a_gpu_draws_the_same_clip():
    asked = [prompt("spins", "star", background="night"), prompt("moves left", "ring")]
    on_gpu = render_clips(asked, [0, 1], 33, device="cuda").cpu()
    torch.testing.assert_close(on_gpu, render_clips(asked, [0, 1], 33), atol=2e-3, rtol=0)
