"""Parts of the transformer's layers, layer by layer and summed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longlive.benchmark.plot_style import GREY, LAYER_COLORS, context_of, new_figure
from longlive.benchmark.results import LayerRow, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_layers(results: Results) -> "Figure | None":
    """Time of each part in each layer, for each kind of pass.

    Returns:
        None if nothing was timed inside layers.
    """
    rows = results.breakdown.layers if results.breakdown else ()
    if not rows:
        return None
    kinds = list(dict.fromkeys(row.pass_kind for row in rows))
    figure, axes = new_figure(
        0.9 + 2.5 * len(kinds),
        "Inside the layers: ms per pass, from a rollout with hooks in every layer",
        context_of(results),
        [[kind, f"sum of {kind}"] for kind in kinds],
        width_ratios=[1.5, 1],
    )
    for kind in kinds:
        of_kind = [row for row in rows if row.pass_kind == kind]
        _layer_by_layer(axes[kind], kind, of_kind)
        _sums(axes[f"sum of {kind}"], of_kind)
    return figure


def _layer_by_layer(axes: "Axes", kind: str, rows: Sequence[LayerRow]) -> None:
    from matplotlib.ticker import MaxNLocator

    layers = range(max(len(row.layers_ms) for row in rows))
    bottoms = [0.0] * len(layers)
    # The longest part at the bottom, where layers are easily compared.
    for row in _longest_first(rows):
        heights = [*row.layers_ms, *[0.0] * (len(layers) - len(row.layers_ms))]
        color = LAYER_COLORS.get(row.part, GREY)
        axes.bar(layers, heights, bottom=bottoms, color=color, width=0.85)
        bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
    passes = max(row.passes for row in rows)
    title = f"{kind} (mean of {passes})"
    axes.set(title=title, xlabel="layer", ylabel="ms per pass and layer")
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _sums(axes: "Axes", rows: Sequence[LayerRow]) -> None:
    ordered = _longest_first(rows)
    sums = [sum(row.layers_ms) for row in ordered]
    total = sum(sums)
    colors = [LAYER_COLORS.get(row.part, GREY) for row in ordered]
    bars = axes.barh([row.part for row in ordered], sums, color=colors, height=0.7)
    shares = [f"{ms:.3g} ms, {100 * ms / total:.0f} %" if total else "" for ms in sums]
    axes.bar_label(bars, shares, padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(title=f"all layers: {total:.4g} ms", xlabel="ms per pass")
    axes.set_xlim(0, 1.55 * max(sums, default=1) or 1)


def _longest_first(rows: Sequence[LayerRow]) -> list[LayerRow]:
    return sorted(rows, key=lambda row: -sum(row.layers_ms))
