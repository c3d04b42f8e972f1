"""Statistics of regions as tables for people."""

from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING

from longlive.metrics.region_statistics import LayerBreakdown, RegionStats

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

# Wider than any table: columns that are cut to fit a terminal would hide their numbers.
_WIDTH = 400
_MIB = 2**20


def render(
    title: str,
    rows: Sequence[RegionStats],
    breakdowns: Sequence[LayerBreakdown],
    notes: Sequence[str],
) -> str:
    """Tables of regions and of the layers' parts, and the notes below them, as plain text.

    Args:
        title: Of the first table.
        rows: One per region, every region before those inside it.
        breakdowns: Empty if nothing was timed inside layers.
        notes: A line each.
    """
    parts: list[RenderableType] = [_region_table(title, rows)]
    if breakdowns:
        parts.append(_layer_table(breakdowns))
    return "\n".join([*map(_as_text, parts), *(f"note: {note}" for note in notes)])


def _region_table(title: str, rows: Sequence[RegionStats]) -> "Table":
    table = _table(title)
    table.add_column("region", no_wrap=True)
    times = ("count", "mean ms", "p50", "p95", "p99", "max", "own", "total", "of parent")
    for column in (*times, "peak MiB", "grown MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        numbers = (row.mean_ms, row.p50_ms, row.p95_ms, row.p99_ms, row.max_ms)
        share, memory = row.share_of_parent, row.memory
        table.add_row(
            "  " * (len(row.path) - 1) + row.path[-1],
            str(row.count),
            *(f"{ms:.2f}" for ms in (*numbers, row.own_ms / row.count, row.total_ms)),
            "" if share is None else f"{share:.1%}",
            "" if memory is None else f"{memory.peak / _MIB:.0f}",
            "" if memory is None else f"{memory.grown / _MIB:.0f}",
        )
    return table


def _layer_table(breakdowns: Sequence[LayerBreakdown]) -> "Table":
    table = _table("inside the layers: ms per pass, summed over the layers")
    table.add_column("part", no_wrap=True)
    for breakdown in breakdowns:
        for column in (f"{breakdown.kind} ({breakdown.passes})", "share"):
            table.add_column(column, justify="right", no_wrap=True)
    parts = dict.fromkeys(part for breakdown in breakdowns for part in breakdown.parts_ms)
    for part in parts:
        cells = []
        for breakdown in breakdowns:
            ms = sum(breakdown.parts_ms.get(part, []))
            cells += [f"{ms:.3f}", f"{ms / breakdown.total_ms:.1%}"]
        table.add_row(part, *cells)
    totals = [cell for breakdown in breakdowns for cell in (f"{breakdown.total_ms:.3f}", "")]
    table.add_row("all layers", *totals)
    return table


def _table(title: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="", box=SIMPLE_HEAD)


def _as_text(part: "RenderableType") -> str:
    from rich.console import Console

    console = Console(file=StringIO(), width=_WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
