"""The vocabulary of the shapes world: its words, and the numbers and outlines behind them.

The renderer (``longlive.data.shapes_world``) and the judge (``longlive.metrics.shapes_judge``) both
stand on this page, and on nothing of each other. Lengths are fractions of the side of a frame, x
grows to the right and y down, angles in radians grow clockwise as seen.

Shape suffixes: ``N`` frames, ``H`` ``W`` rows and columns.
"""

import hashlib
import math
import re
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

from longlive.errors import UserError

Rgb = tuple[float, float, float]

RADII: dict[str, float] = {"small": 0.10, "large": 0.18}
COLOURS: dict[str, Rgb] = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.75, 0.15),
    "blue": (0.10, 0.25, 0.95),
    "yellow": (0.95, 0.85, 0.10),
    "magenta": (0.90, 0.10, 0.80),
    "cyan": (0.10, 0.85, 0.90),
}
BACKGROUNDS: dict[str, Rgb] = {
    "grey": (0.50, 0.50, 0.50),
    "snow": (0.93, 0.93, 0.93),
    "night": (0.04, 0.05, 0.12),
    "sand": (0.76, 0.70, 0.55),
}
MOTIONS = (
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "circles",
    "bounces",
    "spins",
    "pulses",
    "stays still",
)

MOVE_DIRECTIONS: dict[str, tuple[int, int]] = {
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
}
MOVE_SPEED = 0.25  # per second
ORBIT_RADIUS = 0.22  # round (0.5, 0.5)
ORBIT_RATE = 2 * math.pi / 4  # radians per second, clockwise
BOUNCE_SPEED = 0.30 / math.sqrt(2)  # per second, in x and in y
SPIN_RATE = 2 * math.pi * 0.25  # radians per second, clockwise
PULSE_DEPTH = 0.35  # of the radius
PULSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Round:
    """A disc or a ring around the centre, in units of the radius r."""

    outer: float
    inner: float = 0.0

    @property
    def area(self) -> float:
        """Area in units of r squared."""
        return math.pi * (self.outer**2 - self.inner**2)


@dataclass(frozen=True, slots=True)
class Cornered:
    """A polygon whose boundary runs from ``arms`` outer corners down to inner points and up again.

    For a regular polygon the inner points are the middles of its sides.

    Attributes:
        arms: Outer corners; also the order of the rotational symmetry.
        outer: Distance of the outer corners from the centre, in units of r.
        inner: Distance of the points half way between two of them, in units of r.
        first_corner: Angle of an outer corner at rotation 0.
    """

    arms: int
    outer: float
    inner: float
    first_corner: float

    @property
    def area(self) -> float:
        """Area in units of r squared."""
        return self.arms * self.outer * self.inner * math.sin(math.pi / self.arms)


OUTLINES: dict[str, Round | Cornered] = {
    "circle": Round(outer=1.0),
    "square": Cornered(4, 0.886 * math.sqrt(2), 0.886, first_corner=math.pi / 4),
    "triangle": Cornered(3, 1.25, 1.25 / 2, first_corner=-math.pi / 2),
    "star": Cornered(5, 1.35, 0.55, first_corner=-math.pi / 2),
    "ring": Round(outer=1.15, inner=0.65),
}

SLOTS: dict[str, tuple[str, ...]] = {
    "size": tuple(RADII),
    "colour": tuple(COLOURS),
    "shape": tuple(OUTLINES),
    "motion": MOTIONS,
    "background": tuple(BACKGROUNDS),
}

_GRAMMAR = re.compile(r"a (\S+) (\S+) (\S+) (.+) over (.+)")
_HELD_OUT_BELOW = 26  # of 256


@dataclass(frozen=True, slots=True)
class ShapePrompt:
    """One of the 2160 things that a clip of the shapes world can show.

    Raises:
        UserError: If a word is not one of its slot's.
    """

    size: str
    colour: str
    shape: str
    motion: str
    background: str

    def __post_init__(self) -> None:
        for slot, words in SLOTS.items():
            word = getattr(self, slot)
            if word not in words:
                raise UserError(f"{word!r} is not a {slot}: use one of {', '.join(words)}")

    @property
    def text(self) -> str:
        return f"a {self.size} {self.colour} {self.shape} {self.motion} over {self.background}"

    @property
    def radius(self) -> float:
        """The radius r that the size stands for, as a fraction of the side."""
        return RADII[self.size]


def parse(text: str) -> ShapePrompt:
    """Read a prompt's text; spaces around it do not matter.

    Raises:
        UserError: If the text does not follow the grammar, or a word is not one of its slot's.
    """
    match = _GRAMMAR.fullmatch(text.strip())
    if match is None:
        raise UserError(
            f"{text!r} is not a prompt of the shapes world: "
            "write 'a {size} {colour} {shape} {motion} over {background}'"
        )
    return ShapePrompt(*match.groups())


@cache
def all_prompts() -> tuple[ShapePrompt, ...]:
    """All 2160 prompts, the background changing fastest."""
    return tuple(ShapePrompt(*words) for words in product(*SLOTS.values()))


def is_held_out(text: str) -> bool:
    """Whether a prompt is kept for testing, so that training must never see it."""
    return hashlib.sha256(text.encode()).digest()[0] < _HELD_OUT_BELOW


@cache
def training_prompts() -> tuple[ShapePrompt, ...]:
    """The 1909 prompts that training may use."""
    return tuple(prompt for prompt in all_prompts() if not is_held_out(prompt.text))


@cache
def held_out_prompts() -> tuple[ShapePrompt, ...]:
    """The 251 prompts that only tests may use."""
    return tuple(prompt for prompt in all_prompts() if is_held_out(prompt.text))


def coverage(
    shape: str, dx: Tensor, dy: Tensor, radius: Tensor, rotation: Tensor, pixel: float | Tensor
) -> Tensor:
    """How much of each pixel a shape covers, from the exact distance to its outline.

    Args:
        shape: One of the listed shapes.
        dx: Pixel centres relative to the shape's centre, to the right; broadcasts with the rest.
        dy: Likewise, down.
        radius: The radius r.
        rotation: Clockwise, in radians.
        pixel: Width of a pixel, in the unit of the other lengths; more draws a softer edge.

    Returns:
        Values in [0, 1] in the broadcast shape of the arguments.
    """
    outline = OUTLINES[shape]
    if isinstance(outline, Round):
        middle = radius * ((outline.outer + outline.inner) / 2 if outline.inner else 0.0)
        half_width = radius * outline.outer - middle
        distance = (torch.hypot(dx, dy) - middle).abs_() - half_width
    else:
        distance = _distance_to_corners(outline, dx, dy, radius, rotation)
    return (0.5 - distance / pixel).clamp_(0.0, 1.0)


def _distance_to_corners(
    outline: Cornered, dx: Tensor, dy: Tensor, radius: Tensor, rotation: Tensor
) -> Tensor:
    """Signed distance, negative inside.

    Mirrors and turns map every point into the half arm between an outer corner A, which lies on
    the new x axis, and the inner point B next to it; there the outline is the segment AB.
    """
    arm = 2 * math.pi / outline.arms
    angle = torch.atan2(dy, dx) - (rotation + outline.first_corner)
    angle = (angle - arm * torch.round(angle / arm)).abs_()
    length = torch.hypot(dx, dy)
    # From A, and in units of the radius, so that AB is the same for all frames.
    x = length * torch.cos(angle) / radius - outline.outer
    y = length * torch.sin(angle) / radius
    ab_x = outline.inner * math.cos(math.pi / outline.arms) - outline.outer
    ab_y = outline.inner * math.sin(math.pi / outline.arms)
    along = ((x * ab_x + y * ab_y) / (ab_x**2 + ab_y**2)).clamp_(0.0, 1.0)
    is_inside = ab_x * y > ab_y * x
    distance = torch.hypot(x - along * ab_x, y - along * ab_y) * radius
    return torch.where(is_inside, -distance, distance)
