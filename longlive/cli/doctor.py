"""doctor: what this machine can do, as a table or as JSON."""

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from longlive.cli.accelerator import Gpu
from longlive.cli.machine import Ability, Machine, examine
from longlive.cli.parsing import CommandParser
from longlive.weights.layouts import DEFAULT_ROOT, format_size

GIB = 1 << 30
Row = tuple[str, str, str]
"""What, yes or no or nothing, and the particulars."""


def run(args: list[str]) -> None:
    """Print the report; it is never an error that something is missing.

    Args:
        args: Command line without the program's name.

    Raises:
        UserError: If the arguments are wrong.
    """
    parser = CommandParser("doctor", "Say what this machine can do, and what it lacks.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--models", type=Path, default=DEFAULT_ROOT, help="models folder (%(default)s)"
    )
    given = parser.parse_args(args[1:])
    # Some packages greet on stdout when they are imported.
    with contextlib.redirect_stdout(sys.stderr):
        machine = examine(given.models)
    text = json.dumps(asdict(machine), indent=2) + "\n" if given.json else table(machine)
    # A folder's name may hold what the terminal cannot show.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def table(machine: Machine) -> str:
    """Set the report as text, in colors on a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    colors = {"yes": "green", "no": "yellow"}
    with console.capture() as capture:
        for title, rows in _sections(machine):
            grid = Table.grid(padding=(0, 2))
            grid.add_column(min_width=16, no_wrap=True)
            grid.add_column(min_width=3, no_wrap=True)
            grid.add_column(overflow="fold")
            for what, mark, particulars in rows:
                # Text, since a plain string's [brackets] would be read as markup.
                grid.add_row(Text(f"  {what}"), Text(mark, colors.get(mark, "")), Text(particulars))
            console.print(Text(title, "bold"))
            console.print(grid)
    return capture.get()


def _sections(machine: Machine) -> Iterable[tuple[str, list[Row]]]:
    yield (
        f"longlive {machine.longlive}",
        [
            ("python", "", f"{machine.python} on {machine.system}"),
            *((name, "", found or "not installed") for name, found in machine.packages.items()),
        ],
    )
    yield (
        "machine",
        [
            ("cpu", "", f"{machine.cores} cores, {_memory(machine)}"),
            ("disk", "", _disk(machine)),
            _row("cuda", machine.cuda),
            ("driver", "", machine.driver or "none found"),
            *(_gpu_row(gpu) for gpu in machine.gpus),
        ],
    )
    yield (
        "abilities",
        _rows(
            {
                "fp8": machine.fp8,
                "triton": machine.triton,
                "video encoder": machine.video,
                "embedded model": machine.embedded,
            }
        ),
    )
    auto = machine.auto_attention or "nothing"
    yield f"attention (auto takes {auto})", _rows(machine.attention)
    yield f"weights in {machine.models}", _rows(machine.weights)


def _rows(abilities: Mapping[str, Ability]) -> list[Row]:
    return [_row(name, ability) for name, ability in abilities.items()]


def _row(name: str, ability: Ability) -> Row:
    return name, "yes" if ability.available else "no", ability.detail


def _gpu_row(gpu: Gpu) -> Row:
    free = "unknown" if gpu.free_bytes is None else f"{gpu.free_bytes / GIB:.1f}"
    return (
        f"gpu {gpu.index}",
        "",
        f"{gpu.name}, compute capability {gpu.capability}, "
        f"{free} of {gpu.memory_bytes / GIB:.1f} GiB free{', FP8' if gpu.fp8 else ''}",
    )


def _memory(machine: Machine) -> str:
    if machine.memory_bytes is None or machine.free_memory_bytes is None:
        return "memory unknown"
    free, whole = machine.free_memory_bytes / GIB, machine.memory_bytes / GIB
    return f"{free:.1f} of {whole:.1f} GiB memory free"


def _disk(machine: Machine) -> str:
    if machine.free_disk_bytes is None:
        return "unknown"
    return f"{format_size(machine.free_disk_bytes)} free for {machine.models}"
