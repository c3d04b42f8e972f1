"""Rows of an ablation side by side: every repeat a dot, the median a bar."""

from collections.abc import Sequence
from statistics import median
from textwrap import shorten
from typing import TYPE_CHECKING

from longlive.benchmark.definitions import DEFINITIONS
from longlive.benchmark.markdown import GIB
from longlive.benchmark.plot_style import BLACK, BLUE, GREY, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from longlive.benchmark.ablation_table import AblationResults, AblationRow

_PANELS = 3
_LONGEST_REASON = 32
"""Letters that fit into a panel."""


def plot_ablation(results: "AblationResults") -> "Figure | None":
    """The first three figures of an ablation that were measured, a panel each, a bar per row.

    Returns:
        None if no row was measured.
    """
    measured = [
        name for name in results.figures if any(row.samples.get(name) for row in results.rows)
    ]
    shown = measured[:_PANELS]
    if not shown:
        return None
    figure, axes = new_figure(
        1.5 + 0.42 * len(results.rows),
        f"{results.title} ({results.kind}, {results.repeats} "
        f"{'interleaved ' if results.interleaved else ''}repeats)",
        f"{results.environment.device_name}, {results.weights_kind} weights"
        f"{'' if results.complete else ', INCOMPLETE'}",
        [shown],
        sharey=True,
    )
    for place, name in enumerate(shown):
        _panel(axes[name], name, results)
        if place:
            axes[name].tick_params(axis="y", length=0)
    first = axes[shown[0]]
    first.set_yticks(range(len(results.rows)), [row.name for row in results.rows])
    first.set_ylim(len(results.rows) - 0.4, -0.6)
    return figure


def _panel(axes: "Axes", name: str, results: "AblationResults") -> None:
    definition = DEFINITIONS.get(name)
    unit = definition.unit if definition else ""
    scale = 1 / GIB if unit == "bytes" else 1.0
    found = [_scaled(row, name, scale) for row in results.rows]
    base = next(
        (median(f) for row, f in zip(results.rows, found, strict=True)
         if row.name == results.baseline and f),
        None,
    )  # fmt: skip
    longest = max(max(samples) for samples in found if samples)
    for place, (row, samples) in enumerate(zip(results.rows, found, strict=True)):
        if not samples:
            is_first = name == results.figures[0]
            reason = shorten(row.reason, _LONGEST_REASON, placeholder=" ...") if is_first else ""
            axes.text(0, place, f" not measured{reason and ': '}{reason}", va="center", fontsize=8)
            continue
        middle = median(samples)
        color = ORANGE if row.name == results.baseline else BLUE
        axes.barh(place, middle, color=color, alpha=0.75, height=0.66)
        axes.plot(samples, [place] * len(samples), ".", color=BLACK, markersize=4)
        axes.annotate(
            _said(middle, base, row.name == results.baseline),
            (max(samples), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            bbox={"color": "white", "alpha": 0.7, "pad": 1},
        )
    if base is not None:
        axes.axvline(base, color=GREY, linestyle="--", linewidth=1)
    better = f" ({definition.better} is better)" if definition and definition.better else ""
    axes.set(xlim=(0, 1.5 * longest), xlabel=f"{_UNITS.get(unit, unit)}{better}")
    axes.set_title(definition.title if definition else name)
    axes.grid(visible=False)


def _scaled(row: "AblationRow", name: str, scale: float) -> Sequence[float]:
    return [sample * scale for sample in row.samples.get(name, ())]


def _said(value: float, base: float | None, is_baseline: bool) -> str:
    if is_baseline or not base:
        return f"{value:.3g}"
    return f"{value:.3g}, {100 * (value / base - 1):+.0f} %"


_UNITS = {"bytes": "GiB", "ratio": "", "count": "times"}
