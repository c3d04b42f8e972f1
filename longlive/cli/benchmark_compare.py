"""benchmark compare: two results side by side, and which differences exceed the spread."""

import sys
from pathlib import Path

from longlive.cli.parsing import CommandParser
from longlive.errors import UserError

_SUMMARY = (
    "Compare two results of longlive benchmark: ratios, and which differences exceed the spread "
    "between iterations. Prints Markdown."
)


def run(args: list[str]) -> None:
    """Print the comparison.

    Args:
        args: Command line without the program's name: ``benchmark compare A B``.

    Raises:
        UserError: If there are no such results, or the file cannot be written.
    """
    parser = CommandParser("benchmark compare", _SUMMARY)
    parser.add_argument("a", type=Path, metavar="A", help="folder of the results to compare with")
    parser.add_argument("b", type=Path, metavar="B", help="folder of the results to compare")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it here, too")
    given = parser.parse_args(args[2:])
    # numpy and the records take a moment to import, and a typing error should not.
    from longlive.benchmark.compare import comparison_text
    from longlive.benchmark.results import Results
    from longlive.video.atomic import write_bytes

    if given.output is not None and given.output.is_dir():
        raise UserError(f"{given.output} is a folder: name a file for the comparison")
    text = comparison_text(
        Results.load(given.a), Results.load(given.b), (str(given.a), str(given.b))
    )
    if given.output is not None:
        write_bytes(given.output, text.encode())
    sys.stdout.write(text)
