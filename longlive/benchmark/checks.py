"""Do the parts add up to the totals? Each total again from its parts, and the difference.

``other`` is by definition what no part covers, so that a sum with it proves nothing: in the means
of figures it counts as missing. Only in a single block, whose record is checked as such, it counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from longlive.benchmark.budget import plain_rollouts
from longlive.benchmark.definitions import DEFINITIONS
from longlive.benchmark.results import Results
from longlive.benchmark.samples import OTHER

TOLERANCE = 0.02
"""Largest difference, as a fraction of the total, that still counts as adding up."""


@dataclass(frozen=True, slots=True)
class Check:
    """One total, and the sum of its parts.

    Attributes:
        name: Which total, in words, and which parts.
        total: As it was measured.
        parts: The sum.
        unit: Of both.
    """

    name: str
    total: float
    parts: float
    unit: str

    @property
    def difference(self) -> float:
        """The sum less the total, as a fraction of the total."""
        if self.total:
            return self.parts / self.total - 1
        return 0.0 if not self.parts else float("inf")

    @property
    def holds(self) -> bool:
        """Whether the difference is within ``TOLERANCE``."""
        return abs(self.difference) <= TOLERANCE


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
    for name, figure in results.figures.items():
        if not figure.components:
            continue
        total = figure.value if figure.distribution is None else figure.distribution.mean
        if total is not None:
            definition = DEFINITIONS.get(figure.definition)
            title = name if definition is None else definition.title
            parts = {name: value for name, value in figure.components.items() if name != OTHER}
            yield Check(
                f"{title}, mean: {', '.join(parts)}", total, sum(parts.values()), figure.unit
            )


def _worst(found: list[Check]) -> list[Check]:
    return sorted(found, key=lambda check: -abs(check.difference))[:1]
