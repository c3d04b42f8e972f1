"""How a long clip of the shapes world holds up: drift, background flicker, and seams of blocks.

None of these looks at the prompt's words, apart from ``drift``, which must know a pulse from a
change of size.

Shape suffixes: ``T`` frames, ``C`` channels, ``H`` ``W`` rows and columns.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import count, takewhile

import torch
from torch import Tensor

from longlive.errors import UserError
from longlive.geometry import FPS, frames_of
from longlive.metrics.shapes_reading import FrameReadings, read_frames
from longlive.metrics.shapes_segment import background_pixels, check_frames
from longlive.shapes import PULSE_SECONDS, ShapePrompt


@dataclass(frozen=True, slots=True)
class Drift:
    """Change from the first to the last tenth of a video, relative to the first; 0 is none.

    Attributes:
        saturation: Of the median colour of the object (HSV).
        area: Of the object.
        background: Mean over pixels and channels.
    """

    saturation: float
    area: float
    background: float


def drift(frames_TCHW: Tensor | FrameReadings, prompt: ShapePrompt) -> Drift:
    """Measure how far a long video of one prompt has moved away from its own beginning.

    Args:
        frames_TCHW: ``[T, 3, side, side]``, float in [0, 1], or the readings of such frames.
        prompt: What the video shows; for ``pulses`` the tenths are rounded up to whole periods.

    Returns:
        Signed changes; NaN where a tenth shows no object.

    Raises:
        UserError: If the video is too short for two such tenths.
    """
    readings = frames_TCHW if isinstance(frames_TCHW, FrameReadings) else read_frames(frames_TCHW)
    frames = len(readings)
    unit = round(PULSE_SECONDS * FPS) if prompt.motion == "pulses" else 1
    tenth = max(1, -(-round(frames / 10) // unit)) * unit
    if 2 * tenth > frames:
        raise UserError(
            f"a video of {frames} frames is too short for its drift: it needs at least {2 * tenth}"
        )
    first, last = readings.span(0, tenth), readings.span(frames - tenth, frames)
    return Drift(
        saturation=_change(_saturation(first), _saturation(last)),
        area=_change(first.area, last.area),
        background=_change(first.background_mean, last.background_mean),
    )


def flicker(frames_TCHW: Tensor, truth_TCHW: Tensor, switch_frames: Collection[int] = ()) -> float:
    """Measure what the background changes from frame to frame, beyond what the storage costs.

    Args:
        frames_TCHW: ``[T, 3, side, side]``, float in [0, 1].
        truth_TCHW: A ground-truth clip of the same prompts that went through the same file format.
        switch_frames: First frames of new prompts; the changes into them are left out.

    Returns:
        Mean absolute difference of background pixels, in units of the value range; 0 is best.
    """
    return background_change(frames_TCHW, switch_frames) - background_change(
        truth_TCHW, switch_frames
    )


def background_change(frames_TCHW: Tensor, switch_frames: Collection[int] = ()) -> float:
    """Mean absolute difference of consecutive frames where both show the background.

    Raises:
        UserError: If no two consecutive frames are left to compare.
    """
    check_frames(frames_TCHW)
    kept = _frames_with_a_past(len(frames_TCHW), switch_frames)
    is_background_THW = background_pixels(frames_TCHW)
    is_shared_THW = is_background_THW[kept] & is_background_THW[[t - 1 for t in kept]]
    total = torch.zeros((), dtype=torch.float64)
    for index, is_shared_HW in zip(kept, is_shared_THW, strict=True):
        change_HW = (frames_TCHW[index] - frames_TCHW[index - 1]).abs().mean(0)
        total += (change_HW * is_shared_HW).sum(dtype=torch.float64).cpu()
    return float(total / is_shared_THW.sum().clamp(min=1).cpu())


def seam(
    frames_TCHW: Tensor, switch_frames: Collection[int] = (), block_latent_frames: int = 3
) -> float:
    """Compare the change into the first frame of a block with the change into all other frames.

    Args:
        frames_TCHW: ``[T, C, H, W]``.
        switch_frames: First frames of new prompts; the changes into them are left out.
        block_latent_frames: Latent frames that were denoised together.

    Returns:
        1 where blocks join without a seam, and for a clip in which nothing changes at all.

    Raises:
        UserError: If the clip is shorter than two blocks.
    """
    frames = len(frames_TCHW)
    block_starts = (frames_of(block_latent_frames * block) for block in count(1))
    seams = set(takewhile(lambda start: start < frames, block_starts))
    kept = _frames_with_a_past(frames, switch_frames)
    changes = {t: float((frames_TCHW[t] - frames_TCHW[t - 1]).abs().mean()) for t in kept}
    at_seams = [change for t, change in changes.items() if t in seams]
    elsewhere = [change for t, change in changes.items() if t not in seams]
    if not at_seams or not elsewhere:
        raise UserError(
            f"a clip of {frames} frames shows no seam: it must be longer than one block of "
            f"{frames_of(block_latent_frames)} frames"
        )
    if not any(changes.values()):
        return 1.0
    rest = sum(elsewhere) / len(elsewhere)
    return sum(at_seams) / len(at_seams) / rest if rest else float("inf")


def _frames_with_a_past(frames: int, switch_frames: Collection[int]) -> list[int]:
    kept = [t for t in range(1, frames) if t not in set(switch_frames)]
    if not kept:
        raise UserError(f"a clip of {frames} frames has no two consecutive frames to compare")
    return kept


def _saturation(readings: FrameReadings) -> Tensor:
    brightest, darkest = readings.rgb.amax(1), readings.rgb.amin(1)
    return (brightest - darkest) / brightest


def _change(first: Tensor, last: Tensor) -> float:
    before, after = first.double().nanmean(), last.double().nanmean()
    return float((after - before) / before)
