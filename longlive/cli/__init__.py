"""The command line: ``longlive COMMAND ...``."""

import sys


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    args = sys.argv[1:] if argv is None else argv
    from longlive.cli.lightning_commands import run

    run(args)
    return 0
