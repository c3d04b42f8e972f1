"""The figures, as sections of the report: their statistics, definitions, components and sums."""

from collections.abc import Callable, Iterator

from longlive.benchmark.checks import TOLERANCE, Check, checks
from longlive.benchmark.definitions import DEFINITIONS, Definition
from longlive.benchmark.markdown import NOTHING, percent, show, signed_percent, table
from longlive.benchmark.results import Distribution, Figure, Results

_GROUPS = {
    "steady": "Steady state",
    "jitter": "Jitter and stalls",
    "first frame": "First frame",
    "prompt switch": "Prompt switch",
    "memory": "Memory in all",
    "check": "Check by a clock outside",
    "start-up": "Loading, warm-up, compilation (in none of the above)",
    "literature": "Definitions of the literature (for comparison with papers)",
}
_FIGURE_COLUMNS = (
    *("figure", "value", "mean", "p50", "p95", "p99", "max"),
    *("samples", "iterations, least to most"),
)


_HEADLINES = (
    *("fps", "diffusion_fps", "inter_frame_ms", "jitter_p99", "stalls"),
    *("first_frame_cold_ms", "first_frame_cached_ms", "switch_border_ms", "switch_added_ms"),
    *("prompt_to_pixel_ms", "peak_memory_bytes"),
)


def headline_section(results: Results) -> Iterator[str]:
    """The figures that are asked for first, one line each."""
    rows = [
        (definition_of(figure, name).title, show(figure.value, figure.unit), _p99(figure))
        for name in _HEADLINES
        if (figure := results.figures.get(name)) is not None
    ]
    yield from table(("figure", "value", "p99"), rows)


def figure_sections(results: Results) -> Iterator[str]:
    """Every figure with its statistics, group by group, and under each table the definitions."""
    groups: dict[str, dict[str, Figure]] = {group: {} for group in _GROUPS}
    for name, figure in results.figures.items():
        groups.setdefault(definition_of(figure, name).group, {})[name] = figure
    for group, figures in groups.items():
        if not figures:
            continue
        yield f"### {_GROUPS.get(group, group)}"
        yield ""
        yield from table(_FIGURE_COLUMNS, (_figure_row(*item) for item in figures.items()))
        yield ""
        for name, figure in figures.items():
            definition = definition_of(figure, name)
            yield f"* **{definition.title}** (`{name}`): {definition.text}."
        yield from _components(figures)
        yield ""


def sum_section(results: Results) -> Iterator[str]:
    """Each total again from its parts, with the difference in percent."""
    found = checks(results)
    if not found:
        yield "Nothing was measured that has parts."
        return
    worst = max(
        found, key=lambda check: (not check.holds, not check.overlaps, abs(check.difference))
    )
    verdict = "**All add up**" if worst.holds else "**Not all add up**"
    yield (
        f"{verdict}: the largest difference is {signed_percent(worst.difference, 2)}, "
        f"{percent(TOLERANCE, 0)} are allowed. What no part covers (`other`) counts as missing."
    )
    if any(check.overlaps for check in found):
        yield "Of blocks that are decoded beside the transformer the parts may be longer."
    yield ""
    rows = (
        (
            check.name,
            show(check.total, check.unit),
            show(check.parts, check.unit),
            signed_percent(check.difference, 2),
            _verdict(check),
        )
        for check in found
    )
    yield from table(("total: parts", "total", "sum of parts", "difference", "adds up"), rows)


def _verdict(check: Check) -> str:
    if check.overlaps:
        return "side by side"
    return "yes" if check.holds else "**no**"


def definition_of(figure: Figure, name: str) -> Definition:
    """What a figure means; its bare name if this version does not know."""
    # A figure of a later version of this package has a name, and no words here.
    unknown = Definition(name, figure.unit, "", "not defined in this version", "other")
    return DEFINITIONS.get(figure.definition, unknown)


def _figure_row(name: str, figure: Figure) -> list[object]:
    def cell(value: float | None) -> str:
        return show(value, figure.unit)

    value = f"**{cell(figure.value)}**" if figure.value is not None else f"none: {figure.reason}"
    found = figure.distribution
    spread = NOTHING
    if figure.iterations:
        least, most = min(figure.iterations), max(figure.iterations)
        low = cell(least).removesuffix(f" {figure.unit}")
        spread = f"{low} to {cell(most)} ({len(figure.iterations)})"
    return [definition_of(figure, name).title, value, *_statistics(found, cell), spread]


def _p99(figure: Figure) -> str:
    found = figure.distribution
    return NOTHING if found is None else show(found.p99, figure.unit)


def _statistics(found: Distribution | None, cell: Callable[[float | None], str]) -> list[object]:
    if found is None:
        return [NOTHING] * 6
    numbers = (found.mean, found.p50, found.p95, found.p99, found.max)
    return [*map(cell, numbers), found.count]


def _components(figures: dict[str, Figure]) -> Iterator[str]:
    for name, figure in figures.items():
        if not figure.components:
            continue
        yield ""
        yield f"What the mean of **{definition_of(figure, name).title}** consists of:"
        yield ""
        total = sum(figure.components.values())
        rows = [
            (part, show(value, figure.unit), percent(value / total if total else None))
            for part, value in figure.components.items()
        ]
        yield from table(
            ("part", "time", "share"), [*rows, ("**all**", f"**{show(total, figure.unit)}**", "")]
        )
