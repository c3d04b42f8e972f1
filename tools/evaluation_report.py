"""The report of an evaluation, from its files: a page of HTML with all inside, and Markdown.

    python tools/evaluation_report.py results/tradeoff --output docs/results/tradeoff
    python tools/evaluation_report.py results/tradeoff --latency results/bench_w12 results/bench_w9

A benchmark belongs to the variants with the same steps, window, sink, type and callbacks; where
that does not say, name the variant: ``--latency window-9-steps-4=results/bench_w9``.
"""

import argparse
import sys
from pathlib import Path

from longlive.errors import UserError
from longlive.evaluation.report import load_material, write_report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder that longlive evaluate wrote")
    parser.add_argument("--output", type=Path, help="folder for the report; the results by default")
    parser.add_argument("--latency", nargs="*", default=[], help="folders of longlive benchmark")
    parser.add_argument("--clips", type=int, default=3, help="prompts shown side by side")
    parser.add_argument("--title", default="", help="of the page")
    parser.add_argument("--command", default="", help="that made the results, to repeat them")
    args = parser.parse_args(argv)
    try:
        material = load_material(args.results, args.latency, args.title, args.command)
        for path in write_report(material, args.output or args.results, args.clips):
            print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
