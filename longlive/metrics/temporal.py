"""What happens in time in any video: seams of blocks, flicker, motion, and drift.

Nothing here needs a network or knows what a video shows, so the numbers are exact and say little
alone: compare them with those of another recipe with the same prompts and seeds.

Shape suffixes: ``T`` frames, ``C`` channels, ``H`` ``W`` rows and columns.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from longlive.errors import UserError
from longlive.geometry import frames_of

_CHUNK_PIXELS = 1 << 20
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
VALUES = (
    *("block_seam", "reverting_change", "motion", "temporal_flickering"),
    *("color_drift", "sharpness_drift", "contrast_drift"),
)


@dataclass(slots=True)
class _Sums:
    """Of one frame each; the first has no change."""

    change: list[float]
    motion: list[float]
    reverting: list[float]
    color: list[Tensor]
    sharpness: list[float]
    contrast: list[float]


class TemporalStability(Metric):
    """Means over videos of what one video shows, each in its own unit; a video counts once.

    ``block_seam``
        Mean change into the first frame of a block over the mean change into any other frame; 1 is
        no seam. Misleads where a video hardly moves: then noise decides.
    ``reverting_change``
        Flicker: what a pixel changes and takes back with the next frame, ``min(|d1|, |d2|)`` where
        consecutive changes have opposite signs, else 0; mean over pixels and channels, in units of
        the value range. Steady motion gives nothing, thin moving lines and grain do.
    ``motion``
        Pixels a frame: the sum of the changes of luma over the sum of its gradients (normal flow).
        A textured background that stays still lowers it; a cut raises it.
    ``temporal_flickering``
        VBench's formula without its filter of moving videos: ``(255 - mean change) / 255``. Motion
        lowers it, so a frozen video wins.
    ``color_drift``
        Distance of the mean colors of the first and the last tenth, in units of the value range.
    ``sharpness_drift``, ``contrast_drift``
        Mean gradient and standard deviation of luma in the last tenth over those of the first, less
        one. An object that comes closer is a change of both. With prompt switches there is no
        drift.

    Args:
        block_latent_frames: Latent frames of a block.
    """

    is_differentiable = False
    full_state_update = False

    total: Tensor
    videos: Tensor

    def __init__(self, block_latent_frames: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_latent_frames = block_latent_frames
        zeros = torch.zeros(len(VALUES), dtype=torch.float64)
        self.add_state("total", default=zeros, dist_reduce_fx="sum")
        self.add_state("videos", default=zeros.clone(), dist_reduce_fx="sum")

    def update(self, frames_TCHW: Tensor, switch_frames: Collection[int] = ()) -> None:
        """Add one video.

        Args:
            frames_TCHW: Float in [0, 1] or ``uint8``, at least 3 frames.
            switch_frames: First frames of new prompts; the changes into them are left out.

        Raises:
            UserError: If it is no such video.
        """
        if frames_TCHW.ndim != 4 or frames_TCHW.shape[1] != 3 or len(frames_TCHW) < 3:
            raise UserError(
                "what happens in time needs RGB frames [T, 3, H, W], at least 3 of them; got "
                f"{list(frames_TCHW.shape)}"
            )
        values = _values(_sums(frames_TCHW), set(switch_frames), self.block_latent_frames)
        for index, name in enumerate(VALUES):
            if math.isfinite(values[name]):
                self.total[index] += values[name]
                self.videos[index] += 1

    def compute(self) -> dict[str, Tensor]:
        """The seven means by name; NaN for one that no video shows."""
        return dict(zip(VALUES, self.total / self.videos, strict=True))


def _sums(frames_TCHW: Tensor) -> _Sums:
    sums = _Sums([math.nan], [math.nan], [], [], [], [])
    for x_TCHW, has_past in _overlapping(frames_TCHW):
        luma_THW = (x_TCHW * x_TCHW.new_tensor(_LUMA)[:, None, None]).sum(1)
        slope_THW = _slope(luma_THW)
        new = slice(2 if has_past else 0, None)
        sums.sharpness += slope_THW[new].mean((1, 2)).tolist()
        sums.contrast += luma_THW[new].flatten(1).std(1, correction=0).tolist()
        sums.color += list(x_TCHW[new].mean((2, 3)))
        step_TCHW = x_TCHW.diff(dim=0)
        # The first step of a later chunk was the last one of the chunk before.
        fresh = slice(1 if has_past else 0, None)
        sums.change += step_TCHW[fresh].abs().mean((1, 2, 3)).tolist()
        between = _slope((luma_THW[1:] + luma_THW[:-1]) / 2).sum((1, 2)).clamp(min=1e-12)
        flow = luma_THW[:, 1:-1, 1:-1].diff(dim=0).abs().sum((1, 2)) / between
        sums.motion += flow[fresh].tolist()
        back = (step_TCHW[1:] * step_TCHW[:-1]) < 0
        least = torch.minimum(step_TCHW[1:].abs(), step_TCHW[:-1].abs())
        sums.reverting += (least * back).mean((1, 2, 3)).tolist()
    return sums


def _overlapping(frames_TCHW: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """Chunks of float64 frames, each with the two frames before it."""
    size = max(4, _CHUNK_PIXELS // (frames_TCHW.shape[-1] * frames_TCHW.shape[-2]))
    scale = 255.0 if frames_TCHW.dtype == torch.uint8 else 1.0
    start = 0
    while start < len(frames_TCHW):
        end = min(start + size, len(frames_TCHW))
        # A chunk of one or two frames would have no change of its own to compare.
        end = len(frames_TCHW) if len(frames_TCHW) - end < 3 else end
        yield frames_TCHW[max(0, start - 2) : end].double() / scale, start > 0
        start = end


def _slope(luma_THW: Tensor) -> Tensor:
    """Length of the gradient by central differences, ``[T, H - 2, W - 2]``."""
    right = (luma_THW[:, 1:-1, 2:] - luma_THW[:, 1:-1, :-2]) / 2
    down = (luma_THW[:, 2:, 1:-1] - luma_THW[:, :-2, 1:-1]) / 2
    return torch.hypot(right, down)


def _values(sums: _Sums, switches: set[int], block_latent_frames: int) -> dict[str, float]:
    frames = len(sums.change)
    steps = [t for t in range(1, frames) if t not in switches]
    # sums.reverting[t] is about the frames t, t + 1 and t + 2.
    held = [t for t in range(frames - 2) if not {t + 1, t + 2} & switches]
    change = [sums.change[t] for t in steps]
    return {
        "block_seam": _seam(sums.change, steps, block_latent_frames),
        "reverting_change": _mean([sums.reverting[t] for t in held]),
        "motion": _mean([sums.motion[t] for t in steps]),
        "temporal_flickering": 1 - _mean(change),
        **_drifts(sums, bool(switches)),
    }


def _seam(change: list[float], steps: list[int], block_latent_frames: int) -> float:
    starts = (frames_of(block_latent_frames * block) for block in count(1))
    borders = set(takewhile(lambda start: start < len(change), starts))
    inside = _mean([change[t] for t in steps if t not in borders])
    across = _mean([change[t] for t in steps if t in borders])
    if inside == 0:
        return 1.0 if across == 0 else math.nan
    return across / inside


def _drifts(sums: _Sums, switches: bool) -> dict[str, float]:
    if switches:
        return dict.fromkeys(VALUES[4:], math.nan)
    tenth = max(1, round(len(sums.change) / 10))
    color = [torch.stack(part).mean(0) for part in (sums.color[:tenth], sums.color[-tenth:])]
    drifts = {"color_drift": float((color[1] - color[0]).norm())}
    for name in ("sharpness", "contrast"):
        series = getattr(sums, name)
        first, last = _mean(series[:tenth]), _mean(series[-tenth:])
        drifts[f"{name}_drift"] = last / first - 1 if first > 0 else math.nan
    return drifts


def _mean(numbers: list[float]) -> float:
    return math.fsum(numbers) / len(numbers) if numbers else math.nan
