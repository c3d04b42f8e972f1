"""download and convert: published weights onto this disk, and into one file of our own."""

import argparse
import math
import sys
from pathlib import Path

from longlive.cli.parsing import CommandParser
from longlive.errors import UserError
from longlive.weights.layouts import DEFAULT_ROOT


def run(args: list[str]) -> None:
    """Run ``download`` or ``convert`` and print the files it made, one a line.

    Args:
        args: Command line without the program's name.

    Raises:
        UserError: If the arguments cannot work, or what they ask for fails for a known reason.
    """
    command, *options = args
    paths = {"download": _download, "convert": _convert}[command](options)
    sys.stdout.writelines(f"{path}\n" for path in paths)


def _download(options: list[str]) -> list[Path]:
    from longlive.weights.hub import DOWNLOADS, download

    parser = CommandParser(
        "download",
        "Fetch published weights from the Hugging Face hub. What is there and whole is kept.",
    )
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(DOWNLOADS)}")
    parser.add_argument(
        "--folder", type=Path, default=DEFAULT_ROOT, help="models folder (%(default)s)"
    )
    parser.add_argument(
        "--endpoint", metavar="URL", help="hub or mirror to ask; by default the client's setting"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the first repository (main)")
    given = parser.parse_args(options)
    return download(given.name, given.folder, given.endpoint, given.revision)


def _convert(options: list[str]) -> list[Path]:
    parser = CommandParser(
        "convert",
        "Merge a LoRA into base weights, and write longlive.safetensors with its papers.",
    )
    parser.add_argument(
        "--base", type=Path, required=True, metavar="FILE", help="transformer weights"
    )
    parser.add_argument(
        "--lora", type=Path, metavar="FILE", help="adapter; without one, nothing is merged"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="where the result goes"
    )
    parser.add_argument(
        "--alpha",
        type=_finite,
        default=256.0,
        help="the adapter's scale is alpha / rank (%(default)g)",
    )
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        help="type to store: bfloat16, float16 or float32 (%(default)s)",
    )
    parser.add_argument(
        "--entry",
        help="state dict of a training checkpoint, such as generator_ema (generator)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace weights that are there")
    given = parser.parse_args(options)

    from safetensors import SafetensorError

    from longlive.weights.convert import convert

    try:
        weights = convert(
            given.base,
            given.lora,
            given.output,
            given.alpha,
            given.dtype,
            entry=given.entry,
            overwrite=given.overwrite,
        )
    # What safetensors meets while it writes is an error of its own.
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot convert {given.base} into {given.output}: {error}; check both places and the "
            "space there"
        ) from error
    return [weights]


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return number
