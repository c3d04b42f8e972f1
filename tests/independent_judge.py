"""A second judge of shapes-world clips, written from the description of the world alone.

Its method is analysis by synthesis, in NumPy: coverage of a pixel by linear unmixing of the chroma,
shape and radius together by the best fit of the rotation-free radial profile, motion by the best
fit of each of the nine paths. It shares nothing with ``longlive.metrics``: where both agree, the
description is what they agree about.
"""

# Shape suffixes: T frames, H rows, W columns, C color channels, R radii, A angles, K candidates.

from itertools import pairwise

import numpy as np

FPS = 16
COLORS = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.75, 0.15),
    "blue": (0.10, 0.25, 0.95),
    "yellow": (0.95, 0.85, 0.10),
    "magenta": (0.90, 0.10, 0.80),
    "cyan": (0.10, 0.85, 0.90),
}
BACKGROUNDS = {
    "grey": (0.50, 0.50, 0.50),
    "snow": (0.93, 0.93, 0.93),
    "night": (0.04, 0.05, 0.12),
    "sand": (0.76, 0.70, 0.55),
}
FOLDS = {"square": 4, "triangle": 3, "star": 5}
ROUND = ("circle", "ring")
RADII = np.arange(0.05, 0.28, 0.002)
SLOTS = ("size", "colour", "shape", "motion", "background")


def _chroma(values):
    return values - values.mean(-1, keepdims=True)


def _nearest(value, table, within):
    names = list(table)
    distances = [np.linalg.norm(np.asarray(table[name]) - value) for name in names]
    best = int(np.argmin(distances))
    return names[best] if distances[best] <= within else None


def _boundary(shape, angles_A):
    """Distance from the center to the outline at each angle, for r = 1 and rotation 0."""
    if shape == "circle":
        return np.ones_like(angles_A)
    if shape == "ring":
        return np.full_like(angles_A, 1.15)
    if shape == "star":
        corner_radii = np.tile([1.35, 0.55], 5)
    else:
        radius = 1.25 if shape == "triangle" else 0.886 * np.sqrt(2.0)
        corner_radii = np.full(FOLDS[shape], radius)
    count = len(corner_radii)
    step = 2 * np.pi / count
    index = np.floor((angles_A % (2 * np.pi)) / step).astype(int)
    inside = (angles_A % (2 * np.pi)) - index * step
    a, b = corner_radii[index], corner_radii[(index + 1) % count]
    # The edge between two corners in polar form.
    return a * b * np.sin(step) / (a * np.sin(inside) + b * np.sin(step - inside))


def _profiles(rho_R, blur):
    """Covered share of the circle of each radius, for every shape and r: [K, R], and the names."""
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    rows, labels = [], []
    for shape in (*FOLDS, *ROUND):
        edge_A = _boundary(shape, angles)
        for radius in RADII:
            inside = np.clip((radius * edge_A[:, None] - rho_R) / blur + 0.5, 0, 1).mean(0)
            if shape == "ring":
                inside = inside - np.clip((0.65 * radius - rho_R) / blur + 0.5, 0, 1)
            rows.append(inside)
            labels.append((shape, radius))
    return np.array(rows), labels


def _center(cover_HW):
    """Area centroid on the torus, as (x, y)."""
    side = cover_HW.shape[0]
    at = (np.arange(side) + 0.5) / side
    total = cover_HW.sum()
    center = []
    for axis in (0, 1):  # sums over rows leave the columns: x first
        mass = cover_HW.sum(axis)
        rough = np.angle((mass * np.exp(2j * np.pi * at)).sum()) / (2 * np.pi)
        offset = (at - rough + 0.5) % 1 - 0.5
        center.append((rough + (mass * offset).sum() / total) % 1)
    return np.array(center)


def _polar(cover_HW, center, rho_R, angles_A):
    side = cover_HW.shape[0]
    x = (center[0] + rho_R[:, None] * np.cos(angles_A)) * side - 0.5
    y = (center[1] + rho_R[:, None] * np.sin(angles_A)) * side - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    u, v = x - left, y - top
    left, top, right, below = left % side, top % side, (left + 1) % side, (top + 1) % side
    upper = cover_HW[top, left] * (1 - u) + cover_HW[top, right] * u
    lower = cover_HW[below, left] * (1 - u) + cover_HW[below, right] * u
    return upper * (1 - v) + lower * v


class Frame:
    """What one frame shows: ``background``, ``colour``, ``shape``, ``size`` or None each."""

    def __init__(self, pixels_HWC, profiles, rho_R, angles_A):
        self.colour = self.shape = self.size = self.center = self.radius = self.polar_RA = None
        self.foreground = None
        base = np.median(pixels_HWC.reshape(-1, 3), axis=0)
        self.background = _nearest(base, BACKGROUNDS, within=0.15)
        self.cover_HW = np.zeros(pixels_HWC.shape[:2])
        # A light gray direction drops out of the chroma: noise and white stars do not count.
        away_HWC = _chroma(pixels_HWC - base)
        strength_HW = np.linalg.norm(away_HWC, axis=-1)
        peak = np.quantile(strength_HW, 0.997)
        if peak < 0.15:
            return
        core = strength_HW > 0.7 * peak
        self.foreground = np.median(pixels_HWC[core], axis=0)
        self.colour = _nearest(self.foreground, COLORS, within=0.3)
        axis = _chroma(self.foreground - base)
        cover_HW = np.clip(away_HWC @ axis / (axis @ axis), 0, 1)
        self.cover_HW = np.where(cover_HW < 0.15, 0.0, cover_HW)
        if self.cover_HW.mean() < 0.004:
            return
        self.center = _center(self.cover_HW)
        self.polar_RA = _polar(self.cover_HW, self.center, rho_R, angles_A)
        rows_KR, labels = profiles
        seen_R = self.polar_RA.mean(1)
        misfit_K = ((rows_KR - seen_R) ** 2 * rho_R).sum(1)
        best = int(np.argmin(misfit_K))
        if misfit_K[best] > 0.05 * (seen_R**2 * rho_R).sum():
            return
        self.shape, self.radius = labels[best]
        self.size = "small" if self.radius < 0.134 else "large"

    def phase(self, fold, rho_R, angles_A):
        """Angle of the ``fold``-fold harmonic of the outline, in the object's own turn."""
        weight = (self.polar_RA * rho_R[:, None] ** 2).sum(0)
        return np.angle((weight * np.exp(1j * fold * angles_A)).sum())


class IndependentJudge:
    """Reads clips of ``[T, H, W, 3]`` in [0, 1], square, 16 frames per second."""

    def __init__(self, side):
        self.rho_R = np.arange(0.5, 0.36 * side) / side
        self.angles_A = np.linspace(0, 2 * np.pi, 90, endpoint=False)
        self.profiles = _profiles(self.rho_R, 1.5 / side)

    def frames(self, pixels_THWC):
        return [
            Frame(pixels.astype(np.float64), self.profiles, self.rho_R, self.angles_A)
            for pixels in pixels_THWC
        ]

    def readings(self, pixels_THWC, start=0, settle=0):
        """The five readings from frame ``start`` on; the motion is read ``settle`` frames later."""
        return self.readings_of(self.frames(pixels_THWC[start:]), settle)

    def readings_of(self, frames, settle=0):
        result = {
            slot: _majority([getattr(frame, slot) for frame in frames])
            for slot in ("size", "colour", "shape", "background")
        }
        result["motion"] = self._motion(frames[settle:], result["shape"], result["size"])
        return result

    def _motion(self, frames, shape, size):
        seen = [(n / FPS, f) for n, f in enumerate(frames) if f.center is not None]
        if len(seen) < 0.8 * len(frames) or len(seen) < FPS * 2 - 1 or shape is None:
            return None
        t = np.array([time for time, _ in seen])
        steps = [(b.center - a.center + 0.5) % 1 - 0.5 for (_, a), (_, b) in pairwise(seen)]
        path = seen[0][1].center + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
        spread = np.abs(path - np.median(path, axis=0)).max()
        if spread < 0.03:
            return self._in_place(t, [frame for _, frame in seen], shape)
        r = {"small": 0.10, "large": 0.18, None: 0.14}[size]
        options = [_straight(t, path), _orbit(t, path), _bounce(t, path, r)]
        name, error = min((o for o in options if o), key=lambda o: o[1], default=(None, 1.0))
        return name if error < 0.03 else None

    def _in_place(self, t, frames, shape):
        r = np.sqrt([frame.cover_HW.mean() for frame in frames])
        basis = np.stack([np.ones_like(t), np.sin(np.pi * t), np.cos(np.pi * t)], axis=1)
        weights, *_ = np.linalg.lstsq(basis, r, rcond=None)
        swing = np.hypot(*weights[1:]) / weights[0]
        if swing > 0.2:
            rest = np.sqrt(np.mean((basis @ weights - r) ** 2)) / weights[0]
            return "pulses" if swing < 0.5 and rest < 0.1 else None
        if np.std(r) / np.mean(r) > 0.1:
            return None
        if shape in ROUND:
            return "stays still"
        fold = FOLDS[shape]
        phases = [frame.phase(fold, self.rho_R, self.angles_A) for frame in frames]
        turns = np.polyfit(t, np.unwrap(phases) / (2 * np.pi * fold), 1)[0]
        if abs(turns) < 0.05:
            return "stays still"
        return "spins" if 0.17 < turns < 0.33 else None


def _majority(values):
    names = [value for value in values if value is not None]
    if not names:
        return None
    best = max(sorted(set(names)), key=names.count)
    return best if names.count(best) > len(values) / 2 else None


def _straight(t, path):
    (vx, vy), start = np.polyfit(t, path, 1)
    error = np.sqrt(np.mean((start + t[:, None] * (vx, vy) - path) ** 2))
    speed, angle = np.hypot(vx, vy), np.degrees(np.arctan2(vy, vx))
    if not 0.18 < speed < 0.32:
        return None
    for name, heading in (("right", 0), ("down", 90), ("left", 180), ("up", -90)):
        if abs((angle - heading + 180) % 360 - 180) < 20:
            return f"moves {name}", error
    return None


def _orbit(t, path):
    z = path[:, 0] + 1j * path[:, 1]
    turn = np.exp(0.5j * np.pi * t)
    basis = np.stack([np.ones_like(turn), turn], axis=1)
    (middle, arm), *_ = np.linalg.lstsq(basis, z, rcond=None)
    error = np.sqrt(np.mean(np.abs(basis @ (middle, arm) - z) ** 2) / 2)
    off = (np.array([middle.real, middle.imag])) % 1 - 0.5
    return (
        ("circles", error) if abs(np.abs(arm) - 0.22) < 0.06 and np.abs(off).max() < 0.1 else None
    )


def _bounce(t, path, r):
    """Each coordinate runs to and fro between r and 1 - r; its phase is found by trial."""
    length = 1 - 2 * r
    phases = np.linspace(0, 2 * length, 400, endpoint=False)
    error = 0.0
    for axis in (0, 1):
        run = (phases[:, None] + 0.30 / np.sqrt(2) * t) % (2 * length)
        tries = 1 - r - np.abs(run - length)
        error += np.mean((tries - path[:, axis] % 1) ** 2, axis=1).min() / 2
    return "bounces", np.sqrt(error)


def switch_lag(frames, wanted, switch):
    """Frames from ``switch`` to the first of 4 running that read right, or None."""
    slots = ("colour", "shape", "background")
    right = [all(getattr(f, slot) == wanted[slot] for slot in slots) for f in frames[switch:]]
    return next((n for n in range(len(right) - 3) if all(right[n : n + 4])), None)


def seam(pixels_THWC, switches=()):
    """Mean change into the first frame of a block over the mean change into any other."""
    change = {n: np.abs(b - a).mean() for n, (a, b) in enumerate(pairwise(pixels_THWC), start=1)}
    for switch in switches:
        change.pop(switch, None)
    first = [value for n, value in change.items() if n >= 9 and (n - 9) % 12 == 0]
    other = [value for n, value in change.items() if n < 9 or (n - 9) % 12]
    return np.mean(first) / np.mean(other)


def restlessness(pixels_THWC, frames):
    """Mean change of the pixels that are background in both of two consecutive frames."""
    totals = []
    for (a, fa), (b, fb) in pairwise(zip(pixels_THWC, frames, strict=True)):
        ground = (fa.cover_HW < 0.05) & (fb.cover_HW < 0.05)
        totals.append(np.abs(b - a)[ground].mean())
    return float(np.mean(totals))


def drift(pixels_THWC, frames, pulses=False):
    """Relative change of saturation, area and background between the first and last tenth."""
    tenth = max(1, round(len(frames) / 10))
    if pulses:
        tenth = int(np.ceil(tenth / (2 * FPS))) * 2 * FPS

    def part(chosen):
        colors = [frames[n].foreground for n in chosen if frames[n].foreground is not None]
        saturation = np.mean([1 - c.min() / c.max() for c in colors])
        area = np.mean([frames[n].cover_HW.mean() for n in chosen])
        ground = [pixels_THWC[n][frames[n].cover_HW < 0.05].mean() for n in chosen]
        return np.array([saturation, area, np.mean(ground)])

    first, last = part(range(tenth)), part(range(len(frames) - tenth, len(frames)))
    return (last - first) / first
