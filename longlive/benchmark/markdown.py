"""Numbers and tables as Markdown, the same in every text about a benchmark."""

from collections.abc import Iterable, Sequence

MIB, GIB = 1 << 20, 1 << 30
NOTHING = "–"
"""Stands for a number that is not there."""


def show(value: float | None, unit: str) -> str:
    """A number with its unit.

    Args:
        value: None is shown as a dash.
        unit: ``ms``, ``fps``, ``s``, ``bytes``, ``count`` or ``ratio``.
    """
    if value is None:
        return NOTHING
    if unit == "bytes":
        big = abs(value) >= GIB
        return f"{value / GIB:.2f} GiB" if big else f"{value / MIB:.1f} MiB"
    if unit == "count":
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return f"{value:.3f}" if unit == "ratio" else f"{decimals(value)} {unit}"


def decimals(value: float | None) -> str:
    """A number with two decimals, or with three digits where those would be zeros."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"


def percent(share: float | None, digits: int = 1) -> str:
    """A fraction of 1 in percent."""
    return NOTHING if share is None else f"{100 * share:.{digits}f} %"


def signed_percent(share: float | None, digits: int = 1) -> str:
    """A change in percent, with its sign."""
    if share is None:
        return NOTHING
    # Rounded first, for there is no minus zero percent.
    return f"{round(100 * share, digits) + 0.0:+.{digits}f} %"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> list[str]:
    """Lines of a table.

    Args:
        columns: Their headings.
        rows: A cell for each column; anything with a text.
        left: How many columns hold words; the others are set to the right.
    """
    ruler = [" --- " if index < left else " ---: " for index in range(len(columns))]
    lines = [_row(columns), f"|{'|'.join(ruler)}|"]
    lines += [_row(row) for row in rows]
    return lines


def code(text: str) -> str:
    """A text as code inside a line."""
    return f"`{one_line(text)}`" if text else NOTHING


def one_line(text: str) -> str:
    """A text without line breaks."""
    return " ".join(text.split())


def _row(cells: Sequence[object]) -> str:
    # A bar inside a cell would end it, and so would a line break.
    texts = [one_line(str(cell)).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(texts)} |"
