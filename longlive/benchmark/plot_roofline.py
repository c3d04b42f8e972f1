"""How close each kind of work comes to what the machine can do: a roofline, and time over floor."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longlive.benchmark.plot_style import (
    BLACK,
    GREY,
    UNIT_COLORS,
    context_of,
    new_figure,
)
from longlive.benchmark.results import Results, WorkRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROOFS = {"gemm": "gemm_tflops", "attention": "attention_tflops", "conv": "conv_tflops"}
_WORDS = {
    "gemm": "matrix products",
    "attention": "attention",
    "conv": "convolutions",
    "": "a whole piece",
}


_MANY = 1000
"""Axes that span more than this have a number at powers of ten alone."""


def plot_roofline(results: Results) -> "Figure | None":
    """TFLOP/s over FLOPs per byte, for all work whose time is known.

    Returns:
        None if there is no such work.
    """
    rows = [row for row in results.work if row.measured_ms and row.moved_bytes and row.flops]
    if not rows:
        return None
    has_floors = any(row.floor_ms for row in rows)
    figure, axes = new_figure(
        max(4.4, 1.5 + 0.23 * len(rows)),
        "Roofline: each kind of work against the ceilings of the machine"
        if has_floors
        else "Rate and intensity of each kind of work (no ceilings are known)",
        context_of(results),
        [["roof", "shares"]],
        width_ratios=[1.35, 1],
    )
    _roof(axes["roof"], rows, results.ceilings or {})
    _shares(axes["shares"], rows, has_floors)
    return figure


def _roof(axes: "Axes", rows: Sequence[WorkRow], ceilings: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    intensities = [row.flops / row.moved_bytes for row in rows]
    rates = [_tflops(row) for row in rows]
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="TFLOP/s")
    axes.grid(visible=True, which="major", axis="both")
    units = list(dict.fromkeys(row.unit for row in rows))
    copy_tb_s = ceilings.get("copy_tb_s")
    roofs = [roof for unit in units if (roof := ceilings.get(_ROOFS.get(unit, "")))]
    # With the bend in view the picture says whether memory or arithmetic bounds.
    bends = [roof / copy_tb_s for roof in roofs] if copy_tb_s else []
    left, right = min([*intensities, *bends]) / 2.5, max([*intensities, *bends]) * 2.5
    top = max([*rates, *roofs])
    for unit in units:
        roof = ceilings.get(_ROOFS.get(unit, ""))
        axes.plot([], [], "o", color=_color(unit), label=_WORDS.get(unit, unit))
        if roof and copy_tb_s:
            _draw_roof(axes, roof, copy_tb_s, (left, right), _color(unit))
    for number, row in enumerate(rows, start=1):
        place = row.flops / row.moved_bytes, _tflops(row)
        color = _color(row.unit)
        axes.plot(*place, "o", color=color, markersize=13, alpha=0.85, markeredgecolor="white")
        axes.annotate(
            str(number), place, ha="center", va="center", fontsize=7.5, color="white",
            fontweight="bold",
        )  # fmt: skip
    if copy_tb_s and bends:
        _draw_slope(axes, copy_tb_s, left)
    axes.set_xlim(left, right)
    axes.set_ylim(min(rates) / 2.5, top * 2)
    axes.legend(loc="lower right")
    axes.set_title("numbers as on the right")
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < _MANY else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


def _draw_roof(
    axes: "Axes", roof: float, copy_tb_s: float, ends: tuple[float, float], color: str
) -> None:
    """What memory allows up to the ridge, and what the products allow from there on."""
    left, right = ends
    ridge = roof / copy_tb_s
    bend = max(ridge, left)
    axes.plot([left, bend, right], [min(roof, left * copy_tb_s), roof, roof], color=color)
    axes.annotate(
        f"{roof:.4g} TFLOP/s",
        (bend, roof),
        xytext=(4, 2),
        textcoords="offset points",
        fontsize=8,
        color=color,
    )


def _draw_slope(axes: "Axes", copy_tb_s: float, left: float) -> None:
    axes.annotate(
        f"{copy_tb_s:.3g} TB/s",
        (left, left * copy_tb_s),
        xytext=(4, -4),
        textcoords="offset points",
        va="top",
        fontsize=8,
        color=GREY,
    )


def _shares(axes: "Axes", rows: Sequence[WorkRow], has_floors: bool) -> None:
    """Floor over measured time, or the measured time where no floor is known."""
    names = [f"{number} {row.piece}: {row.work}" for number, row in enumerate(rows, start=1)]
    lengths = [_share(row) if has_floors else row.measured_ms or 0.0 for row in rows]
    places = range(len(rows))
    axes.barh(places, lengths, color=[_color(row.unit) for row in rows], height=0.72)
    # Right of the line at the floor, which would cross them.
    said_at = [max(length, 1.0) if has_floors else length for length in lengths]
    for place, row, at in zip(places, rows, said_at, strict=True):
        axes.text(1.03 * at, place, _said(row, has_floors), va="center", fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlim(0, 1.6 * max([1.0 if has_floors else 0.0, *lengths]))
    if has_floors:
        axes.axvline(1, color=BLACK, linewidth=1)
        axes.set_xticks([0, 0.5, 1], ["0", "50 %", "at the floor"])
        axes.set(title="floor / measured time", ylim=(len(rows) - 0.4, -0.6))
        axes.set_xlabel("share of the measured time")
    else:
        axes.set(title="measured time", xlabel="ms")
    axes.tick_params(axis="y", length=0, colors=BLACK)
    axes.spines["bottom"].set_color(GREY)


def _color(unit: str) -> str:
    return UNIT_COLORS.get(unit, GREY)


def _share(row: WorkRow) -> float:
    return row.floor_ms / row.measured_ms if row.floor_ms and row.measured_ms else 0.0


def _said(row: WorkRow, has_floors: bool) -> str:
    ms = f"{row.measured_ms:.3g} ms"
    return f"{100 * _share(row):.0f} %, {ms}" if has_floors and row.floor_ms else ms


def _tflops(row: WorkRow) -> float:
    return row.flops / (row.measured_ms or 1.0) / 1e9
