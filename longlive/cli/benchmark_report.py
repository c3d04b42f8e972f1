"""benchmark report: the report and the plots again, from results that are there."""

import sys
from pathlib import Path

from longlive.cli.parsing import CommandParser

_SUMMARY = (
    "Write report.md and the plots again from results.json: after an interruption, or where "
    "matplotlib is installed. Measures nothing."
)


def run(args: list[str]) -> None:
    """Write the report into the folder of the results.

    Args:
        args: Command line without the program's name: ``benchmark report FOLDER``.

    Raises:
        UserError: If there are no results, or the report cannot be written.
    """
    parser = CommandParser("benchmark report", _SUMMARY)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder with results.json")
    given = parser.parse_args(args[2:])
    # Plots need the layers' names, and with them torch.
    from longlive.benchmark.report import write_report

    sys.stdout.write(f"{write_report(given.folder)}\n")
