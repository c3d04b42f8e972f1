"""Where the time of a frame goes, as stacked bars."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longlive.benchmark.budget import BUDGET_PARTS, Budget, budgets, budgets_by_place
from longlive.benchmark.plot_style import (
    BLACK,
    PART_COLORS,
    context_of,
    is_dark,
    new_figure,
)
from longlive.benchmark.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_READABLE = 0.06
"""Share of the axis that a bar needs for a number inside it."""


def plot_time_budget(results: Results) -> "Figure | None":
    """Parts of a frame's time: first, steady and switching blocks, and every block of a video.

    Returns:
        None if no plain rollout was measured.
    """
    found = budgets(results)
    if not found:
        return None
    figure, axes = new_figure(
        5.4,
        "Time budget per frame: mean time of each part / frames of the block",
        context_of(results),
        [["sorts"], ["places"]],
        height_ratios=[1, 1.15],
    )
    _sorts(axes["sorts"], found)
    _places(axes["places"], dict(budgets_by_place(results)))
    handles, labels = axes["sorts"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _sorts(axes: "Axes", found: Sequence[Budget]) -> None:
    widest = max(one.total_ms for one in found)
    names = [f"{one.name}\n({one.blocks} blocks)" for one in found]
    lefts = [0.0] * len(found)
    for part in _parts_of(found):
        widths = [one.parts_ms.get(part, 0.0) for one in found]
        bars = axes.barh(
            names, widths, left=lefts, color=PART_COLORS[part], label=part, height=0.62,
            edgecolor="white", linewidth=0.6,
        )  # fmt: skip
        inside = [f"{ms:.3g}" if ms > _READABLE * widest else "" for ms in widths]
        color = "white" if is_dark(PART_COLORS[part]) else BLACK
        axes.bar_label(bars, inside, label_type="center", fontsize=9, color=color)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    for place, one in enumerate(found):
        rate = 1000 / one.total_ms
        axes.annotate(
            f"{one.total_ms:.4g} ms = {rate:.3g} fps",
            (one.total_ms, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.set(xlabel="ms per frame", xlim=(0, 1.28 * widest), title="kinds of blocks")


def _places(axes: "Axes", places: dict[int, Budget]) -> None:
    bottoms = [0.0] * len(places)
    for part in _parts_of(list(places.values())):
        heights = [one.parts_ms.get(part, 0.0) for one in places.values()]
        axes.bar(list(places), heights, bottom=bottoms, color=PART_COLORS[part], width=0.85)
        bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
    axes.set(
        title="every block of a video, mean over the rollouts (initialization left out)",
        xlabel="block",
        ylabel="ms per frame",
        xlim=(min(places) - 0.7, max(places) + 0.7),
    )


def _parts_of(found: Sequence[Budget]) -> list[str]:
    return [part for part in BUDGET_PARTS if any(part in one.parts_ms for one in found)]
