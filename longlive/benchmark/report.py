"""``report.md``: what a benchmark found, for people. It is made from ``results.json`` alone."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from longlive.benchmark.markdown import NOTHING, code, decimals, one_line, table
from longlive.benchmark.plot_style import Unavailable
from longlive.benchmark.plots import PLOTS, write_plots
from longlive.benchmark.provenance import GpuState
from longlive.benchmark.report_figures import figure_sections, headline_section, sum_section
from longlive.benchmark.report_tables import (
    budget_section,
    floor_section,
    layer_section,
    memory_section,
    region_section,
)
from longlive.benchmark.results import FILE_NAME, Results
from longlive.video.atomic import write_bytes

REPORT_NAME = "report.md"

CLAIMS = {
    "synthetic": "**Synthetic weights**: random numbers. Speed and memory are those of a model of "
    "this size; the video is noise, and nothing here says anything about quality.",
    "embedded": "**Embedded weights**: the small model that ships with this package. Nothing here "
    "says anything about the speed of the full-size model.",
    "converted": "Weights: **converted** from a published checkpoint.",
    "released": "Weights: the **released** ones.",
}
"""What may be concluded from a kind of weights, and what not."""

_STATES = {
    "sm_clock_mhz": "clock of the multiprocessors, MHz",
    "sm_clock_max_mhz": "highest such clock, MHz",
    "memory_clock_mhz": "clock of the memory, MHz",
    "power_w": "power drawn, W",
    "power_limit_w": "power limit, W",
    "temperature_c": "temperature, degrees C",
    "throttle_reasons": "throttle reasons, bit mask",
}


def write_report(folder: Path) -> Path:
    """Write ``report.md`` and the plots beside ``results.json``, and return the report's path.

    Args:
        folder: Has the results; everything in the report is made of them, so it can be written
            again at any time, on any machine. Without matplotlib the report has no plots, and a
            line that says so.

    Raises:
        UserError: If there are no results, or nothing can be written.
    """
    results = Results.load(folder)
    try:
        plots = write_plots(results, folder)
        missing = ""
    except Unavailable as reason:
        plots, missing = [], f"No plots: {reason}."
    path = folder / REPORT_NAME
    write_bytes(path, report_text(results, plots, missing).encode())
    return path


def report_text(results: Results, plots: Sequence[str] = (), missing: str = "") -> str:
    """The report as Markdown.

    Args:
        results: What was measured.
        plots: Names of the plots that lie beside the report, keys of ``plots.PLOTS``.
        missing: Why there are none, as a sentence; empty if there are some.
    """
    shown = {name: _plot(name) if name in plots else [] for name in PLOTS}
    sections: dict[str, list[str]] = {
        "In short": list(headline_section(results)),
        "Figures": [*shown["inter_frame_latency"], *figure_sections(results)],
        "Time budget of a frame": [*shown["time_budget"], *budget_section(results)],
        "Inside the layers": [*shown["layers"], *layer_section(results)],
        "Measured time over the floor": [*shown["roofline"], *floor_section(results)],
        "Regions": list(region_section(results)),
        "Memory": [*shown["memory"], *memory_section(results)],
        "Do the parts add up?": list(sum_section(results)),
        "Machine": list(_machine(results)),
        "Clocks and power": list(_clocks(results)),
        "What was run": list(_what_was_run(results)),
        "Notes": [f"* {one_line(note)}" for note in _notes(results)] or ["None."],
    }
    lines = list(_head(results, missing))
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body]
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip() + "\n"


def headline(results: Results) -> str:
    """What was measured on which machine, in a line."""
    return f"{results.recipe.name} on {results.environment.device_name}"


def _head(results: Results, missing: str) -> Iterator[str]:
    recipe = results.recipe
    window = recipe.window_latent_frames
    yield f"# Benchmark: {headline(results)}"
    yield ""
    kind = recipe.weights_kind
    yield f"> {CLAIMS.get(kind, f'Weights: **{kind}**.')}"
    yield ""
    if not results.complete:
        yield f"> **Incomplete**: {one_line(results.ended)}. The figures are of the samples it has."
        yield ""
    yield (
        f"{recipe.height_px}x{recipe.width_px}, {recipe.steps} steps, "
        f"{'no window' if window is None else f'window {window}'}, "
        f"sink {recipe.sink_latent_frames}, blocks of {recipe.block_latent_frames} latent frames, "
        f"{recipe.dtype}, attention {recipe.attention}, guidance {recipe.guidance:g}, "
        f"batch {recipe.batch_size}. Callbacks: {', '.join(recipe.callbacks) or 'none'}."
    )
    yield ""
    yield (
        f"{'Complete. ' if results.complete else ''}Started {results.started_at}, took "
        f"{results.elapsed_s:.0f} s, commit {code(results.commit or 'unknown')}. Every sample is "
        f"in [{FILE_NAME}]({FILE_NAME})."
    )
    yield ""
    yield from ("```bash", recipe.command or "# not run from a command line", "```")
    if missing:
        yield ""
        yield missing


def _plot(name: str) -> list[str]:
    return [f"[![{name.replace('_', ' ')}]({name}.png)]({name}.svg)", ""]


def _machine(results: Results) -> Iterator[str]:
    environment = results.environment
    rows: list[tuple[str, object]] = []
    for field in fields(environment):
        value = getattr(environment, field.name)
        if isinstance(value, dict):
            rows += [(name, version or "not installed") for name, version in value.items()]
        elif not isinstance(value, GpuState) and not field.name.startswith("gpu_"):
            rows.append((field.name.replace("_", " "), NOTHING if value is None else value))
    yield from table(("what", "which"), rows, left=2)


def _clocks(results: Results) -> Iterator[str]:
    before, after = results.environment.gpu_before, results.environment.gpu_after
    if before is None and after is None:
        yield "There is no GPU whose clocks could be read."
        return
    rows = [
        (words, _state(before, field), _state(after, field)) for field, words in _STATES.items()
    ]
    yield from table(("state", "before the warm-up", "after the last plain rollout"), rows)


def _state(state: GpuState | None, field: str) -> str:
    value = None if state is None else getattr(state, field)
    if isinstance(value, float):
        return decimals(value) if value % 1 else f"{value:.0f}"
    return NOTHING if value is None else str(value)


def _what_was_run(results: Results) -> Iterator[str]:
    recipe, start_up = results.recipe, results.start_up
    rows: list[tuple[str, object]] = [
        ("configuration files", ", ".join(map(code, recipe.config_files)) or NOTHING),
        ("weights", f"{recipe.weights_kind}, {code(recipe.weights_source)}"),
        ("callbacks", ", ".join(map(code, recipe.callbacks)) or "none"),
        ("left out, because they only watch", ", ".join(map(code, recipe.left_out)) or "none"),
        ("rollouts", _rollouts(results)),
        ("loading, s", decimals(start_up.load_s)),
        ("warm-up rollouts, s", ", ".join(map(decimals, start_up.warm_up_s)) or NOTHING),
        *((name, code(str(value))) for name, value in results.benchmark.items()),
    ]
    yield from table(("what", "which"), rows, left=2)
    yield ""
    yield f"The resolved configuration is in `{FILE_NAME}` under `recipe.settings`."


def _rollouts(results: Results) -> str:
    counts: dict[str, int] = {}
    blocks: dict[str, int] = {}
    for rollout in results.rollouts:
        counts[rollout.kind] = counts.get(rollout.kind, 0) + 1
        blocks[rollout.kind] = blocks.get(rollout.kind, 0) + len(rollout.blocks)
    said = (f"{count} {kind} ({blocks[kind]} blocks)" for kind, count in counts.items())
    return ", ".join(said) or "none"


def _notes(results: Results) -> list[Any]:
    return [*results.notes, *(results.breakdown.notes if results.breakdown else ())]
