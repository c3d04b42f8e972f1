"""How plots look, and how they become files that are the same every time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlive.benchmark.latency import INITIALIZATION
from longlive.benchmark.results import Results
from longlive.benchmark.samples import CONTEXT, COPY, DECODE, DIFFUSION, OTHER, RECACHE, TEXT
from longlive.callbacks import module_regions as layer
from longlive.video.atomic import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which people with any color vision tell apart ("Color Universal
# Design", 2008).
BLACK, GREY, PALE = "#222222", "#8C8C8C", "#D0D0D0"
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, RED, PINK = "#0072B2", "#D55E00", "#CC79A7"

PART_COLORS = {
    INITIALIZATION: BLACK,
    TEXT: PINK,
    RECACHE: RED,
    DIFFUSION: BLUE,
    DECODE: ORANGE,
    COPY: YELLOW,
    CONTEXT: SKY,
    OTHER: GREY,
}
"""Color of each part of a budget."""

LAYER_COLORS = {
    layer.ATTENTION: BLUE,
    layer.CROSS_ATTENTION: SKY,
    layer.FFN: ORANGE,
    layer.QKV: GREEN,
    layer.OUTPUT_PROJECTION: YELLOW,
    layer.ROPE: PINK,
    layer.UPDATE: RED,
    layer.NORMS: GREY,
}
"""Color of each part of a layer."""

UNIT_COLORS = {"gemm": GREEN, "attention": BLUE, "conv": ORANGE, "": BLACK}
"""Color of each rate that bounds work; of whole pieces, which several bound, the last."""

_WIDTH_IN = 9.0
"""A README shows some 830 pixels; letters of 10 points in 9 inches are some 13 pixels there."""
_HEADING_IN = 0.55

_SETTINGS: dict[str, Any] = {
    "figure.dpi": 160,
    "savefig.dpi": 160,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    # Names of elements in an SVG are random without it.
    "svg.hashsalt": "longlive",
}


class Unavailable(Exception):
    """There can be no plots here; the text says why, and what to do."""


@contextmanager
def style() -> Iterator[None]:
    """Draw in this style.

    Raises:
        Unavailable: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise Unavailable('matplotlib is not installed (pip install "longlive[eval]")') from error
    with matplotlib.rc_context():
        # Not the settings of whoever draws: a report looks the same everywhere.
        matplotlib.rcdefaults()
        parameters: Any = matplotlib.rcParams
        parameters.update(_SETTINGS)
        yield


def new_figure(
    height_in: float, title: str, context: str, mosaic: Sequence[Sequence[str]], **options: Any
) -> tuple["Figure", dict[str, "Axes"]]:
    """An empty figure as wide as a README, with a heading.

    No window system is asked for: the figure has Agg's canvas, not that of ``pyplot``.

    Args:
        height_in: Inches.
        title: What is measured.
        context: On which machine, with which weights.
        mosaic: Names of its axes, as they lie.
        options: Of ``Figure.subplot_mosaic``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.08, h_pad=0.06, rect=(0, 0, 1, 1 - _HEADING_IN / height_in))
    axes = figure.subplot_mosaic([list(row) for row in mosaic], **options)
    for text, down_in, size, weight, color in (
        (title, 0.08, 12, "bold", BLACK),
        (context, 0.33, 9, "normal", "#555555"),
    ):
        y = 1 - down_in / height_in
        figure.text(0.01, y, text, va="top", fontsize=size, fontweight=weight, color=color)
    return figure, axes


def is_dark(color: str) -> bool:
    """Whether letters on a color must be white: its luma (Rec. 601) is below one half."""
    red, green, blue = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5


def context_of(results: Results) -> str:
    """Machine, weights and size, for the heading of a picture."""
    recipe = results.recipe
    window = recipe.window_latent_frames
    return ", ".join(
        [
            results.environment.device_name,
            f"{recipe.weights_kind} weights",
            recipe.name,
            f"{recipe.height_px}x{recipe.width_px}",
            f"{recipe.steps} steps",
            "no window" if window is None else f"window {window}",
            *([] if results.complete else ["INCOMPLETE"]),
        ]
    )


def save(figure: "Figure", stem: Path) -> list[Path]:
    """Write a figure as ``STEM.png`` and ``STEM.svg``, the same bytes for the same figure.

    Raises:
        UserError: If a file cannot be written.
    """
    paths = []
    # Neither the day nor the version of matplotlib may change a file.
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        data = BytesIO()
        figure.savefig(data, format=suffix[1:], metadata=metadata)
        path = stem.with_name(stem.name + suffix)
        write_bytes(path, data.getvalue())
        paths.append(path)
    return paths
