"""Plots of a report, as SVG text: cost against quality, each axis, errors block by block."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any, cast

from longlive.evaluation.measures import Number
from longlive.evaluation.table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito ("Color Universal Design", 2008).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
_MARKERS = "osD^vP*X"
_SETTINGS: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    # Letters stay letters: small files, and text that can be searched.
    "svg.fonttype": "none",
    "svg.hashsalt": "longlive",
}


def has_matplotlib() -> bool:
    """Whether there can be plots."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def pareto_plot(
    points: Sequence[tuple[Row, float]], name: str, number: Number, x_title: str
) -> str:
    """Cost against quality: a point a variant, a line through those that nothing beats.

    Args:
        points: Rows with their cost; rows without the number are left out.
        name: Which number.
        number: What it is.
        x_title: What the cost is.
    """
    shown = [(row, cost) for row, cost in points if name in row.values]
    if not shown:
        return ""
    axes = [*dict.fromkeys(axis for row, _ in shown for axis in row.axes), "", ""]
    best = frontier([(cost, row.values[name].value) for row, cost in shown], number)
    with _figure(6.0) as (figure, plot):
        for row, cost in shown:
            found = row.values[name]
            plot.errorbar(
                cost,
                found.value,
                yerr=[[found.value - found.low], [found.high - found.value]],
                color=COLORS[_place(shown, axes[0], row) % len(COLORS)],
                marker=_MARKERS[_place(shown, axes[1], row) % len(_MARKERS)],
                capsize=2,
                elinewidth=0.8,
                markersize=6,
            )
            # Names of all would lie on each other; colors and marks tell the others apart.
            if (cost, found.value) in best or row is shown[0][0]:
                plot.annotate(
                    row.name, (cost, found.value), (5, 4), textcoords="offset points", fontsize=8
                )
        plot.plot(*zip(*best, strict=True), color="#8C8C8C", linewidth=1, zorder=0)
        plot.set(xlabel=x_title, ylabel=number.title)
        _legend(plot, shown, axes[0], axes[1])
        return _svg(figure)


def frontier(points: Sequence[tuple[float, float]], number: Number) -> list[tuple[float, float]]:
    """The points that no other beats in both, from the cheapest on."""
    sign = -1 if number.better == "lower" else 1
    kept: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not kept or sign * value > sign * kept[-1][1]:
            kept.append((cost, value))
    return kept


def axis_plot(rows: Sequence[Row], axis: str, name: str, number: Number) -> str:
    """A number over the values of one axis, a line for each setting of the others."""
    values = list(dict.fromkeys(row.axes[axis] for row in rows))
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if name in row.values:
            others = ", ".join(f"{a} {v}" for a, v in row.axes.items() if a != axis)
            lines.setdefault(others, []).append(row)
    with _figure(4.0) as (figure, plot):
        for index, (label, some) in enumerate(lines.items()):
            shift = 0.04 * (index - (len(lines) - 1) / 2)
            x = [values.index(row.axes[axis]) + shift for row in some]
            found = [row.values[name] for row in some]
            error = [[e.value - e.low for e in found], [e.high - e.value for e in found]]
            plot.errorbar(
                x,
                [e.value for e in found],
                yerr=error,
                label=label or None,
                color=COLORS[index % len(COLORS)],
                marker="o",
                capsize=2,
                elinewidth=0.8,
            )
        plot.set_xticks(range(len(values)), values)
        plot.set(xlabel=axis, ylabel=number.title)
        if any(lines):
            plot.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return _svg(figure)


def error_plot(rows: Sequence[Row]) -> str:
    """Latent error of each block against the reference with the same noise."""
    with _figure(4.0) as (figure, plot):
        for index, row in enumerate(row for row in rows if row.error_by_block):
            plot.plot(
                row.error_by_block, label=row.name, color=COLORS[index % len(COLORS)], marker="."
            )
        plot.set(xlabel="block", ylabel="relative L2 of the latents")
        plot.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return _svg(figure)


def _legend(plot: "Axes", points: Sequence[tuple[Row, float]], first: str, second: str) -> None:
    """What colors and marks stand for."""
    from matplotlib.lines import Line2D

    handles = []
    for axis, is_color in ((first, True), (second, False)):
        values = dict.fromkeys(row.axes[axis] for row, _ in points if axis in row.axes)
        for place, value in enumerate(values):
            color = COLORS[place % len(COLORS)] if is_color else "#8C8C8C"
            marker = "o" if is_color else _MARKERS[place % len(_MARKERS)]
            label = f"{axis} {value}"
            handles.append(Line2D([], [], color=color, marker=marker, linestyle="", label=label))
    if handles:
        plot.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _place(points: Sequence[tuple[Row, float]], axis: str, row: Row) -> int:
    values = list(dict.fromkeys(other.axes.get(axis, "") for other, _ in points))
    return values.index(row.axes.get(axis, ""))


@contextmanager
def _figure(height_in: float) -> "Iterator[tuple[Figure, Axes]]":
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(rc=matplotlib.rcParamsDefault):
        matplotlib.rcParams.update(cast(Any, _SETTINGS))
        figure = Figure(figsize=(9.0, height_in), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.subplots()


def _svg(figure: "Figure") -> str:
    """The picture as an element for a page; the day must not change it."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", svg[svg.index("<svg") :], count=1)
