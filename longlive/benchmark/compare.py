"""Two results side by side: which differences exceed the spread, and what makes them unlike.

**The test.** A figure that single iterations have (:attr:`Figure.iterations`) is compared by them:
both sets are drawn again from themselves, with replacement, 10 000 times, and the difference of the
medians is taken each time. If the middle 99 % of these differences do not contain zero, the
difference *exceeds the spread* (a percentile bootstrap). 99 % and not 95 %, because some thirty
figures are looked at together. Fewer than 5 iterations on either side are no spread: of equal
normal distributions 10 % come out apart with 3 iterations, 1.5 % with 5, 0.5 % with 10 (simulated).

The spread is that between the iterations of one run. What differs from one machine, one driver or
one day to the next is not in it, hence the warnings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from longlive.benchmark.budget import budget, plain_rollouts
from longlive.benchmark.definitions import DEFINITIONS, Definition
from longlive.benchmark.latency import steady_blocks
from longlive.benchmark.markdown import decimals, show, signed_percent, table
from longlive.benchmark.results import Figure, Results
from longlive.benchmark.samples import PARTS
from longlive.benchmark.unlike import differences, warnings

Verdict = Literal["better", "worse", "different", "within the spread", "too few", "no spread"]
"""The first three exceed the spread; ``different`` is said of what has no better direction."""

FEWEST_ITERATIONS = 5
CONFIDENCE = 0.99
_DRAWS = 10_000

_WORDS: dict[Verdict, str] = {
    "better": "**better**, exceeds the spread",
    "worse": "**worse**, exceeds the spread",
    "different": "**different**, exceeds the spread",
    "within the spread": "within the spread",
    "too few": f"too few iterations to say ({FEWEST_ITERATIONS} on both sides)",
    "no spread": "no spread is known",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of two results.

    Attributes:
        title: What it is, in words.
        unit: Of both values.
        a: Value in the first results; None if it could not be measured.
        b: Value in the second.
        interval: Middle 99 % of the difference of medians, B less A, in the unit of the figure;
            None where there is no spread.
        base: Median of A's iterations, which the interval is a change of.
        verdict: What the test says.
    """

    title: str
    unit: str
    a: float | None
    b: float | None
    interval: tuple[float, float] | None
    base: float | None
    verdict: Verdict

    @property
    def ratio(self) -> float | None:
        """B over A; None where either is missing, or A is zero."""
        return None if self.b is None or not self.a else self.b / self.a


def compare(a: Results, b: Results) -> list[Comparison]:
    """Compare every figure that both have, and the parts of a steady frame's time."""
    found = [
        _compared(_definition(name, figure), figure, b.figures[name])
        for name, figure in a.figures.items()
        if name in b.figures
    ]
    return [*found, *_parts(a, b)]


def comparison_text(a: Results, b: Results, names: tuple[str, str] = ("A", "B")) -> str:
    """Two results side by side, as Markdown.

    Args:
        a: What is compared with.
        b: What is compared.
        names: Where each comes from.
    """
    lines = ["# Two benchmarks", ""]
    for letter, name, results in zip("AB", names, (a, b), strict=True):
        lines.append(f"* {letter}: `{name}`, {_description(results)}")
    for warning in warnings(a, b):
        lines += ["", f"> **Warning**: {warning}."]
    lines += ["", "## Figures", "", *_figure_lines(compare(a, b)), ""]
    for letter, other, lacking in (("A", a, b), ("B", b, a)):
        only = [name for name in other.figures if name not in lacking.figures]
        if only:
            lines += [f"Only in {letter}: {', '.join(f'`{name}`' for name in only)}.", ""]
    lines += [
        f"The interval is that of the change of the median over iterations, B against A, at "
        f"{100 * CONFIDENCE:.0f} % (bootstrap, `docs/benchmark_report.md`). A difference exceeds "
        "the spread if it does not contain zero. The spread is that of the iterations of one run, "
        "not that from day to day or from machine to machine.",
        "",
        "## What was set differently",
        "",
    ]
    settings = differences(a, b)
    if settings:
        lines += table(("setting", "A", "B"), settings, left=3)
    else:
        lines.append("Nothing.")
    return "\n".join(lines) + "\n"


def spread_interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Middle 99 % of the difference of medians, B less A, by the bootstrap; always the same.

    Args:
        a: One value per iteration.
        b: Likewise; it may have another length.
    """
    random = np.random.default_rng(0)
    medians = [
        np.median(random.choice(np.asarray(values), (_DRAWS, len(values))), axis=1)
        for values in (a, b)
    ]
    outside = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(medians[1] - medians[0], (outside, 100 - outside))
    return float(low), float(high)


def _compared(definition: Definition, a: Figure, b: Figure) -> Comparison:
    verdict: Verdict = "no spread"
    interval = base = None
    if a.iterations and b.iterations:
        verdict = "too few"
        if min(len(a.iterations), len(b.iterations)) >= FEWEST_ITERATIONS:
            interval = spread_interval(a.iterations, b.iterations)
            base = float(np.median(a.iterations))
            verdict = _verdict(interval, definition.better)
    return Comparison(definition.title, a.unit, a.value, b.value, interval, base, verdict)


def _verdict(interval: tuple[float, float], better: str) -> Verdict:
    low, high = interval
    if low <= 0 <= high:
        return "within the spread"
    if not better:
        return "different"
    return "better" if (high < 0) == (better == "lower") else "worse"


def _parts(a: Results, b: Results) -> Iterator[Comparison]:
    """Parts of a steady frame's time, an iteration each plain rollout."""
    each_a, each_b = _part_iterations(a), _part_iterations(b)
    for part in PARTS:
        both = each_a[part], each_b[part]
        if not all(both) or not any(map(any, both)):
            continue
        definition = Definition(f"· {part}, per steady frame", "ms", "lower", "", "")
        figures = [
            Figure(float(np.median(values)), "ms", "", iterations=tuple(values)) for values in both
        ]
        yield _compared(definition, *figures)


def _part_iterations(results: Results) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    for rollout in plain_rollouts(results):
        if blocks := steady_blocks(rollout):
            spread = budget("steady", blocks).parts_ms
            for part, values in found.items():
                values.append(spread.get(part, 0.0))
    return found


def _figure_lines(found: Sequence[Comparison]) -> Iterator[str]:
    yield from table(
        ("figure", "A", "B", "B / A", "interval of the change", "verdict"),
        (
            (
                one.title,
                show(one.a, one.unit),
                show(one.b, one.unit),
                decimals(one.ratio) if one.ratio is None else f"{one.ratio:.3f}",
                _interval(one),
                _WORDS[one.verdict],
            )
            for one in found
        ),
    )


def _interval(one: Comparison) -> str:
    if one.interval is None:
        return show(None, one.unit)
    low, high = one.interval
    if one.base:
        return f"{signed_percent(low / one.base)} to {signed_percent(high / one.base)}"
    return f"{show(low, one.unit)} to {show(high, one.unit)}"


def _definition(name: str, figure: Figure) -> Definition:
    return DEFINITIONS.get(figure.definition, Definition(name, figure.unit, "", "", ""))


def _description(results: Results) -> str:
    return (
        f"{results.recipe.name} on {results.environment.device_name}, "
        f"{results.recipe.weights_kind} weights, commit {results.commit or 'unknown'}, "
        f"{results.started_at}"
    )
