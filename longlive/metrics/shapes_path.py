"""Which of the nine motions an object's path, turn and area show.

A motion is read from windows of three seconds, and the commonest reading wins. In a window the
path is compared with a straight line, an orbit and a zigzag between walls, the turn with a steady
rotation, the area with a steady pulse; every rate may be off by ``RATE_TOLERANCE``. What fits none
of them, goes another way round, or does two things at once reads as nothing.

Shape suffixes: ``T`` frames, ``R`` rates that are tried, ``P`` phases that are tried.
"""

import math
from collections import Counter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from longlive.geometry import FPS
from longlive.shapes import (
    BOUNCE_SPEED,
    MOVE_DIRECTIONS,
    MOVE_SPEED,
    ORBIT_RADIUS,
    ORBIT_RATE,
    OUTLINES,
    PULSE_DEPTH,
    PULSE_SECONDS,
    RADII,
    SPIN_RATE,
    Cornered,
)

Array = NDArray[np.float64]
Word = TypeVar("Word")

SHORTEST_FRAMES = 2 * FPS
WINDOW_FRAMES = 3 * FPS
HOP_FRAMES = FPS
FEWEST_SEEN = 0.7  # share of a window's frames that must show an object

RATE_TOLERANCE = 0.4  # of every speed and frequency
STILL_SPEED = 0.05  # per second; a fifth of the slowest motion
AXIS_TOLERANCE = math.radians(20)
LINE_RESIDUAL = 0.03  # fractions of the side; an orbit is 0.05 off its best line in two seconds
CURVE_RESIDUAL = 0.035
ORBIT_MIDDLE_TOLERANCE = 0.1
STEADY_RADIUS = 0.09  # relative deviation; a pulse deviates by 0.25
STILL_TURN_RATE = SPIN_RATE / 3
COHERENT = 0.6  # length of the mean turn vector at the best rate; noise gives 0.3
_OUTLIERS = 0.1  # share of frames that a fit may leave out

_RATES_R = np.linspace(1 - RATE_TOLERANCE, 1 + RATE_TOLERANCE, 17)
_TURN_RATES_R = np.radians(np.arange(-180.0, 181.0, 3.0))
_ZIGZAG_PHASES = 64


def most_common(words: list[Word]) -> Word:
    """The commonest word; among equals the one that came first."""
    return Counter(words).most_common(1)[0][0]


def read_motion(centre_T2: Array, area_T: Array, turn_T: Array, shape: str | None) -> str | None:
    """Read the motion of one object.

    Args:
        centre_T2: x and y in [0, 1), on the torus; NaN where there is no object.
        area_T: As a fraction of the frame; NaN where there is no object.
        turn_T: Rotation in radians, up to the symmetry of ``shape``.
        shape: The shape read; a turn shows only on one with corners.

    Returns:
        One of the nine motions, or None. For a round shape ``spins`` reads ``stays still``. Less
        than two seconds read as None.
    """
    frames = len(area_T)
    if frames < SHORTEST_FRAMES:
        return None
    length = min(frames, WINDOW_FRAMES)
    starts = [*range(0, frames - length, HOP_FRAMES), frames - length]
    windows = [slice(start, start + length) for start in starts]
    return most_common([_read_window(centre_T2[w], area_T[w], turn_T[w], shape) for w in windows])


def _read_window(centre_T2: Array, area_T: Array, turn_T: Array, shape: str | None) -> str | None:
    is_seen_T = np.isfinite(area_T)
    if is_seen_T.mean() < FEWEST_SEEN:
        return None
    seconds_T = np.arange(len(area_T))[is_seen_T] / FPS
    travel = _read_travel(seconds_T, centre_T2[is_seen_T])
    pulse = _read_pulse(seconds_T, np.sqrt(area_T[is_seen_T]))
    outline = OUTLINES.get(shape or "")
    arms = outline.arms if isinstance(outline, Cornered) else None
    spin = _read_spin(seconds_T, turn_T[is_seen_T], arms) if arms else "steady"
    if travel != "in place":
        return None if pulse == "pulses" or spin in ("spins", "turns") else travel
    if pulse == "pulses":
        return "pulses" if spin in ("steady", "unclear") else None
    if pulse is None:
        return None
    return {"steady": "stays still", "spins": "spins"}.get(spin)


def _residual(error: Array) -> Array:
    """Root mean square over the last axis, its largest tenth left out."""
    kept = math.ceil(error.shape[-1] * (1 - _OUTLIERS))
    squares = np.partition(np.square(error), kept - 1, axis=-1)
    return np.sqrt(squares[..., :kept].mean(axis=-1))


def _wrapped(difference: Array) -> Array:
    return difference - np.round(difference)


def _read_travel(seconds_T: Array, centre_T2: Array) -> str | None:
    """``in place``, a motion that leads somewhere, or None."""
    steps = _wrapped(np.diff(centre_T2, axis=0))
    path_T2 = np.concatenate([centre_T2[:1], centre_T2[:1] + np.cumsum(steps, axis=0)])
    velocity, residual = _fit_line(seconds_T, path_T2)
    if residual < LINE_RESIDUAL:
        speed = float(np.hypot(*velocity))
        if speed < STILL_SPEED:
            return "in place"
        for motion, direction in MOVE_DIRECTIONS.items():
            along = float(velocity @ np.array(direction))
            if along > speed * math.cos(AXIS_TOLERANCE):
                return motion if abs(speed / MOVE_SPEED - 1) <= RATE_TOLERANCE else None
    zigzag_residual = _fit_zigzag(seconds_T, centre_T2)
    if residual < LINE_RESIDUAL:  # one leg of a zigzag, or a direction outside the nine
        return "bounces" if zigzag_residual < CURVE_RESIDUAL else None
    orbit_residual, is_clockwise = _fit_orbit(seconds_T, centre_T2)
    if min(orbit_residual, zigzag_residual) > CURVE_RESIDUAL:
        return None
    if zigzag_residual < orbit_residual:
        return "bounces"
    return "circles" if is_clockwise else None


def _fit_line(seconds_T: Array, path_T2: Array) -> tuple[Array, float]:
    """Velocity and residual of the best line, refitted once without the outliers."""
    basis_T2 = np.stack([np.ones_like(seconds_T), seconds_T], axis=1)
    kept_T = np.ones(len(seconds_T), dtype=bool)
    for _ in range(2):
        fit_22 = np.linalg.lstsq(basis_T2[kept_T], path_T2[kept_T], rcond=None)[0]
        error_T = np.hypot(*(path_T2 - basis_T2 @ fit_22).T)
        kept_T = error_T <= np.quantile(error_T, 1 - _OUTLIERS)
    return fit_22[1], float(_residual(error_T))


def _fit_orbit(seconds_T: Array, centre_T2: Array) -> tuple[float, bool]:
    """Residual of the best orbit round about the middle, and whether it runs clockwise."""
    away_T = (centre_T2[:, 0] - 0.5) + 1j * (centre_T2[:, 1] - 0.5)
    rates_R = ORBIT_RATE * np.concatenate([_RATES_R, -_RATES_R])
    turn_RT = np.exp(1j * rates_R[:, None] * seconds_T)
    # Least squares of middle + arm * turn; both are then held to what still is this orbit.
    back_R, mean_R = (away_T * turn_RT.conj()).mean(axis=1), turn_RT.mean(axis=1)
    arm_R = (back_R - away_T.mean() * mean_R.conj()) / (1 - np.abs(mean_R) ** 2)
    middle_R = _clipped(away_T.mean() - arm_R * mean_R, 0.0, ORBIT_MIDDLE_TOLERANCE)
    low, high = ORBIT_RADIUS * (1 - RATE_TOLERANCE), ORBIT_RADIUS * (1 + RATE_TOLERANCE)
    arm_R = _clipped(back_R - middle_R * mean_R.conj(), low, high)
    error_RT = away_T - middle_R[:, None] - arm_R[:, None] * turn_RT
    residual_R = _residual(np.abs(error_RT))
    best = int(residual_R.argmin())
    return float(residual_R[best]), bool(rates_R[best] > 0)


def _clipped(vector: NDArray[np.complex128], low: float, high: float) -> NDArray[np.complex128]:
    length = np.maximum(np.abs(vector), 1e-9)
    return vector / length * np.clip(length, low, high)


def _fit_zigzag(seconds_T: Array, centre_T2: Array) -> float:
    """Residual of the best zigzag with one speed on both axes, between either size's walls."""
    phases_P = np.arange(_ZIGZAG_PHASES) / _ZIGZAG_PHASES
    way_RT = BOUNCE_SPEED * _RATES_R[:, None] * seconds_T
    best = math.inf
    for wall in RADII.values():
        room = 1 - 2 * wall
        phase_PRT = np.mod(2 * room * phases_P[:, None, None] + way_RT, 2 * room)
        position_PRT = wall + room - np.abs(room - phase_PRT)
        squares_R = np.zeros(len(_RATES_R))
        for axis in (0, 1):
            error_PRT = _wrapped(centre_T2[:, axis] - position_PRT)
            squares_R += np.square(_residual(error_PRT)).min(axis=0)
        best = min(best, float(np.sqrt(squares_R.min())))
    return best


def _read_spin(seconds_T: Array, turn_T: Array, arms: int) -> str:
    """``steady``, ``spins``, ``turns`` (another rate or sense), or ``unclear``."""
    vector_T = np.exp(1j * arms * turn_T)
    back_RT = np.exp(-1j * arms * _TURN_RATES_R[:, None] * seconds_T)
    coherence_R = np.abs((vector_T * back_RT).mean(axis=1))
    best = int(coherence_R.argmax())
    rate = float(_TURN_RATES_R[best])
    if coherence_R[best] < COHERENT:
        return "unclear"
    if abs(rate) < STILL_TURN_RATE:
        return "steady"
    return "spins" if abs(rate / SPIN_RATE - 1) <= RATE_TOLERANCE else "turns"


def _read_pulse(seconds_T: Array, radius_T: Array) -> str | None:
    """``steady``, ``pulses``, or None."""
    swell_T = radius_T / np.median(radius_T) - 1
    steady_residual = float(_residual(swell_T))
    if steady_residual < STEADY_RADIUS:
        return "steady"
    depth, residual = 0.0, math.inf
    for rate in _RATES_R * 2 * math.pi / PULSE_SECONDS:
        angle_T = rate * seconds_T
        basis_T3 = np.stack([np.ones_like(angle_T), np.cos(angle_T), np.sin(angle_T)], axis=1)
        fit_3 = np.linalg.lstsq(basis_T3, radius_T, rcond=None)[0]
        error = float(_residual(radius_T - basis_T3 @ fit_3)) / max(float(fit_3[0]), 1e-6)
        if error < residual:
            depth, residual = float(np.hypot(*fit_3[1:]) / max(fit_3[0], 1e-6)), error
    is_deep = PULSE_DEPTH / 2 <= depth <= 2 * PULSE_DEPTH
    return "pulses" if is_deep and residual < steady_residual / 2 else None
