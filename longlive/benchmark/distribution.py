"""Statistics of samples."""

from collections.abc import Sequence

import numpy as np

from longlive.benchmark.results import Distribution


def distribution_of(values: Sequence[float]) -> Distribution | None:
    """Statistics of some values; None of none. Percentiles are interpolated linearly."""
    if not values:
        return None
    p50, p95, p99 = (float(value) for value in np.percentile(values, (50, 95, 99)))
    return Distribution(
        count=len(values),
        mean=float(np.mean(values)),
        # Of a sample, not of a population; of one value there is none.
        std=float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        p50=p50,
        p95=p95,
        p99=p99,
        max=max(values),
    )


def median(values: Sequence[float]) -> float:
    """The value in the middle, or the mean of the two there."""
    return float(np.median(values))
