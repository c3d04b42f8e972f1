"""Where the object of a shapes-world clip is: nine motions, and what a prompt switch does to them.

A clip is a chain of legs. A leg is one motion from the moment it began; its pose is a closed
formula of time, so a clip of any length is exact and needs no stepping. At a switch the last pose
of the old leg becomes the start of the new one, unless both prompts share the motion: then the leg
simply goes on.

Shape suffix: ``T`` frames.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longlive.errors import UserError
from longlive.geometry import FPS
from longlive.shapes import (
    BOUNCE_SPEED,
    MOVE_DIRECTIONS,
    MOVE_SPEED,
    ORBIT_RADIUS,
    ORBIT_RATE,
    PULSE_DEPTH,
    PULSE_SECONDS,
    SPIN_RATE,
    ShapePrompt,
)

Array = NDArray[np.float64]
Timeline = Sequence[tuple[int, ShapePrompt]]

_POSE_STREAM = 0
_DIAGONAL_STREAM = 1
_BACKGROUND_STREAM = 2
_VERY_CENTRE = 1e-9  # closer than this, "the nearest point of the orbit" is rounding noise


@dataclass(frozen=True, slots=True)
class Pose:
    """Position in [0, 1), rotation in radians, and the factor on the radius."""

    x: Array
    y: Array
    rotation: Array
    scale: Array


@dataclass(frozen=True, slots=True)
class Track:
    """What every frame of a clip shows.

    Attributes:
        pose: Each field ``[T]``.
        radius_T: The radius as drawn, as a fraction of the side.
        prompt_index_T: Which prompt of the timeline holds.
    """

    pose: Pose
    radius_T: Array
    prompt_index_T: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Leg:
    """One motion from the moment it began.

    Attributes:
        motion: One of the listed motions.
        began: Seconds from the start of the clip.
        x, y, rotation: Where it began.
        heading: Signs of the direction in x and y; for ``bounces`` only.
        wall: Distance of the turning points from the edges; for ``bounces`` only.
    """

    motion: str
    began: float
    x: float
    y: float
    rotation: float
    heading: tuple[float, float]
    wall: float

    def pose(self, seconds: Array) -> Pose:
        """Pose at times counted from the start of the clip."""
        run = seconds - self.began
        x, y = self._position(run)
        turn = SPIN_RATE * run if self.motion == "spins" else 0.0 * run
        swell = np.sin(2 * np.pi * run / PULSE_SECONDS) if self.motion == "pulses" else 0.0 * run
        return Pose(
            x=np.mod(x, 1.0),
            y=np.mod(y, 1.0),
            rotation=self.rotation + turn,
            scale=1.0 + PULSE_DEPTH * swell,
        )

    def headings(self, seconds: float) -> tuple[float, float]:
        """Signs of the direction of a ``bounces`` leg at one time."""
        run = np.asarray(seconds - self.began)
        _, x_sign = _bounce(self.x, self.heading[0], self.wall, run)
        _, y_sign = _bounce(self.y, self.heading[1], self.wall, run)
        return float(x_sign), float(y_sign)

    def _position(self, run: Array) -> tuple[Array, Array]:
        if self.motion in MOVE_DIRECTIONS:
            right, down = MOVE_DIRECTIONS[self.motion]
            return self.x + right * MOVE_SPEED * run, self.y + down * MOVE_SPEED * run
        if self.motion == "circles":
            return _orbit(self.x, self.y, run)
        if self.motion == "bounces":
            x, _ = _bounce(self.x, self.heading[0], self.wall, run)
            y, _ = _bounce(self.y, self.heading[1], self.wall, run)
            return x, y
        return self.x + 0.0 * run, self.y + 0.0 * run


def trace(timeline: Timeline, seed: int, frames: int) -> Track:
    """Follow the object through a clip.

    Args:
        timeline: ``(first frame, prompt)`` in order; the first begins at frame 0.
        seed: Draws the start and the diagonals, together with nothing else.
        frames: Frames of the clip; prompts that begin later are never shown.

    Raises:
        UserError: If the timeline does not begin at frame 0 or is not in order.
    """
    check_timeline(timeline)
    prompt_index_T = np.zeros(frames, dtype=np.int64)
    poses: list[Pose] = []
    leg = _first_leg(timeline[0][1], seed)
    for index, (start, prompt) in enumerate(timeline):
        if index:
            leg = _next_leg(leg, timeline[index - 1][1], prompt, start / FPS, (seed, index))
        end = timeline[index + 1][0] if index + 1 < len(timeline) else frames
        span = np.arange(min(start, frames), min(end, frames))
        prompt_index_T[span] = index
        poses.append(leg.pose(span / FPS))
    pose = Pose(
        x=np.concatenate([p.x for p in poses]),
        y=np.concatenate([p.y for p in poses]),
        rotation=np.concatenate([p.rotation for p in poses]),
        scale=np.concatenate([p.scale for p in poses]),
    )
    radii = np.array([prompt.radius for _, prompt in timeline])
    return Track(pose, radii[prompt_index_T] * pose.scale, prompt_index_T)


def check_timeline(timeline: Timeline) -> None:
    """Raise a UserError unless the prompts begin at frame 0 and follow in order."""
    starts = [start for start, _ in timeline]
    if not starts or starts[0] != 0:
        raise UserError("a timeline must begin with a prompt at frame 0")
    if any(later <= earlier for earlier, later in zip(starts, starts[1:], strict=False)):
        raise UserError(f"the prompts of a timeline must begin at rising frames, got {starts}")


def background_generator(seed: int, background_index: int) -> np.random.Generator:
    """Source of a background's noise or stars: one per seed and background, so it can come back."""
    return _generator(seed, _BACKGROUND_STREAM, background_index)


def _generator(*key: int) -> np.random.Generator:
    if key[0] < 0:
        raise UserError(f"a seed must not be negative, got {key[0]}")
    return np.random.default_rng(key)


def _first_leg(prompt: ShapePrompt, seed: int) -> Leg:
    x, y, orbit_turns, turns = _generator(seed, _POSE_STREAM).random(4)
    wall = prompt.radius
    if prompt.motion == "circles":
        x = 0.5 + ORBIT_RADIUS * math.cos(2 * math.pi * orbit_turns)
        y = 0.5 + ORBIT_RADIUS * math.sin(2 * math.pi * orbit_turns)
    elif prompt.motion == "bounces":
        x, y = wall + (1 - 2 * wall) * x, wall + (1 - 2 * wall) * y
    rotation = 2 * math.pi * turns if prompt.motion == "spins" else 0.0
    return Leg(prompt.motion, 0.0, x, y, rotation, _diagonal(seed, 0), wall)


def _next_leg(
    leg: Leg, old: ShapePrompt, new: ShapePrompt, began: float, key: tuple[int, int]
) -> Leg:
    is_shared = old.motion == new.motion
    if is_shared and (new.motion != "bounces" or old.size == new.size):
        return leg
    pose = leg.pose(np.asarray(began))
    x, y = float(pose.x), float(pose.y)
    heading = leg.headings(began) if is_shared else _diagonal(*key)
    wall = new.radius
    heading = _inwards(x, heading[0], wall), _inwards(y, heading[1], wall)
    return Leg(new.motion, began, x, y, float(pose.rotation), heading, wall)


def _diagonal(seed: int, prompt_index: int) -> tuple[float, float]:
    # Its own stream for each prompt, so that a later switch never changes an earlier frame.
    right, down = _generator(seed, _DIAGONAL_STREAM, prompt_index).integers(0, 2, size=2)
    return 2.0 * right - 1.0, 2.0 * down - 1.0


def _inwards(position: float, sign: float, wall: float) -> float:
    if position < wall:
        return 1.0
    return -1.0 if position > 1 - wall else sign


def _bounce(start: float, sign: float, wall: float, run: Array) -> tuple[Array, Array]:
    """Position on one axis and the sign of its direction.

    ``gone`` is the way from the wall behind; it is negative while a start outside the walls is
    still on its way in.
    """
    room = 1 - 2 * wall
    gone = (start - wall if sign > 0 else 1 - wall - start) + BOUNCE_SPEED * run
    phase = np.mod(gone, 2 * room)
    folded = np.where(gone < 0, gone, room - np.abs(room - phase))
    position = wall + folded if sign > 0 else 1 - wall - folded
    return position, sign * np.where((gone >= 0) & (phase >= room), -1.0, 1.0)


def _orbit(start_x: float, start_y: float, run: Array) -> tuple[Array, Array]:
    """Straight to the nearest point of the orbit, which lies on the ray from its centre."""
    dx, dy = start_x - 0.5, start_y - 0.5
    distance = math.hypot(dx, dy)
    angle = math.atan2(dy, dx) if distance > _VERY_CENTRE else 0.0
    missing = ORBIT_RADIUS - distance
    arrival = abs(missing) / MOVE_SPEED
    radius = distance + math.copysign(MOVE_SPEED, missing) * np.minimum(run, arrival)
    angles = angle + ORBIT_RATE * np.maximum(run - arrival, 0.0)
    return 0.5 + radius * np.cos(angles), 0.5 + radius * np.sin(angles)
