"""The report of an evaluation: one page of HTML that needs nothing beside it, and Markdown.

Everything comes from files: records and kept videos of a study, results of benchmarks, scores of
VBench. So a page is made again, with the same bytes, without running anything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longlive.errors import UserError
from longlive.evaluation.latency import Latency, match_latencies
from longlive.evaluation.plots import axis_plot, error_plot, has_matplotlib, pareto_plot
from longlive.evaluation.records import Record
from longlive.evaluation.report_page import Clip, Page
from longlive.evaluation.table import Row, Study, Table, build_table, records_of
from longlive.evaluation.text_table import NOTHING, grid, interval_of, markdown_of
from longlive.evaluation.vbench import VBenchScores, load_scores
from longlive.video.atomic import write_bytes

PAGE_FILE, TEXT_FILE = "report.html", "report.md"
_QUALITY = ("adherence", "all_five", "clip_score", "ssim", "temporal_flickering")
_AXIS_NUMBERS = ("adherence", "all_five", "frame_mse", "latent_error", "drift_saturation", "seam")
_CLAIMS = {
    "embedded": "Quality is that of the small model of the shapes world, which cannot speak for "
    "the 1.3B model: it says what an option does to *a* causal video model of this kind, not by "
    "how much to the real one. Fidelity and latency of the full size are from its own rollouts.",
    "synthetic": "The weights are **random**: fidelity and speed mean something, quality does not.",
}


@dataclass(frozen=True, slots=True)
class Material:
    """All that a report is made of.

    Attributes:
        folder: Of the results.
        study: What was run.
        table: Its numbers.
        records: By variant folder.
        latencies: By variant folder.
        vbench: By variant folder.
        title: Of the page.
        command: What made the results, for who wants to repeat them.
    """

    folder: Path
    study: Study
    table: Table
    records: dict[str, list[Record]]
    latencies: dict[str, Latency] = field(default_factory=dict)
    vbench: dict[str, VBenchScores] = field(default_factory=dict)
    title: str = "Evaluation"
    command: str = ""


def load_material(
    folder: Path, latency: Sequence[str] = (), title: str = "", command: str = ""
) -> Material:
    """Read a folder of results and the benchmarks that belong to it.

    Args:
        folder: That ``longlive evaluate`` wrote.
        latency: Results of benchmarks; see :func:`longlive.evaluation.latency.match_latencies`.
        title: Of the page; the folder's name by default.
        command: That made the results.

    Raises:
        UserError: If anything is missing or broken, or nothing was judged yet.
    """
    study = Study.load(folder)
    table = build_table(folder, study)
    if not any(row.videos for row in table.rows):
        raise UserError(f"{folder} has no judged video yet: run longlive evaluate first")
    return Material(
        folder=folder,
        study=study,
        table=table,
        records=records_of(folder, study),
        latencies=match_latencies(study, latency),
        vbench=load_scores(folder),
        title=title or f"Evaluation: {folder.name}",
        command=command,
    )


def write_report(material: Material, output: Path, clips: int = 3) -> list[Path]:
    """Write the page and the Markdown.

    Args:
        material: What to show.
        output: Folder for both.
        clips: How many prompts are shown side by side; 0 leaves sheets and clips out.

    Returns:
        The files.

    Raises:
        UserError: If they cannot be written.
    """
    page, text = output / PAGE_FILE, output / TEXT_FILE
    write_bytes(page, html_of(material, clips).encode())
    write_bytes(text, ("\n".join(markdown_lines(material)) + "\n").encode())
    return [page, text]


def markdown_lines(material: Material) -> Iterator[str]:
    """The report as Markdown, without pictures."""
    yield f"# {material.title}"
    yield ""
    for line in _head(material):
        yield line
        yield ""
    yield from _latency_lines(material)
    yield from _axis_tables(material)
    yield from _vbench_lines(material)
    yield markdown_of(material.table).rstrip()


def html_of(material: Material, clips: int = 3) -> str:
    """The report as one page: tables, plots, contact sheets and clips inside it."""
    page = Page(material.title)
    for line in _head(material):
        page.text(line)
    page.markdown(_latency_lines(material))
    _plots(page, material)
    page.markdown(_axis_tables(material))
    page.markdown(_vbench_lines(material))
    page.markdown(markdown_of(material.table).splitlines())
    if clips:
        _clips(page, material, clips)
    return page.html()


def _head(material: Material) -> Iterator[str]:
    study = material.study
    if claim := _CLAIMS.get(study.weights_kind):
        yield claim
    missing = sum(row.missing for row in material.table.rows)
    if missing:
        yield f"**Incomplete**: {missing} videos are not judged yet."
    if study.prompts:
        yield f"Prompts: {study.prompts}."
    if study.environment:
        yield ", ".join(f"{key} {value}" for key, value in study.environment.items()) + "."
    if material.command:
        yield f"`{material.command}`"
    if not has_matplotlib():
        yield 'No plots: matplotlib is not installed (`pip install "longlive[eval]"`).'


def _points(material: Material) -> tuple[list[tuple[Row, float]], str]:
    """Rows with their cost, and what the cost is."""
    rows = list(zip(material.study.variants, material.table.rows, strict=True))
    timed = [
        (row, material.latencies[variant.folder].figures["inter_frame_ms"])
        for variant, row in rows
        if variant.folder in material.latencies
        and "inter_frame_ms" in material.latencies[variant.folder].figures
    ]
    if timed:
        latency = next(iter(material.latencies.values()))
        return timed, f"inter-frame latency, ms ({latency.device}, {latency.model})"
    points = []
    for variant, row in rows:
        seconds = [r.seconds for r in material.records[variant.folder] if r.seconds]
        if seconds:
            points.append((row, sorted(seconds)[len(seconds) // 2]))
    return points, "seconds a video took in this evaluation (median; not a benchmark)"


def _plots(page: Page, material: Material) -> None:
    if not has_matplotlib() or len(material.table.rows) < 2:
        return
    numbers = material.table.numbers
    points, title = _points(material)
    name = next((name for name in _QUALITY if name in numbers), None)
    if name is not None and any(name in row.values for row, _ in points):
        page.heading("Latency against quality")
        page.svg(pareto_plot(points, name, numbers[name], title))
    for axis in _axes(material):
        shown = [name for name in _AXIS_NUMBERS if name in numbers]
        page.heading(f"Over {axis}")
        for name in shown:
            page.svg(axis_plot(material.table.rows, axis, name, numbers[name]))
    near = _near_reference(material.table.rows)
    if any(row.error_by_block for row in near):
        page.heading("Error against the reference, block by block, one axis at a time")
        page.svg(error_plot(near))


def _near_reference(rows: Sequence[Row]) -> list[Row]:
    """The rows that differ from the reference, which is the first, in one axis at most."""
    axes = rows[0].axes
    return [row for row in rows if sum(row.axes[axis] != axes[axis] for axis in axes) <= 1]


def _axes(material: Material) -> list[str]:
    """Axes with more than one value."""
    rows = material.table.rows
    names = dict.fromkeys(axis for row in rows for axis in row.axes)
    return [axis for axis in names if len({row.axes[axis] for row in rows}) > 1]


def _axis_tables(material: Material) -> Iterator[str]:
    """For each axis the rows that differ from the reference in it alone."""
    rows = material.table.rows
    numbers = {name: n for name, n in material.table.numbers.items() if name in _AXIS_NUMBERS}
    for axis in _axes(material):
        alone = [
            row
            for row in rows
            if all(row.axes[a] == v for a, v in rows[0].axes.items() if a != axis)
        ]
        yield f"## {axis}: the others as in the reference ({rows[0].name})"
        yield ""
        lines = [
            [row.axes[axis], *(interval_of(row.values.get(k), n) for k, n in numbers.items())]
            for row in alone
        ]
        yield from grid([axis, *(number.title for number in numbers.values())], lines)
        yield ""


def _latency_lines(material: Material) -> Iterator[str]:
    if not material.latencies:
        return
    yield "## Latency"
    yield ""
    lines = []
    for variant in material.study.variants:
        if (found := material.latencies.get(variant.folder)) is not None:
            figures = found.figures
            cells = (
                *(f"{figures[n]:.1f}" if n in figures else NOTHING for n in _LATENCY_COLUMNS),
                *(found.device, found.model),
            )
            lines.append([variant.name, *cells])
    yield from grid(["variant", *_LATENCY_COLUMNS.values(), "device", "model"], lines)
    yield ""
    missing = [v.name for v in material.study.variants if v.folder not in material.latencies]
    if missing:
        yield f"Without a benchmark: {', '.join(missing)}."
        yield ""


_LATENCY_COLUMNS = {
    "inter_frame_ms": "inter-frame ms",
    "fps": "FPS, all in",
    "first_frame_cached_ms": "first frame ms",
    "switch_added_ms": "switch adds ms",
}


def _vbench_lines(material: Material) -> Iterator[str]:
    if not material.vbench:
        return
    yield "## VBench"
    yield ""
    names = {v.folder: v.name for v in material.study.variants}
    known = list(dict.fromkeys(d for s in material.vbench.values() for d in s.dimensions))
    lines = []
    for folder, scores in material.vbench.items():
        totals = (scores.total, scores.quality, scores.semantic)
        cells = [*totals, *(scores.dimensions.get(name) for name in known)]
        shown = [NOTHING if cell is None else f"{100 * cell:.2f}" for cell in cells]
        lines.append([names.get(folder, folder), *shown])
    heads = ["total %", "quality", "semantic", *(name.replace("_", " ") for name in known)]
    yield from grid(["variant", *heads], lines)
    yield ""


def _clips(page: Page, material: Material, count: int) -> None:
    """The same prompt and seed in every variant, side by side."""
    by_video: dict[tuple[int, int], list[Clip]] = {}
    for variant in material.study.variants:
        for record in material.records[variant.folder]:
            path = Path(record.video)
            path = path if path.is_absolute() or not record.video else material.folder / path
            if record.video and not record.left_out and path.is_file():
                place = by_video.setdefault((record.index, record.seed), [])
                prompts = " → ".join(prompt for _, prompt in record.timeline)
                place.append(Clip(path, variant.name, prompts, record.seed, _short(record)))
    shown = sorted(by_video.items(), key=lambda item: (-len(item[1]), item[0]))[:count]
    if shown:
        page.heading("The same prompts and seeds, side by side")
    for _, clips in shown:
        page.clips(clips)


def _short(record: Record) -> str:
    adherence = record.values.get("adherence")
    return f"(adherence {100 * adherence[0]:.0f} %)" if adherence else ""
