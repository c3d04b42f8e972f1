"""benchmark report: the report and the plots again, from results that are there."""

import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

from longlive.cli.parsing import CommandParser
from longlive.errors import UserError

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
    parser.add_argument("--ceilings", type=Path, metavar="FILE", help="rates for the floors")
    given = parser.parse_args(args[2:])
    if given.ceilings is not None:
        add_floors(given.folder, given.ceilings)
    # Plots need the layers' names, and with them torch.
    from longlive.benchmark.report import write_report

    sys.stdout.write(f"{write_report(given.folder)}\n")


def add_floors(folder: Path, file: Path) -> None:
    """Put the floors at given ceilings into results; the model is made again by their command.

    Figures are computed again from the samples, by the definitions of today.

    Args:
        folder: Of the results, which are written again.
        file: With the ceilings.

    Raises:
        UserError: If either cannot be read, or the command is not known.
    """
    from longlive.benchmark.figures import figures_of
    from longlive.benchmark.latency import decoding_notes
    from longlive.benchmark.results import Results
    from longlive.benchmark.work import check_ceilings, with_floors
    from longlive.cli.benchmark import read_command
    from longlive.metrics.ceilings import load_ceilings

    results, ceilings = Results.load(folder), load_ceilings(file)
    check_ceilings(ceilings, results.recipe.dtype)
    if not results.work:
        raise UserError(f"{folder} has no breakdown to put floors beside: measure one with it")
    if not results.recipe.command:
        raise UserError(f"the results in {folder} do not say what was run: measure them again")
    # Nothing is run, so the device of the results need not be there.
    words = [*shlex.split(results.recipe.command)[1:], "--trainer.accelerator=cpu"]
    work = with_floors(results, read_command(words).model, ceilings)
    figures = figures_of(list(results.rollouts), results.start_up)
    notes = dict.fromkeys([*results.notes, *decoding_notes(results.rollouts)])
    replace(
        results, figures=figures, work=work, notes=tuple(notes), ceilings=asdict(ceilings)
    ).save(folder)
