"""Measures one video: runs the metrics that were asked for, and says why one could not run."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longlive.data.shapes_world import render_timeline
from longlive.errors import UserError
from longlive.evaluation.measures import MeasureName
from longlive.metrics.clip_score import ClipScore, TransformersClip
from longlive.metrics.fidelity import FrameFidelity, LatentFidelity
from longlive.metrics.lpips import WEIGHTS_FILE, PerceptualDistance, PerceptualFidelity
from longlive.metrics.shapes_video import ShapesVideos
from longlive.metrics.temporal import TemporalStability
from longlive.shapes import ShapePrompt, parse
from longlive.video.frames import to_uint8
from longlive.video.mp4 import Mp4Writer
from longlive.video.read import read_video

_SIMILARITY_FRAMES = 32
# One video's numbers: other processes have other videos, and are not to be asked for theirs.
_ALONE: dict[str, Any] = {"sync_on_compute": False}


@dataclass(frozen=True, slots=True)
class MeasureOptions:
    """What to measure, and with which weights.

    Attributes:
        names: Which measures.
        lpips_weights: AlexNet of torchvision.
        clip_weights: Folder of CLIP weights.
        block_latent_frames: Latent frames of a block, for seams and errors block by block.
        device: Where networks run.
    """

    names: tuple[MeasureName, ...]
    lpips_weights: str | None = None
    clip_weights: str | None = None
    block_latent_frames: int = 3
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Seen:
    """One finished video.

    Attributes:
        frames_TCHW: ``uint8``.
        timeline: ``(first frame, prompt)`` in order.
        seed: Draws the ground truth that flicker is compared with.
        is_stored: Whether the frames come from an H.264 file.
        latents_FCHW: Where they are known.
        reference_frames_TCHW: Of the reference rollout with the same noise, where there is one.
        reference_latents_FCHW: Likewise.
        is_reference: Whether it is the reference rollout itself, which is not compared: it would
            be perfect.
    """

    frames_TCHW: Tensor
    timeline: tuple[tuple[int, str], ...]
    seed: int
    is_stored: bool = False
    latents_FCHW: Tensor | None = None
    reference_frames_TCHW: Tensor | None = None
    reference_latents_FCHW: Tensor | None = None
    is_reference: bool = False


@dataclass(slots=True)
class Findings:
    """What was measured.

    Attributes:
        values: Values of each number; several where a video has several (one for each switch).
        series: Numbers block by block.
        skipped: Measure, and why it has no numbers.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, found: dict[str, Tensor]) -> None:
        """Take what a metric computed; NaN is nothing."""
        for name, tensor in found.items():
            numbers = [float(value) for value in tensor.reshape(-1)]
            if name.endswith("_by_block"):
                self.series[name] = numbers
            elif kept := [number for number in numbers if math.isfinite(number)]:
                self.values[name] = kept


def measure(seen: Seen, options: MeasureOptions) -> Findings:
    """Measure one video.

    What cannot be measured is skipped with the reason in one line; the rest goes on.
    """
    measures: dict[MeasureName, Callable[[Seen, MeasureOptions], dict[str, Tensor]]] = {
        "shapes": _shapes,
        "temporal": _temporal,
        "fidelity": _fidelity,
        "lpips": _lpips,
        "clip": _clip,
    }
    findings = Findings()
    for name in options.names:
        if seen.is_reference and name in ("fidelity", "lpips"):
            continue
        try:
            findings.add(measures[name](seen, options))
        except UserError as error:
            findings.skipped[name] = " ".join(str(error).split())
    return findings


def _shapes(seen: Seen, options: MeasureOptions) -> dict[str, Tensor]:
    timeline = [(start, parse(prompt)) for start, prompt in seen.timeline]
    metric = ShapesVideos(options.block_latent_frames, **_ALONE)
    metric.update(seen.frames_TCHW, timeline, _truth(seen, timeline))
    # The median is taken over the lags of all videos.
    return {name: value for name, value in metric.compute().items() if name != "switch_lag"}


def _truth(seen: Seen, timeline: list[tuple[int, ShapePrompt]]) -> Tensor:
    """The ground truth, through the same format as the video."""
    frames, _, _, side = seen.frames_TCHW.shape
    truth_TCHW = to_uint8(render_timeline(timeline, seen.seed, frames, side))
    if not seen.is_stored:
        return truth_TCHW
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth.mp4"
        with Mp4Writer(path) as writer:
            writer.append(truth_TCHW)
        return read_video(path).permute(0, 3, 1, 2)


def _temporal(seen: Seen, options: MeasureOptions) -> dict[str, Tensor]:
    metric = TemporalStability(options.block_latent_frames, **_ALONE)
    metric.update(seen.frames_TCHW, [start for start, _ in seen.timeline[1:]])
    found = metric.compute()
    # The judge of the shapes world has a motion, too.
    found["motion_px"] = found.pop("motion")
    return found


def _fidelity(seen: Seen, options: MeasureOptions) -> dict[str, Tensor]:
    if seen.reference_frames_TCHW is None:
        raise UserError("there is no reference rollout to compare with")
    frames = FrameFidelity(_SIMILARITY_FRAMES, **_ALONE)
    frames.update(seen.frames_TCHW, seen.reference_frames_TCHW)
    found = {name: value for name, value in frames.compute().items() if name != "psnr_db"}
    if seen.latents_FCHW is not None and seen.reference_latents_FCHW is not None:
        latents = LatentFidelity(options.block_latent_frames, **_ALONE)
        latents.update(seen.latents_FCHW[None], seen.reference_latents_FCHW[None])
        found |= latents.compute()
    return found


def _lpips(seen: Seen, options: MeasureOptions) -> dict[str, Tensor]:
    if options.lpips_weights is None:
        raise UserError(f"no weights for LPIPS: set lpips_weights to torchvision's {WEIGHTS_FILE}")
    if seen.reference_frames_TCHW is None:
        raise UserError("there is no reference rollout to compare with")
    metric = PerceptualFidelity(_distance(options.lpips_weights, options.device), **_ALONE)
    metric.update(seen.frames_TCHW, seen.reference_frames_TCHW)
    return metric.compute()


def _clip(seen: Seen, options: MeasureOptions) -> dict[str, Tensor]:
    if options.clip_weights is None:
        raise UserError("no weights for the CLIP score: set clip_weights to a folder of CLIP")
    metric = ClipScore(_encoder(options.clip_weights, options.device), **_ALONE)
    metric.update(seen.frames_TCHW, seen.timeline)
    return metric.compute()


@lru_cache(maxsize=1)
def _distance(weights: str, device: str) -> PerceptualDistance:
    return PerceptualDistance(weights, torch.device(device))


@lru_cache(maxsize=1)
def _encoder(weights: str, device: str) -> TransformersClip:
    return TransformersClip(weights, torch.device(device))
