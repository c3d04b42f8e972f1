"""Inter-frame latency, over a rollout and as a distribution."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from longlive.benchmark.budget import plain_rollouts
from longlive.benchmark.latency import steady_blocks
from longlive.benchmark.plot_style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    PALE,
    RED,
    context_of,
    new_figure,
)
from longlive.benchmark.results import Results
from longlive.benchmark.samples import RolloutSample
from longlive.geometry import FPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[float, float]]
"""Seconds since the request, and milliseconds per frame."""

_LINE_SHARE = 0.78
"""Height of lines and data, as a share of the axes; the legend is above."""

_PERCENTILES = ((50, BLACK, "-"), (95, ORANGE, "--"), (99, RED, ":"))


def plot_inter_frame_latency(results: Results) -> "Figure | None":
    """Period of every block over its frames, and how it spreads in the steady state.

    Returns:
        None if no plain rollout was measured.
    """
    rollouts = plain_rollouts(results)
    if not rollouts:
        return None
    figure, axes = new_figure(
        4.0,
        "Inter-frame latency: block period / frames, VAE and copy to host included",
        context_of(results),
        [["time", "spread"]],
        width_ratios=[1.9, 1],
    )
    _over_time(axes["time"], rollouts)
    _spread(axes["spread"], rollouts)
    return figure


def _over_time(axes: "Axes", rollouts: Sequence[RolloutSample]) -> None:
    each = [_periods(rollout) for rollout in rollouts]
    for index, points in enumerate(each):
        label = f"each of {len(each)} rollouts" if index == 0 else None
        axes.plot(*_split(points), color=PALE, linewidth=1, label=label)
    arrivals = _split(_medians([_arrivals(rollout) for rollout in rollouts]))
    dashes: dict[str, Any] = {"color": ORANGE, "linewidth": 1.2, "linestyle": "--", "zorder": 3}
    axes.plot(*arrivals, label="arrival at the host, median", **dashes)
    periods = _split(_medians(each))
    style: dict[str, Any] = {"color": BLUE, "linewidth": 1.6, "marker": "o", "markersize": 3}
    axes.plot(*periods, label="period, median", **style)
    for index, at_s in enumerate(_switches(rollouts)):
        label = "prompt switch" if index == 0 else None
        style = {"color": RED, "linestyle": ":", "linewidth": 1.2, "zorder": 0, "ymax": _LINE_SHARE}
        axes.axvline(at_s, label=label, **style)
    axes.set(
        title="one point a block, from the request on",
        xlabel="time since the request, s",
        ylabel="ms per frame",
        ylim=(0, max(ms for points in each for _, ms in points) / _LINE_SHARE),
    )
    _mark_real_time(axes)
    axes.legend(loc="upper center", ncols=2)


def _mark_real_time(axes: "Axes") -> None:
    """A line at the time for which a frame is shown, where it is not far off."""
    real_time_ms = 1000 / FPS
    _, top = axes.get_ylim()
    if real_time_ms > 2 * top:
        return
    axes.set_ylim(0, max(top, 1.2 * real_time_ms))
    axes.axhline(real_time_ms, color=GREY, linestyle="--", linewidth=1)
    axes.annotate(
        f"{FPS} fps",
        (1, real_time_ms),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color=GREY,
    )


def _spread(axes: "Axes", rollouts: Sequence[RolloutSample]) -> None:
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    found = [b.period_ms / b.frames for rollout in rollouts for b in steady_blocks(rollout)]
    axes.set(title=f"{len(found)} steady blocks", xlabel="ms per frame", ylabel="blocks")
    if not found:
        return
    axes.hist(found, bins=min(40, max(5, len(found) // 4)), color=BLUE, alpha=0.45)
    for percent, color, line in _PERCENTILES:
        ms = float(np.percentile(found, percent))
        label = f"p{percent} {ms:.2f} ms"
        axes.axvline(ms, color=color, linestyle=line, linewidth=1.6, label=label, ymax=_LINE_SHARE)
    axes.plot([], [], " ", label=f"max {max(found):.2f} ms")
    _, top = axes.get_ylim()
    axes.set_ylim(0, top / _LINE_SHARE)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", ncols=2, columnspacing=1, handlelength=1.3, fontsize=8)


def _periods(rollout: RolloutSample) -> Points:
    return [(block.end_ms / 1000, block.period_ms / block.frames) for block in rollout.blocks]


def _arrivals(rollout: RolloutSample) -> Points:
    blocks = rollout.blocks
    return [
        (block.on_host_ms / 1000, (block.on_host_ms - before.on_host_ms) / block.frames)
        for before, block in zip(blocks, blocks[1:], strict=False)
    ]


def _medians(each: Sequence[Points]) -> Points:
    """Median over the rollouts, point by point; they need not be equally long."""
    longest = max(map(len, each))
    places = [[points[i] for points in each if i < len(points)] for i in range(longest)]
    return [(median(s for s, _ in place), median(ms for _, ms in place)) for place in places]


def _split(points: Points) -> tuple[list[float], list[float]]:
    return [s for s, _ in points], [ms for _, ms in points]


def _switches(rollouts: Sequence[RolloutSample]) -> list[float]:
    """Where prompts switch, s; median over the rollouts."""
    starts: dict[int, list[float]] = {}
    for rollout in rollouts:
        for block in rollout.blocks:
            if block.switches:
                starts.setdefault(block.index, []).append(block.start_ms / 1000)
    return [median(found) for found in starts.values()]
