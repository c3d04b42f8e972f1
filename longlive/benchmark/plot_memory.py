"""Memory over the measured rollouts, one after another: a leak is a slope."""

from typing import TYPE_CHECKING

from longlive.benchmark.budget import plain_rollouts
from longlive.benchmark.markdown import GIB
from longlive.benchmark.plot_style import (
    BLUE,
    GREY,
    ORANGE,
    PALE,
    RED,
    context_of,
    new_figure,
)
from longlive.benchmark.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_memory(results: Results) -> "Figure | None":
    """Allocated, reserved and peak memory at the end of every block of the plain rollouts.

    Returns:
        None if no memory was read.
    """
    at_s: list[float] = []
    readings = []
    borders_s = [0.0]
    for rollout in plain_rollouts(results):
        for block in rollout.blocks:
            if block.memory is not None:
                at_s.append(borders_s[-1] + block.end_ms / 1000)
                readings.append(block.memory)
        borders_s.append(borders_s[-1] + rollout.blocks[-1].end_ms / 1000)
    if not readings:
        return None
    figure, named = new_figure(
        3.7,
        "Memory over the plain rollouts, one after another (gray lines part them)",
        f"{context_of(results)}; {results.environment.memory or 'kind of memory unknown'}",
        [["all"]],
    )
    axes = named["all"]
    for name, color, line in (
        ("reserved", ORANGE, "--"),
        ("peak", RED, "-"),
        ("allocated", BLUE, "-"),
    ):
        gib = [getattr(memory, f"{name}_bytes") / GIB for memory in readings]
        label = f"{_NAMES[name]} (max {max(gib):.2f} GiB)"
        axes.plot(at_s, gib, color=color, linestyle=line, linewidth=1.5, label=label)
    weights = results.start_up.weights_bytes
    if weights is not None:
        label = f"weights ({weights / GIB:.2f} GiB)"
        axes.axhline(weights / GIB, color=GREY, linestyle=":", linewidth=1.5, label=label)
    for border_s in borders_s[1:-1]:
        axes.axvline(border_s, color=PALE, linewidth=1, zorder=0)
    highest = max(max(m.reserved_bytes, m.peak_bytes) for m in readings) / GIB
    axes.set(xlabel="time in the rollouts, s", ylabel="GiB", ylim=(0, 1.4 * highest))
    axes.set_xlim(0, borders_s[-1])
    axes.legend(loc="upper left", ncols=2)
    return figure


_NAMES = {
    "reserved": "reserved",
    "peak": "peak since the block before",
    "allocated": "allocated at the end of a block",
}
