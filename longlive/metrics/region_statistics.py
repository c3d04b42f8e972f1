"""What the samples of regions come to: a row per region, and one per part of a layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from longlive.metrics.regions import Path, RegionMemory, Sample

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class RegionStats:
    """One region over all its runs; times in ms by the device's clock.

    Attributes:
        path: Its name, after those of the regions round it.
        count: Runs.
        total_ms: Their sum.
        mean_ms: Mean.
        p50_ms: Median; percentiles are interpolated linearly between samples.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        max_ms: The longest.
        own_ms: The part of ``total_ms`` that no region inside it covers.
        share_of_parent: ``total_ms`` over that of the region round it; None for an outermost one.
        host_mean_ms: How long the host took on average to queue it.
        memory: Highest ``allocated``, ``reserved`` and ``peak``, and the sum of ``grown``.
    """

    path: Path
    count: int
    total_ms: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    own_ms: float
    share_of_parent: float | None
    host_mean_ms: float
    memory: RegionMemory | None


@dataclass(frozen=True, slots=True)
class LayerBreakdown:
    """Where the time inside the transformer's layers goes, in ms per pass of the network.

    Attributes:
        kind: Kind of pass.
        passes: How many were timed.
        parts_ms: For each part of a layer, its time in each layer, first to last.
    """

    kind: str
    passes: int
    parts_ms: dict[str, list[float]]

    @property
    def total_ms(self) -> float:
        """All parts of all layers."""
        return sum(map(sum, self.parts_ms.values()))


def statistics(samples: Sequence[Sample]) -> list[RegionStats]:
    """One row per region, every region before those inside it.

    A run that was cut short counts nowhere, nor do the regions inside it, so that regions never
    exceed what is round them.
    """
    runs: dict[Path, list[Sample]] = {}
    for sample in samples:
        if sample.is_whole:
            runs.setdefault(sample.path, []).append(sample)
    totals = {path: sum(sample.ms for sample in group) for path, group in runs.items()}
    covered: dict[Path, float] = {}
    for path, total in totals.items():
        covered[path[:-1]] = covered.get(path[:-1], 0.0) + total
    order = {path: index for index, path in enumerate(runs)}

    def place(path: Path) -> list[int]:
        return [order.get(path[:depth], order[path]) for depth in range(1, len(path) + 1)]

    return [
        _row(path, runs[path], totals[path] - covered.get(path, 0.0), totals.get(path[:-1]))
        for path in sorted(runs, key=place)
    ]


def layer_breakdowns(
    samples: Sequence[Sample], layer_name: str, kind_of: Callable[[str], str]
) -> list[LayerBreakdown]:
    """Sum up the parts of the layers, one breakdown for each kind of pass.

    Args:
        samples: Of which those inside a layer count.
        layer_name: Name of the regions that are one layer each.
        kind_of: Kind of pass, from the name of the region round the layers.
    """
    passes: dict[str, int] = {}
    sums: dict[str, dict[str, dict[int, float]]] = {}
    for sample in samples:
        if not sample.is_whole or sample.layer is None:
            continue
        if sample.path[-1] == layer_name:
            # Every pass runs the first layer exactly once.
            kind = kind_of(sample.path[-2])
            passes[kind] = passes.get(kind, 0) + (sample.layer == 0)
        elif sample.path[-2] == layer_name:
            parts = sums.setdefault(kind_of(sample.path[-3]), {})
            layers = parts.setdefault(sample.path[-1], {})
            layers[sample.layer] = layers.get(sample.layer, 0.0) + sample.ms
    breakdowns = []
    for kind, parts in sums.items():
        count = 1 + max(layer for layers in parts.values() for layer in layers)
        per_pass = {
            part: [layers.get(layer, 0.0) / passes[kind] for layer in range(count)]
            for part, layers in parts.items()
        }
        breakdowns.append(LayerBreakdown(kind, passes[kind], per_pass))
    return breakdowns


def _row(path: Path, runs: list[Sample], own_ms: float, parent_ms: float | None) -> RegionStats:
    times = [sample.ms for sample in runs]
    p50, p95, p99 = (float(value) for value in np.percentile(times, PERCENTILES))
    total = sum(times)
    return RegionStats(
        path=path,
        count=len(runs),
        total_ms=total,
        mean_ms=total / len(runs),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=max(times),
        own_ms=own_ms,
        share_of_parent=total / parent_ms if parent_ms else None,
        host_mean_ms=sum(sample.host_ms for sample in runs) / len(runs),
        memory=_memory([sample.memory for sample in runs if sample.memory is not None]),
    )


def _memory(runs: list[RegionMemory]) -> RegionMemory | None:
    if not runs:
        return None
    return RegionMemory(
        allocated=max(run.allocated for run in runs),
        reserved=max(run.reserved for run in runs),
        peak=max(run.peak for run in runs),
        grown=sum(run.grown for run in runs),
    )
