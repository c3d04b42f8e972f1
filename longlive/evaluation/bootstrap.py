"""Confidence intervals by resampling prompts.

Videos of one prompt with several seeds are no independent draws, so whole prompts are resampled
(cluster bootstrap, Efron and Tibshirani 1993, section 8). The draws are seeded: the same records
give the same interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
EQUAL_DB = 100.0
"""Stands for equal frames: more than 8 bits can show, and a number that JSON can hold."""
Pool = Literal["mean", "median", "psnr"]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: From all videos.
        low: Lower end.
        high: Upper end.
        videos: How many there are.
        prompts: From how many prompts.
    """

    value: float
    low: float
    high: float
    videos: int
    prompts: int


def estimate(
    by_prompt: Mapping[int, Sequence[Sequence[float]]], pool: Pool = "mean"
) -> Estimate | None:
    """Pool the values of videos and resample their prompts.

    Args:
        by_prompt: Values of each video of each prompt.
        pool: The ``mean`` or the ``median`` of all values; or ``psnr``, decibels of the mean of
            squared errors.

    Returns:
        None if there is no value.
    """
    groups = [[video for video in videos if len(video)] for videos in by_prompt.values()]
    groups = [group for group in groups if group]
    if not groups:
        return None
    flat = [np.array([value for video in group for value in video]) for group in groups]
    draws = np.random.default_rng(0).integers(0, len(flat), (RESAMPLES, len(flat)))
    everything = np.arange(len(flat))[None]
    (value,) = _pooled(flat, everything, pool)
    low, high = np.quantile(_pooled(flat, draws, pool), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    videos = sum(len(group) for group in groups)
    return Estimate(float(value), float(low), float(high), videos, len(groups))


def _pooled(values: Sequence[Array], draws: NDArray[np.int64], pool: Pool) -> Array:
    """One number for each row of ``draws``, which are indices of prompts."""
    if pool == "median":
        return np.array([np.median(np.concatenate([values[i] for i in draw])) for draw in draws])
    sums = np.array([math.fsum(some) for some in values])
    counts = np.array([len(some) for some in values])
    means = sums[draws].sum(1) / counts[draws].sum(1)
    if pool == "mean":
        return means
    return np.minimum(EQUAL_DB, -10 * np.log10(np.maximum(means, 1e-300)))
