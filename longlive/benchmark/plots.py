"""Pictures of a benchmark as PNG and SVG: latency, budget, layers, roofline and memory."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from longlive.benchmark.plot_ablation import plot_ablation
from longlive.benchmark.plot_budget import plot_time_budget
from longlive.benchmark.plot_latency import plot_inter_frame_latency
from longlive.benchmark.plot_layers import plot_layers
from longlive.benchmark.plot_memory import plot_memory
from longlive.benchmark.plot_roofline import plot_roofline
from longlive.benchmark.plot_style import save, style
from longlive.benchmark.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from longlive.benchmark.ablation_table import AblationResults

PLOTS: "dict[str, Callable[[Results], Figure | None]]" = {
    "inter_frame_latency": plot_inter_frame_latency,
    "time_budget": plot_time_budget,
    "layers": plot_layers,
    "roofline": plot_roofline,
    "memory": plot_memory,
}
"""By the name of the file, without its ending."""


def write_plots(results: Results, folder: Path) -> list[str]:
    """Draw what was measured, each picture as a PNG and an SVG.

    The same results give the same bytes with the same matplotlib.

    Args:
        results: What was measured. A picture for which it has nothing is left out.
        folder: Where to put them.

    Returns:
        Names of the pictures that were drawn, keys of ``PLOTS``.

    Raises:
        Unavailable: If matplotlib is not installed (``plot_style.Unavailable``).
        UserError: If a file cannot be written.
    """
    written = []
    with style():
        for name, plot in PLOTS.items():
            figure = plot(results)
            if figure is not None:
                save(figure, folder / name)
                written.append(name)
    return written


def ablation_plot(results: "AblationResults", path: Path) -> list[Path]:
    """Draw the rows of an ablation against its baseline, as a PNG and an SVG.

    Args:
        results: What was measured, every repeat of it.
        path: Name of either file; the ending is replaced.

    Returns:
        The files; none if no row was measured.

    Raises:
        Unavailable: If matplotlib is not installed (``plot_style.Unavailable``).
        UserError: If a file cannot be written.
    """
    with style():
        figure = plot_ablation(results)
        return [] if figure is None else save(figure, path.with_suffix(""))
