"""An ablation as one table for people."""

from collections.abc import Iterator, Sequence
from statistics import median

from longlive.benchmark.ablation_table import AblationResults, AblationRow
from longlive.benchmark.definitions import DEFINITIONS
from longlive.benchmark.markdown import NOTHING, code, show, signed_percent, table


def gains(row: AblationRow, baseline: AblationRow, figure: str) -> list[float]:
    """Value of a row over that of the baseline, repeat by repeat.

    Both ran within minutes of each other, so what drifts from repeat to repeat is in neither.
    """
    mine, theirs = row.samples.get(figure, ()), baseline.samples.get(figure, ())
    return [a / b for a, b in zip(mine, theirs, strict=False) if b]


def ablation_markdown(results: AblationResults, plot: str | None = None) -> str:
    """The report.

    Args:
        results: Of the ablation.
        plot: Name of a picture beside the report.
    """
    return "\n".join([*_head(results), *_table(results), *_reasons(results), *_plot(plot)]) + "\n"


def _head(results: AblationResults) -> Iterator[str]:
    environment = results.environment
    turns = (
        "interleaved, their order rotating" if results.interleaved else "one row after the other"
    )
    same = "of the same repeat" if results.interleaved else "of the same number"
    yield f"# {results.title}"
    yield ""
    if not results.complete:
        yield "**Incomplete: it was interrupted.**"
        yield ""
    yield (
        f"{environment.device_name}, torch {environment.torch}, {results.weights_kind} weights, "
        f"{results.started_at}, commit {results.commit or 'unknown'}: "
        + (
            f"{results.repeats} repeats of each row, {turns}. Medians, and in brackets half the "
            "range between the repeats. "
            if results.repeats > 1
            else f"each row once, {turns}. "
        )
        + "The last column compares the inter-frame latency with the row "
        f"*{results.baseline}*, in repeats {same}."
    )
    yield ""
    yield code(results.command) if results.command else ""
    yield ""


def _table(results: AblationResults) -> Iterator[str]:
    baseline = next(row for row in results.rows if row.name == results.baseline)
    names = [name for name in results.figures if any(name in row.samples for row in results.rows)]
    columns = ["row", *(DEFINITIONS[name].title for name in names), "latency against baseline"]
    cells = [
        [
            row.name,
            *(_cell(row.samples.get(name, ()), name) for name in names),
            _gain(row, baseline),
        ]
        for row in results.rows
        if row.samples
    ]
    yield from table(columns, cells)
    yield ""


def _cell(values: Sequence[float], name: str) -> str:
    if not values:
        return NOTHING
    unit = DEFINITIONS[name].unit
    if len(values) == 1:
        return show(values[0], unit)
    spread = (max(values) - min(values)) / 2
    return f"{show(median(values), unit)} (± {show(spread, unit)})"


def _gain(row: AblationRow, baseline: AblationRow) -> str:
    ratios = gains(row, baseline, "inter_frame_ms")
    if not ratios or row is baseline:
        return NOTHING
    if len(ratios) == 1:
        return signed_percent(ratios[0] - 1)
    low, high = (signed_percent(bound(ratios) - 1) for bound in (min, max))
    return f"{signed_percent(median(ratios) - 1)} ({low} to {high})"


def _reasons(results: AblationResults) -> Iterator[str]:
    failed = [row for row in results.rows if row.reason]
    if failed:
        yield "Not measured, or not to the end:"
        yield ""
        yield from (f"* **{row.name}**: {row.reason}" for row in failed)
        yield ""


def _plot(plot: str | None) -> Iterator[str]:
    if plot is not None:
        yield f"![Rows of the ablation side by side]({plot})"
