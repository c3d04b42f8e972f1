"""A page of HTML with everything inside: text, tables, SVG, pictures and clips as data."""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from longlive.errors import UserError
from longlive.video.contact_sheet import contact_sheet
from longlive.video.read import read_video

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 75rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; margin: .6rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e4e4e4; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; height: auto; } code { background: #f3f3f3; padding: 0 .2rem; }
.clips { display: flex; flex-wrap: wrap; gap: .8rem; } figure { margin: 0; width: 180px; }
figcaption { font-size: 12px; } video, .sheet { width: 100%; image-rendering: auto; }
"""
_MARKS = (
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*(.+?)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"\*([^*]+)\*"), r"<em>\1</em>"),
)
_SHEET_COLUMNS = 8
_SHEET_WIDTH_PX = 120


@dataclass(frozen=True, slots=True)
class Clip:
    """One kept video.

    Attributes:
        path: The file.
        variant: Who made it.
        prompts: What it shows.
        seed: Of its noise.
        note: A number or two.
    """

    path: Path
    variant: str
    prompts: str
    seed: int
    note: str


class Page:
    """Grows from top to bottom.

    Args:
        title: Of the page.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{_inline(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph; backquotes and asterisks mark code and weight."""
        self._parts.append(f"<p>{_inline(text)}</p>")

    def svg(self, picture: str) -> None:
        """Add a picture."""
        self._parts.append(f"<div>{picture}</div>")

    def markdown(self, lines: Iterable[str]) -> None:
        """Add headings, tables, items and paragraphs; no other Markdown is understood."""
        rows: list[list[str]] = []
        for line in [*lines, ""]:
            if line.startswith("|"):
                rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
                continue
            if rows:
                self._table(rows)
                rows = []
            if line.startswith("#"):
                self.heading(line.lstrip("# "))
            elif line.startswith("* "):
                self._parts.append(f"<div>• {_inline(line[2:])}</div>")
            elif line:
                self.text(line)

    def clips(self, clips: Sequence[Clip]) -> None:
        """Add the clips of one prompt, and a sheet of their frames.

        A clip that cannot be read is named in its place.
        """
        videos, readable = [], []
        for clip in clips:
            try:
                videos.append(read_video(clip.path))
                readable.append(clip)
            except UserError as error:
                self.text(f"{clip.variant}: {error}")
        if not readable:
            return
        self.text(f"{readable[0].prompts} (seed {readable[0].seed})")
        sheet = contact_sheet(
            videos,
            columns=_SHEET_COLUMNS,
            captions=[clip.variant for clip in readable],
            frame_width_px=_SHEET_WIDTH_PX,
        )
        self._parts.append(
            f'<img class="sheet" alt="frames of each variant" src="data:image/png;base64,'
            f'{base64.b64encode(sheet).decode()}">'
        )
        figures = "".join(self._figure(clip) for clip in readable)
        self._parts.append(f'<div class="clips">{figures}</div>')

    def html(self) -> str:
        """The page so far."""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self._title)}</title><style>{_STYLE}</style></head><body>\n"
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )

    def _figure(self, clip: Clip) -> str:
        data = base64.b64encode(clip.path.read_bytes()).decode()
        caption = html.escape(f"{clip.variant} {clip.note}".strip())
        return (
            '<figure><video controls loop muted playsinline preload="metadata" '
            f'src="data:video/mp4;base64,{data}"></video><figcaption>{caption}</figcaption></figure>'
        )

    def _table(self, rows: Sequence[Sequence[str]]) -> None:
        head, _, *body = rows
        cells = "".join(f"<th>{_inline(cell)}</th>" for cell in head)
        lines = [f"<tr>{cells}</tr>"]
        for row in body:
            lines.append("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>")
        self._parts.append(f'<div class="wide"><table>{"".join(lines)}</table></div>')


def _inline(text: str) -> str:
    shown = html.escape(text)
    for mark, replacement in _MARKS:
        shown = mark.sub(replacement, shown)
    return shown
