"""What a clip of the shapes world shows, from pixels alone, and whether that is what was asked for.

Colour, size, shape and background are the commonest readings of the frames, the motion is read
from the path. After a prompt switch a second is left to the change, two for the motion.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from longlive.errors import UserError
from longlive.geometry import FPS
from longlive.metrics.shapes_path import most_common, read_motion
from longlive.metrics.shapes_reading import FrameReadings, read_frames
from longlive.shapes import OUTLINES, SLOTS, Round, ShapePrompt, parse

SMALL_BELOW = 0.134  # radius, between the two sizes
SETTLE_FRAMES = FPS  # after a switch, before anything but the motion is judged
MOTION_SETTLE_FRAMES = 2 * FPS
LAG_FRAMES = 4  # that must read right in a row

_LOOK_THE_SAME_ON_ROUND_SHAPES = ("spins", "stays still")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a clip shows: a listed word for each slot, or None."""

    size: str | None
    colour: str | None
    shape: str | None
    motion: str | None
    background: str | None


@dataclass(frozen=True, slots=True)
class ClipScore:
    """Which slots of a prompt a clip shows."""

    size: bool
    colour: bool
    shape: bool
    motion: bool
    background: bool

    @property
    def mean(self) -> float:
        """Share of the slots that are right."""
        return sum(asdict(self).values()) / len(SLOTS)

    @property
    def all_five(self) -> bool:
        return all(asdict(self).values())


def read_clip(
    frames_TCHW: Tensor, start: int = 0, end: int | None = None, is_after_switch: bool = False
) -> Reading:
    """Read what frames ``start`` to ``end - 1`` of a clip show.

    Args:
        frames_TCHW: ``[T, 3, side, side]``, float in [0, 1], 16 frames a second.
        start: First frame of the span; the switch frame, if it begins with a prompt switch.
        end: One past its last frame; the clip's end by default.
        is_after_switch: Leave out the first second, and the second one too for the motion.

    Raises:
        UserError: If these are no frames of the shapes world or nothing is left of the span.
    """
    return read_span(read_frames(frames_TCHW[start:end]), is_after_switch=is_after_switch)


def read_span(
    readings: FrameReadings, start: int = 0, end: int | None = None, is_after_switch: bool = False
) -> Reading:
    """As ``read_clip``, from frames that have been read already."""
    end = len(readings) if end is None else end
    settled = start + (SETTLE_FRAMES if is_after_switch else 0)
    if start < 0 or not settled < end <= len(readings):
        raise UserError(
            f"frames {start} to {end} of {len(readings)} leave nothing to judge: "
            "hold a prompt for at least 4 seconds"
        )
    look = readings.span(settled, end)
    shape = _common(look.shape, "shape")
    path = readings.span(start + (MOTION_SETTLE_FRAMES if is_after_switch else 0), end)
    turn_T = path.turn[:, list(OUTLINES).index(shape)] if shape else path.area
    return Reading(
        size=_read_size(look, shape),
        colour=_common(look.colour, "colour"),
        shape=shape,
        motion=read_motion(
            path.centre.double().numpy(), path.area.double().numpy(), turn_T.double().numpy(), shape
        ),
        background=_common(look.background, "background"),
    )


def score(reading: Reading, prompt: ShapePrompt) -> ClipScore:
    """Compare a reading with a prompt, slot by slot.

    A circle or ring that spins looks the same as one that stays still, so for a prompt with one of
    these either reading is right.
    """
    is_right = {slot: getattr(reading, slot) == getattr(prompt, slot) for slot in SLOTS}
    same = _LOOK_THE_SAME_ON_ROUND_SHAPES
    if isinstance(OUTLINES[prompt.shape], Round) and prompt.motion in same:
        is_right["motion"] = reading.motion in same
    return ClipScore(**is_right)


def judge_clip(
    frames_TCHW: Tensor,
    prompt: ShapePrompt,
    start: int = 0,
    end: int | None = None,
    is_after_switch: bool = False,
) -> ClipScore:
    """Say which of a prompt's five slots a clip shows; arguments as for ``read_clip``."""
    return score(read_clip(frames_TCHW, start, end, is_after_switch), prompt)


def judge_clips(
    frames_BTCHW: Tensor, prompts: Sequence[ShapePrompt | str], is_after_switch: bool = False
) -> list[ClipScore]:
    """Judge one clip per prompt.

    Args:
        frames_BTCHW: ``[B, T, 3, side, side]``, float in [0, 1].
        prompts: Parsed, or their texts.
        is_after_switch: Whether frame 0 is the first after a prompt switch.

    Raises:
        UserError: If clips and prompts differ in number or a text is no prompt.
    """
    if len(frames_BTCHW) != len(prompts):
        raise UserError(f"{len(frames_BTCHW)} clips need as many prompts, got {len(prompts)}")
    asked = [parse(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    return [
        judge_clip(frames_TCHW, prompt, is_after_switch=is_after_switch)
        for frames_TCHW, prompt in zip(frames_BTCHW, asked, strict=True)
    ]


def judge_timeline(
    frames_TCHW: Tensor, timeline: Sequence[tuple[int, ShapePrompt]]
) -> list[ClipScore]:
    """Judge every prompt of a clip with prompt switches.

    Args:
        frames_TCHW: ``[T, 3, side, side]``, float in [0, 1].
        timeline: ``(first frame, prompt)`` in order, each held for at least 4 seconds.

    Returns:
        One score a prompt.

    Raises:
        UserError: If a prompt is not held long enough to leave anything to judge.
    """
    readings = read_frames(frames_TCHW)
    ends = [start for start, _ in timeline[1:]] + [len(readings)]
    return [
        score(read_span(readings, start, end, is_after_switch=start > 0), prompt)
        for (start, prompt), end in zip(timeline, ends, strict=True)
    ]


def switch_lag(
    frames_TCHW: Tensor | FrameReadings,
    prompt: ShapePrompt,
    switch_frame: int,
    end: int | None = None,
) -> int | None:
    """Frames from a switch to the first of 4 in a row that show the new look.

    Args:
        frames_TCHW: ``[T, 3, side, side]``, float in [0, 1], or the readings of such frames.
        prompt: The new prompt; its colour, shape and background count.
        switch_frame: First frame of the new prompt.
        end: One past its last frame.

    Returns:
        0 if the change is there at once; None if it never comes.
    """
    readings = frames_TCHW if isinstance(frames_TCHW, FrameReadings) else read_frames(frames_TCHW)
    held = readings.span(switch_frame, len(readings) if end is None else end)
    is_right_T = torch.ones(len(held), dtype=torch.bool)
    for slot in ("colour", "shape", "background"):
        is_right_T &= getattr(held, slot) == SLOTS[slot].index(getattr(prompt, slot))
    if len(held) < LAG_FRAMES:
        return None
    runs = np.flatnonzero(is_right_T.unfold(0, LAG_FRAMES, 1).all(dim=1).numpy())
    return int(runs[0]) if len(runs) else None


def _common(index_T: Tensor, slot: str) -> str | None:
    words: tuple[str | None, ...] = (*SLOTS[slot], None)  # NOTHING is -1, the last
    return words[most_common(index_T.tolist())]


def _read_size(readings: FrameReadings, shape: str | None) -> str | None:
    if shape is None:
        return None
    radius_T = (readings.area / OUTLINES[shape].area).sqrt()
    sizes = ["small" if radius < SMALL_BELOW else "large" for radius in radius_T[~radius_T.isnan()]]
    return most_common(sizes) if sizes else None
