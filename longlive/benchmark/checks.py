"""Do the parts add up to the totals? Each total again from its parts, and the difference.

``other`` is by definition what no part covers, so that a sum with it proves nothing: in the means
of figures it counts as missing. Only in a single block, whose record is checked as such, it counts.
Where a recipe decodes beside the transformer, the parts of a steady block are longer than it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from longlive.benchmark.budget import plain_rollouts
from longlive.benchmark.definitions import DEFINITIONS
from longlive.benchmark.latency import decodes_beside
from longlive.benchmark.results import Results
from longlive.benchmark.samples import OTHER

TOLERANCE = 0.02
"""Largest difference, as a fraction of the total, that still counts as adding up."""
_OF_STEADY_BLOCKS = ("inter_frame_ms", "block_period_ms")


@dataclass(frozen=True, slots=True)
class Check:
    """One total, and the sum of its parts.

    Attributes:
        name: Which total, in words, and which parts.
        total: As it was measured.
        parts: The sum.
        unit: Of both.
        runs_beside: Whether parts run side by side: their sum may be the larger one.
    """

    name: str
    total: float
    parts: float
    unit: str
    runs_beside: bool = False

    @property
    def difference(self) -> float:
        """The sum less the total, as a fraction of the total."""
        if self.total:
            return self.parts / self.total - 1
        return 0.0 if not self.parts else float("inf")

    @property
    def holds(self) -> bool:
        """Whether the difference is within ``TOLERANCE``, or more because parts overlap."""
        return self.overlaps or abs(self.difference) <= TOLERANCE

    @property
    def overlaps(self) -> bool:
        """Whether the sum is the larger one, as it may be."""
        return self.runs_beside and self.difference > TOLERANCE


def checks(results: Results) -> list[Check]:
    """Every total that has parts; of many blocks or rollouts the one that fits worst."""
    return [*_periods(results), *_walls(results), *_figures(results)]


def _periods(results: Results) -> Iterator[Check]:
    found = [
        Check(
            f"period of block {block.index} of plain rollout {rollout.iteration}: all its parts, "
            f"{OTHER} included (the worst of all blocks)",
            block.period_ms,
            sum(block.parts_ms.values()),
            "ms",
        )
        for rollout in plain_rollouts(results)
        for block in rollout.blocks
    ]
    yield from _worst(found)


def _walls(results: Results) -> Iterator[Check]:
    found = [
        Check(
            f"wall clock of plain rollout {rollout.iteration}: initialization and the periods of "
            f"its {len(rollout.blocks)} blocks (the worst of all rollouts)",
            rollout.wall_ms,
            rollout.initialization_ms + sum(block.period_ms for block in rollout.blocks),
            "ms",
        )
        for rollout in plain_rollouts(results)
        if rollout.wall_ms is not None
    ]
    yield from _worst(found)


def _figures(results: Results) -> Iterator[Check]:
    beside = _OF_STEADY_BLOCKS if decodes_beside(plain_rollouts(results)) else ()
    for name, figure in results.figures.items():
        if not figure.components:
            continue
        total = figure.value if figure.distribution is None else figure.distribution.mean
        if total is not None:
            definition = DEFINITIONS.get(figure.definition)
            title = name if definition is None else definition.title
            parts = {part: value for part, value in figure.components.items() if part != OTHER}
            yield Check(
                f"{title}, mean: {', '.join(parts)}",
                total,
                sum(parts.values()),
                figure.unit,
                runs_beside=name in beside,
            )


def _worst(found: list[Check]) -> list[Check]:
    return sorted(found, key=lambda check: -abs(check.difference))[:1]
