"""analyze: what a configuration computes and moves, and how fast it could be at best."""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlive.cli.parsing import CommandParser

if TYPE_CHECKING:
    from longlive.metrics.ceilings import Ceilings

_SUMMARY = (
    "Count FLOPs and bytes of every pass and block, and how long they take at best at the rates "
    "of a device."
)
Document = dict[str, Any]
"""What ``--json`` prints."""


def run(args: list[str]) -> None:
    """Print the table, or one JSON document.

    Args:
        args: Command line without the program's name.

    Raises:
        UserError: If the arguments cannot work.
    """
    given = _parser().parse_args(args[1:])
    # torch takes seconds to import, and a typing error should not.
    from longlive.metrics.cost_report import Setup, analyze, document

    chosen = {
        field.name: getattr(given, field.name)
        for field in fields(Setup)
        if getattr(given, field.name) is not None
    }
    setup = Setup(**chosen)
    report = document(analyze(setup), _ceilings(given, setup.dtype))
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if given.json else table(report))


def _parser() -> CommandParser:
    from longlive.models.sizes import SIZES

    parser = CommandParser("analyze", _SUMMARY)
    add = parser.add_argument
    add("--size", choices=SIZES, help="size of the transformer (wan-1.3b)")
    add("--height", dest="height_px", type=int, metavar="PIXELS", help="rows of a frame (480)")
    add("--width", dest="width_px", type=int, metavar="PIXELS", help="columns of a frame (832)")
    for name, what in {
        "window": "latent frames a query can see (12)",
        "sink": "first latent frames that are never evicted (3)",
        "block": "latent frames denoised together (3)",
    }.items():
        add(f"--{name}", dest=f"{name}_latent_frames", type=int, metavar="N", help=what)
    add("--steps", type=int, metavar="N", help="denoising steps of a block (4)")
    add("--text-tokens", type=int, metavar="N", help="tokens the text encoder runs on (all)")
    add("--dtype", help="bfloat16, float16 or float32 (bfloat16)")
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument(
        "--ceilings", type=Path, metavar="FILE", help="rates, such as configs/ceilings/h200.yaml"
    )
    rates.add_argument(
        "--measure-ceilings", action="store_true", help="measure the rates of this machine"
    )
    add("--json", action="store_true", help="print one JSON document")
    return parser


def _ceilings(given: argparse.Namespace, dtype: str) -> "Ceilings | None":
    if given.ceilings is not None:
        from longlive.metrics.ceilings import load_ceilings

        return load_ceilings(given.ceilings)
    if not given.measure_ceilings:
        return None
    import torch

    from longlive.metrics.cost_report import DTYPES
    from longlive.metrics.measure_ceilings import measure_ceilings

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return measure_ceilings(device, DTYPES[dtype])


def table(report: Document) -> str:
    """Set the JSON document as text: every piece of a rollout, and a steady block by kind."""
    from rich.console import Console

    console = Console()
    with console.capture() as capture:
        for line in _heading(report):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        console.print(_pieces(report))
        console.print(_kinds(report))
    return capture.get()


def _heading(report: Document) -> Iterable[str]:
    setup, ceilings = report["setup"], report["ceilings"]
    yield (
        f"{setup['size']} at {setup['height_px']}x{setup['width_px']}, {setup['dtype']}, "
        f"{setup['steps']} steps"
    )
    yield (
        f"{report['tokens_per_latent_frame']} tokens a latent frame, {report['window_tokens']} in "
        f"the window of {setup['window_latent_frames']}, KV cache {_gigabytes(report)} GB"
    )
    if ceilings is None:
        yield "no floors: give rates with --ceilings FILE or --measure-ceilings"
        return
    yield (
        f"rates of {ceilings['name']}: gemm {_short(ceilings['gemm_tflops'])}, "
        f"attention {_short(ceilings['attention_tflops'])}, "
        f"conv {_short(ceilings['conv_tflops'])} TFLOP/s, "
        f"copy {_short(ceilings['copy_tb_s'])} TB/s"
    )


def _pieces(report: Document) -> Any:
    rows: list[tuple[str, ...]] = []
    for entry in report["entries"]:
        shape, floor = entry["shape"], entry["floor_ms"]
        tokens = f"{shape['queries']} x {shape['keys']}" if shape else ""
        fps = "" if None in (floor, entry["frames"]) else f"{1e3 * entry['frames'] / floor:.1f}"
        rows.append((entry["name"], tokens, *_amounts(entry), fps))
    return _grid("", ("work", "queries x keys", "TFLOP", "GB", "floor ms", "fps"), rows)


def _kinds(report: Document) -> Any:
    from longlive.metrics.cost_report import STEADY_BLOCK

    block = next(entry for entry in report["entries"] if entry["name"] == STEADY_BLOCK)
    measure = "flops" if block["floor_ms"] is None else "floor_ms"
    rows: list[tuple[str, ...]] = [
        (kind, *_amounts(product), f"{100 * product[measure] / block[measure]:.1f} %")
        for kind, product in block["kinds"].items()
    ]
    rows.append(("all", *_amounts(block), "100.0 %"))
    title = f"{STEADY_BLOCK}, by kind of work"
    share = "share of FLOPs" if measure == "flops" else "share of floor"
    return _grid(title, ("kind", "TFLOP", "GB", "floor ms", share), rows)


def _grid(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Any:
    """A table of the columns that say something."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    grid = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    kept = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    for index in kept:
        grid.add_column(columns[index], justify="right" if index else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*(row[index] for index in kept))
    return grid


def _amounts(counted: Document) -> tuple[str, str, str]:
    floor = counted["floor_ms"]
    return (
        _short(counted["flops"] / 1e12),
        _short(counted["bytes"] / 1e9),
        "" if floor is None else _short(floor),
    )


def _gigabytes(report: Document) -> str:
    return _short(report["kv_cache_bytes"] / 1e9)


def _short(number: float) -> str:
    """Three digits, and more where they are whole."""
    return f"{number:.0f}" if number >= 99.95 else f"{number:#.3g}"
