"""Arguments of the commands that do not need Lightning."""

import argparse
from typing import NoReturn

from longlive.errors import UserError


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without a page of usage before it.

    Args:
        command: Name of the command.
        summary: What it does, for its help.
    """

    def __init__(self, command: str, summary: str) -> None:
        super().__init__(
            prog=f"longlive {command}",
            description=summary,
            # An abbreviation that works today is ambiguous after the next option.
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message}; see {self.prog} --help")
