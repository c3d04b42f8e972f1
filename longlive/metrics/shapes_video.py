"""Everything that the judge of the shapes world says of whole videos, as one metric.

Means over videos; :mod:`longlive.metrics.shapes_judge` and :mod:`longlive.metrics.shapes_stability`
define the single readings, ``docs/metrics.md`` says when they mislead.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from longlive.errors import UserError
from longlive.geometry import FPS
from longlive.metrics.shapes_judge import ClipScore, read_span, score, switch_lag
from longlive.metrics.shapes_reading import FrameReadings, read_frames
from longlive.metrics.shapes_stability import drift, flicker, seam
from longlive.shapes import SLOTS, ShapePrompt

END_FRAMES = 10 * FPS
"""How much of a long video its two ends are, for the adherence at either."""
VALUES = (
    *("adherence", "all_five", *SLOTS),
    *("adherence_first", "adherence_last"),
    *("drift_saturation", "drift_area", "drift_background"),
    *("flicker", "seam", "switch_missed"),
)


class ShapesVideos(Metric):
    """Adherence, switch lag, drift, flicker and seam of videos of the shapes world.

    ``adherence``, ``all_five``, and each slot by its name
        Shares over prompts: a video with six prompts is judged six times, each on its own span, and
        then counts once.
    ``adherence_first``, ``adherence_last``
        Of the first and the last ten seconds of a video with one prompt, from twenty seconds on.
    ``switch_lag``
        Median over switches, in frames; ``switch_missed`` is the share that never got there.
    ``drift_saturation``, ``drift_area``, ``drift_background``
        Mean size of the relative change, last tenth against first, of videos with one prompt.
    ``flicker``
        Change of the background from frame to frame, less that of the true clip. Needs one.
    ``seam``
        Change into first frames of blocks over the change into all others; 1 is no seam.

    What no video shows is NaN. Sums are float64 and add up over processes; lags are gathered.

    Args:
        block_latent_frames: Latent frames of a block.
    """

    is_differentiable = False
    full_state_update = False

    total: Tensor
    videos: Tensor
    lags: list[Tensor]

    def __init__(self, block_latent_frames: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_latent_frames = block_latent_frames
        zeros = torch.zeros(len(VALUES), dtype=torch.float64)
        self.add_state("total", default=zeros, dist_reduce_fx="sum")
        self.add_state("videos", default=zeros.clone(), dist_reduce_fx="sum")
        self.add_state("lags", default=[], dist_reduce_fx="cat")

    def update(
        self,
        frames_TCHW: Tensor,
        timeline: Sequence[tuple[int, ShapePrompt]],
        truth_TCHW: Tensor | None = None,
    ) -> None:
        """Judge one video.

        Args:
            frames_TCHW: ``[T, 3, side, side]``, float in [0, 1] or ``uint8``, 16 frames a second.
            timeline: ``(first frame, prompt)`` in order, each held for at least 4 seconds where
                there are several.
            truth_TCHW: A ground-truth clip of the timeline, stored like the video.

        Raises:
            UserError: If these are no frames of the shapes world, or a prompt is not held long
                enough to leave anything to judge.
        """
        frames_TCHW = _float(frames_TCHW)
        readings = read_frames(frames_TCHW)
        switches = [start for start, _ in timeline[1:]]
        values = _adherence(readings, timeline)
        lags, missed = _lags(readings, timeline)
        if lags or missed:
            values["switch_missed"] = missed / (len(lags) + missed)
            self.lags.append(torch.tensor(lags, dtype=torch.float64, device=self.device))
        if not switches:
            values |= _drifts(readings, timeline[0][1])
        if truth_TCHW is not None and len(frames_TCHW) > 1:
            values["flicker"] = flicker(frames_TCHW, _float(truth_TCHW), switches)
        values["seam"] = _or_nan(lambda: seam(frames_TCHW, switches, self.block_latent_frames))
        for index, name in enumerate(VALUES):
            value = values.get(name, math.nan)
            if math.isfinite(value):
                self.total[index] += value
                self.videos[index] += 1

    def compute(self) -> dict[str, Tensor]:
        """The means by name, and ``switch_lag`` and ``switch_lags``, all lags one by one."""
        means = dict(zip(VALUES, self.total / self.videos, strict=True))
        nothing = self.total.new_zeros(0)
        # After a sync over processes the list is one tensor.
        parts = [self.lags] if isinstance(self.lags, Tensor) else self.lags
        lags = torch.cat([nothing, *parts])
        median = lags.quantile(0.5) if len(lags) else nothing.new_full((), torch.nan)
        return {**means, "switch_lag": median, "switch_lags": lags}


def _adherence(
    readings: FrameReadings, timeline: Sequence[tuple[int, ShapePrompt]]
) -> dict[str, float]:
    ends = [start for start, _ in timeline[1:]] + [len(readings)]
    scores = [
        score(read_span(readings, start, end, is_after_switch=start > 0), prompt)
        for (start, prompt), end in zip(timeline, ends, strict=True)
    ]
    values = {slot: _mean([float(getattr(s, slot)) for s in scores]) for slot in SLOTS}
    values["adherence"] = _mean([s.mean for s in scores])
    values["all_five"] = _mean([float(s.all_five) for s in scores])
    if len(timeline) == 1 and len(readings) >= 2 * END_FRAMES:
        prompt = timeline[0][1]
        values["adherence_first"] = _span_score(readings, 0, END_FRAMES, prompt).mean
        last = len(readings) - END_FRAMES
        values["adherence_last"] = _span_score(readings, last, len(readings), prompt).mean
    return values


def _span_score(readings: FrameReadings, start: int, end: int, prompt: ShapePrompt) -> ClipScore:
    return score(read_span(readings, start, end), prompt)


def _lags(
    readings: FrameReadings, timeline: Sequence[tuple[int, ShapePrompt]]
) -> tuple[list[int], int]:
    """Lags of the switches that came, and how many never did."""
    starts = [start for start, _ in timeline]
    ends = [*starts[1:], len(readings)]
    spans = list(zip(timeline, ends, strict=True))[1:]
    found = [switch_lag(readings, prompt, start, end) for (start, prompt), end in spans]
    lags = [lag for lag in found if lag is not None]
    return lags, len(found) - len(lags)


def _drifts(readings: FrameReadings, prompt: ShapePrompt) -> dict[str, float]:
    try:
        found = drift(readings, prompt)
    except UserError:  # too short for two tenths
        return {}
    return {
        "drift_saturation": abs(found.saturation),
        "drift_area": abs(found.area),
        "drift_background": abs(found.background),
    }


def _or_nan(measure: Callable[[], float]) -> float:
    try:
        return measure()
    except UserError:  # shorter than two blocks
        return math.nan


def _float(frames: Tensor) -> Tensor:
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames


def _mean(numbers: list[float]) -> float:
    return math.fsum(numbers) / len(numbers) if numbers else math.nan
