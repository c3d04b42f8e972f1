"""A table as Markdown, and as the few lines that a terminal shows."""

from collections.abc import Iterator, Sequence

from longlive.evaluation.bootstrap import EQUAL_DB, Estimate
from longlive.evaluation.measures import NUMBERS, Number
from longlive.evaluation.table import Row, Table

NOTHING = "–"
_GROUP_TITLES = {
    "shapes": "The judge of the shapes world",
    "temporal": "In time",
    "fidelity": "Fidelity to the reference rollout (same noise)",
    "lpips": "LPIPS to the reference rollout",
    "clip": "CLIP score",
}
_SHOWN = 20
_SHORT = ("adherence", "all_five", "switch_lags", "seam", "frame_mse", "latent_error", "clip_score")


def markdown_of(table: Table) -> str:
    """The whole table: a part for each measure, what it costs, and what was left out."""
    return "\n".join([*_sections(table), ""])


def summary_of(table: Table) -> str:
    """A line a variant, and one that counts what was left out."""
    names = [name for name in _SHORT if name in table.numbers]
    lines = []
    for row in table.rows:
        cells = [
            f"{NUMBERS[name].title} {value_of(row.values.get(name), NUMBERS[name])}"
            for name in names
        ]
        missing = f", {row.missing} missing" if row.missing else ""
        lines.append(f"{row.name}: {'; '.join(cells)} ({row.videos} videos{missing})")
    lines += [f"left out: {name}: {reason}" for name, reason in table.left_out[:_SHOWN]]
    if len(table.left_out) > _SHOWN:
        lines.append(f"left out: {len(table.left_out) - _SHOWN} more, see the table")
    lines += [f"no {reason} ({videos} videos)" for reason, videos in table.skipped.items()]
    return "\n".join(lines) + "\n"


def value_of(found: Estimate | None, number: Number) -> str:
    """A number in its unit."""
    return NOTHING if found is None else _number(found.value, number)


def interval_of(found: Estimate | None, number: Number) -> str:
    """A number with its interval."""
    if found is None:
        return NOTHING
    low, high = _number(found.low, number), _number(found.high, number)
    return f"{_number(found.value, number)} [{low}, {high}]"


def difference_of(found: Estimate | None, number: Number) -> str:
    """A difference with its interval; bold where the interval excludes zero."""
    if found is None:
        return NOTHING
    text = f"{_signed(found.value, number)} [{_signed(found.low, number)}, "
    text += f"{_signed(found.high, number)}]"
    return text if found.low <= 0 <= found.high else f"**{text}**"


def grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield f"| {' | '.join(columns)} |"
    yield f"| {' | '.join(['---', *(['---:'] * (len(columns) - 1))])} |"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"


def _sections(table: Table) -> Iterator[str]:
    for group, title in _GROUP_TITLES.items():
        numbers = {name: n for name, n in table.numbers.items() if n.group == group}
        if not numbers:
            continue
        yield f"## {title}"
        yield ""
        heads = [_heading(number) for number in numbers.values()]
        rows = [
            [row.name, *(interval_of(row.values.get(k), n) for k, n in numbers.items())]
            for row in table.rows
        ]
        yield from grid(["variant", *heads], rows)
        yield ""
        yield from _differences(table.rows, numbers)
    yield from _counts(table)


def _differences(rows: Sequence[Row], numbers: dict[str, Number]) -> Iterator[str]:
    shown = {k: n for k, n in numbers.items() if any(k in row.differences for row in rows)}
    # Fidelity is a difference from the reference already.
    shown = {k: n for k, n in shown.items() if n.group not in ("fidelity", "lpips")}
    if not shown:
        return
    yield f"Difference from {rows[0].name}, paired by prompt and seed; bold where it excludes zero:"
    yield ""
    lines = [
        [row.name, *(difference_of(row.differences.get(k), n) for k, n in shown.items())]
        for row in rows[1:]
    ]
    yield from grid(["variant", *(number.title for number in shown.values())], lines)
    yield ""


def _counts(table: Table) -> Iterator[str]:
    yield "## Videos"
    yield ""
    rows = [[row.name, str(row.videos), str(row.missing), row.note] for row in table.rows]
    yield from grid(["variant", "judged", "missing", "note"], rows)
    yield ""
    yield "Intervals are 95 %, from resampling prompts."
    for name, reason in table.left_out:
        yield f"* left out: `{name}`: {reason}"
    for reason, videos in table.skipped.items():
        yield f"* not measured: {reason} ({videos} videos)"


def _heading(number: Number) -> str:
    arrow = {"higher": " ↑", "lower": " ↓", "": ""}[number.better]
    unit = {"share": " %", "frames": " frames", "db": " dB", "px": " px/frame"}.get(number.unit, "")
    return f"{number.title}{unit}{arrow}"


def _number(value: float, number: Number) -> str:
    if number.unit == "share":
        return f"{100 * value:.1f}"
    if number.unit == "db":
        return "equal" if value >= EQUAL_DB else f"{value:.1f}"
    if number.unit == "frames":
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.1e}"


def _signed(value: float, number: Number) -> str:
    return f"{'+' if value > 0 else ''}{_number(value, number)}"
