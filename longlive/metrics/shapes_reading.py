"""What each frame of a clip shows: its background, and the object's colour, shape, area and turn.

A shape is told by drawing: each of the five is drawn with the measured centre, area, turn and edge
softness, and the one that leaves the least difference is read, if it leaves little enough.

Shape suffixes: ``N`` frames, ``S`` listed shapes, ``H`` ``W`` rows and columns.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from longlive.metrics.shapes_segment import Segments, check_frames, segment, shrunk_chunks
from longlive.shapes import BACKGROUNDS, COLOURS, OUTLINES, Cornered, Rgb, Round, coverage

NOTHING = -1
COLOUR_TOLERANCE = 0.3  # half the distance of the closest two listed colours (blue and cyan)
BACKGROUND_TOLERANCE = 0.2  # grey and sand are 0.33 apart
SHAPE_TOLERANCE = 0.2  # share of the area; a square leaves 0.09 of a circle

_SOFTEST_EDGE = 6.0  # pixels


@dataclass(frozen=True, slots=True)
class FrameReadings:
    """One value a frame, on the host; an index is into the slot's words, or ``NOTHING``.

    Attributes:
        background, colour, shape: ``[N]`` indices.
        area: ``[N]``, of the object, as a fraction of the frame; NaN where there is none.
        centre: ``[N, 2]``, x and y in [0, 1); NaN where there is no object.
        turn: ``[N, S]``, the rotation each cornered shape would have, in radians; NaN for round
            ones. It is known up to the shape's symmetry.
        rgb: ``[N, 3]``, median colour of the object.
        background_mean: ``[N]``, over channels and background pixels.
    """

    background: Tensor
    colour: Tensor
    shape: Tensor
    area: Tensor
    centre: Tensor
    turn: Tensor
    rgb: Tensor
    background_mean: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    def span(self, start: int, end: int) -> "FrameReadings":
        """The readings of frames ``start`` to ``end - 1``."""
        return FrameReadings(*(getattr(self, field.name)[start:end] for field in fields(self)))


def read_frames(frames_NCHW: Tensor) -> FrameReadings:
    """Read every frame of a clip on its own.

    Args:
        frames_NCHW: ``[N, 3, side, side]``, float in [0, 1].

    Raises:
        UserError: If these are not square RGB frames with a side that the shapes world has.
    """
    check_frames(frames_NCHW)
    with torch.no_grad():
        parts = [_read(frames) for frames in shrunk_chunks(frames_NCHW)]
    names = [field.name for field in fields(FrameReadings)]
    return FrameReadings(*(torch.cat([getattr(p, n) for p in parts]).cpu() for n in names))


def _read(frames_NCHW: Tensor) -> FrameReadings:
    segments = segment(frames_NCHW)
    alpha_NHW, is_found_N = segments.alpha_NHW, segments.is_found_N
    centre_N2 = _centre(alpha_NHW)
    dx_NHW, dy_NHW = _from_centre(centre_N2, alpha_NHW.shape[-1])
    turn_NS = _turns(alpha_NHW, dx_NHW, dy_NHW)
    mismatch_NS = _mismatches(alpha_NHW, dx_NHW, dy_NHW, turn_NS)
    shape_N = _within(mismatch_NS, SHAPE_TOLERANCE)
    nan = alpha_NHW.new_full((), torch.nan)
    return FrameReadings(
        background=_nearest(segments.background_N3, BACKGROUNDS, BACKGROUND_TOLERANCE),
        colour=_if_found(_nearest(segments.colour_N3, COLOURS, COLOUR_TOLERANCE), segments),
        shape=_if_found(shape_N, segments),
        area=torch.where(is_found_N, alpha_NHW.mean((1, 2)), nan),
        centre=torch.where(is_found_N[:, None], centre_N2, nan),
        turn=turn_NS,
        rgb=segments.colour_N3,
        background_mean=segments.background_mean_N,
    )


def _if_found(index_N: Tensor, segments: Segments) -> Tensor:
    return index_N.masked_fill(~segments.is_found_N, NOTHING)


def _within(distance_NK: Tensor, tolerance: float) -> Tensor:
    best = distance_NK.nan_to_num(torch.inf).min(1)
    return best.indices.masked_fill(~(best.values <= tolerance), NOTHING)


def _nearest(rgb_N3: Tensor, palette: dict[str, Rgb], tolerance: float) -> Tensor:
    palette_K3 = torch.tensor(list(palette.values()), device=rgb_N3.device)
    return _within((rgb_N3[:, None] - palette_K3).square().sum(2).sqrt(), tolerance)


def _pixel_centres(side: int, like: Tensor) -> Tensor:
    return (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) / side


def _centre(alpha_NHW: Tensor) -> Tensor:
    """Centroid on the torus: the circular mean, then the plain mean of what lies around it."""
    position_W = _pixel_centres(alpha_NHW.shape[-1], alpha_NHW)
    means = []
    for profile in (alpha_NHW.sum(1), alpha_NHW.sum(2)):
        angle_W = 2 * math.pi * position_W
        sine, cosine = (profile * f(angle_W) for f in (torch.sin, torch.cos))
        rough = torch.atan2(sine.sum(1), cosine.sum(1)) / (2 * math.pi)
        away = position_W - rough[:, None]
        away = away - away.round()
        means.append(rough + (away * profile).sum(1) / profile.sum(1))
    return torch.stack(means, dim=1).remainder(1.0)


def _from_centre(centre_N2: Tensor, side: int) -> tuple[Tensor, Tensor]:
    position = _pixel_centres(side, centre_N2)
    dx = position - centre_N2[:, 0, None, None]
    dy = position[:, None] - centre_N2[:, 1, None, None]
    return dx - dx.round(), dy - dy.round()


def _turns(alpha_NHW: Tensor, dx_NHW: Tensor, dy_NHW: Tensor) -> Tensor:
    """Rotation of each cornered shape, from the phase of the mass's angular harmonic."""
    away_NHW = torch.complex(*torch.broadcast_tensors(dx_NHW, dy_NHW))
    length_NHW = away_NHW.abs()
    unit_NHW = away_NHW / length_NHW.clamp(min=1e-6)
    # Multiplied up arm by arm: a complex power costs ten times as much.
    moment_NHW = alpha_NHW * length_NHW.square() * unit_NHW
    harmonics = {}
    for arms in range(2, 1 + max(o.arms for o in OUTLINES.values() if isinstance(o, Cornered))):
        moment_NHW = moment_NHW.mul_(unit_NHW)
        harmonics[arms] = moment_NHW.sum((1, 2))
    return torch.stack(
        [
            harmonics[outline.arms].angle() / outline.arms - outline.first_corner
            if isinstance(outline, Cornered)
            else torch.full_like(alpha_NHW[:, 0, 0], torch.nan)
            for outline in OUTLINES.values()
        ],
        dim=1,
    )


def _mismatches(alpha_NHW: Tensor, dx_NHW: Tensor, dy_NHW: Tensor, turn_NS: Tensor) -> Tensor:
    """Difference from each shape as drawn, over the sum of both areas: 0 the same, 1 apart."""
    pixel = 1.0 / alpha_NHW.shape[-1]
    area_N = alpha_NHW.mean((1, 2)).clamp(min=1e-6)
    # Across a straight edge that ramps from 0 to 1 over a width w, alpha (1 - alpha) sums to w / 6.
    softness_N = (alpha_NHW * (1 - alpha_NHW)).mean((1, 2)).clamp(min=0)
    mismatches = []
    for index, (shape, outline) in enumerate(OUTLINES.items()):
        radius_N = (area_N / outline.area).sqrt()
        edge_N = 6 * softness_N / (radius_N * outline_length(outline))
        drawn_NHW = coverage(
            shape,
            dx_NHW,
            dy_NHW,
            radius_N[:, None, None],
            turn_NS[:, index, None, None],
            edge_N.clamp(pixel, _SOFTEST_EDGE * pixel)[:, None, None],
        )
        difference_N = (alpha_NHW - drawn_NHW).abs().mean((1, 2))
        mismatches.append(difference_N / (area_N + drawn_NHW.mean((1, 2))))
    return torch.stack(mismatches, dim=1)


def outline_length(outline: Round | Cornered) -> float:
    """Length of a shape's boundary in units of r."""
    if isinstance(outline, Round):
        return 2 * math.pi * (outline.outer + outline.inner)
    half_arm = math.pi / outline.arms
    side = math.hypot(
        outline.inner * math.cos(half_arm) - outline.outer, outline.inner * math.sin(half_arm)
    )
    return 2 * outline.arms * side
