"""The README's table of benchmarks, made from the results in ``docs/results``, never typed.

    python tools/readme_table.py            # write it between the two marker lines of README.md
    python tools/readme_table.py --check    # change nothing; exit with 1 if it is stale

Every folder ``docs/results/*/`` with a ``results.json`` is a row. Results on different kinds of
weights go into different tables, each under what may be concluded from them.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from longlive.benchmark.markdown import NOTHING, code, decimals, show, table
from longlive.benchmark.report import CLAIMS, REPORT_NAME
from longlive.benchmark.results import FILE_NAME, Results
from longlive.errors import UserError
from longlive.video.atomic import write_bytes

ROOT = Path(__file__).parents[1]
START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
MADE_BY = "<!-- made by tools/readme_table.py from docs/results; do not edit -->"

COLUMNS = (
    *("run", "machine", "video", "fps", "fps, no VAE", "ms a frame, p50 / p99"),
    *("first frame", "prompt switch adds", "prompt to pixel", "peak memory", "commit"),
)
WORDS = 3
"""How many of the columns hold words."""

Found = Mapping[Path, Results]
"""Results by their folder."""


def find_results(folder: Path) -> dict[Path, Results]:
    """Read the results in the folders of a folder, by name.

    Raises:
        UserError: If one is broken.
    """
    return {path.parent: Results.load(path) for path in sorted(folder.glob(f"*/{FILE_NAME}"))}


def tables(found: Found, beside: Path) -> list[str]:
    """Lines of one table for each kind of weights, what to make of it above.

    Args:
        found: What was measured.
        beside: Folder that links are relative to.
    """
    if not found:
        return ["No benchmark has been run yet."]
    lines: list[str] = []
    kinds = sorted({results.recipe.weights_kind for results in found.values()}, key=_rank)
    for kind in kinds:
        chosen = {
            folder: results
            for folder, results in found.items()
            if results.recipe.weights_kind == kind
        }
        lines += ["", CLAIMS.get(kind, f"Weights: **{kind}**."), ""]
        lines += table(COLUMNS, (row(*item, beside) for item in chosen.items()), left=WORDS)
    return [
        *lines[1:],
        "",
        "`fps` is end to end, VAE and copy to host included; the definitions are in each report.",
    ]


def row(folder: Path, results: Results, beside: Path) -> list[str]:
    """One run: a cell for each of ``COLUMNS``."""
    page = folder / REPORT_NAME
    link = os.path.relpath(page if page.is_file() else folder / FILE_NAME, beside)
    name = f"[{folder.name}]({Path(link).as_posix()})"
    return [
        name if results.complete else f"{name} (incomplete)",
        results.environment.device_name,
        _video(results),
        *(
            _value(results, figure)
            for figure in ("fps", "diffusion_fps", "inter_frame_ms", "first_frame_cold_ms")
        ),
        *(
            _value(results, figure)
            for figure in ("switch_added_ms", "prompt_to_pixel_ms", "peak_memory_bytes")
        ),
        code(short_commit(results.commit or "")),
    ]


def _value(results: Results, name: str) -> str:
    figure = results.figures.get(name)
    if figure is None or figure.value is None:
        return NOTHING
    shown = show(figure.value, figure.unit)
    if name == "inter_frame_ms" and figure.distribution is not None:
        return f"{decimals(figure.value)} / {decimals(figure.distribution.p99)}"
    return shown.removesuffix(" fps")


def short_commit(commit: str) -> str:
    """A commit as it is shown, with what says that it was changed."""
    name, dash, changed = commit.partition("-")
    return f"{name[:10]}{dash}{changed}"


def _video(results: Results) -> str:
    recipe = results.recipe
    window = recipe.window_latent_frames
    size = model_settings(recipe.settings).get("size")
    return ", ".join(
        [
            *([size] if isinstance(size, str) else []),
            f"{recipe.height_px}x{recipe.width_px}",
            f"{recipe.steps} steps",
            "no window" if window is None else f"window {window}",
            recipe.dtype,
            *([f"batch {recipe.batch_size}"] if recipe.batch_size > 1 else []),
        ]
    )


def model_settings(settings: Mapping[str, object]) -> Mapping[str, object]:
    """Arguments of the model, wherever the configuration has them."""
    for key in ("model", "init_args"):
        inner = settings.get(key)
        if isinstance(inner, Mapping):
            return model_settings(inner)
    return settings


def _rank(kind: str) -> tuple[int, str]:
    order = ("released", "converted", "synthetic", "embedded")
    return (order.index(kind) if kind in order else len(order), kind)


def with_table(text: str, lines: Sequence[str], name: str) -> str:
    """Put lines between the markers.

    Args:
        text: Of the page.
        lines: To put there.
        name: Of the page, for errors.

    Raises:
        UserError: If the markers are not there once each, in order.
    """
    starts, ends = text.count(f"{START}\n"), text.count(f"{END}\n")
    if (starts, ends) != (1, 1) or text.index(START) > text.index(END):
        raise UserError(f"{name} must have a line {START} and after it a line {END}, once each")
    before, rest = text.split(f"{START}\n")
    _, after = rest.split(f"{END}\n")
    return "\n".join([f"{before}{START}", MADE_BY, "", *lines, "", f"{END}\n{after}"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the page")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "docs" / "results", help="folder of the results"
    )
    parser.add_argument("--check", action="store_true", help="change nothing, 1 if it is stale")
    args = parser.parse_args(argv)
    try:
        text = args.readme.read_text(encoding="utf-8")
        lines = tables(find_results(args.results), args.readme.parent)
        wanted = with_table(text, lines, args.readme.name)
        if args.check and wanted != text:
            print(
                f"readme_table: {args.readme.name} is stale: run python tools/readme_table.py",
                file=sys.stderr,
            )
            return 1
        if wanted != text:
            write_bytes(args.readme, wanted.encode())
    except (OSError, UserError) as error:
        print(f"readme_table: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
