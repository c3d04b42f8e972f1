"""What a command line comes to, once its files and options are laid over each other."""

from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from typing import Any

import yaml

from longlive.cli import main


@cache
def composed(command: str, *words: str) -> dict[str, Any]:
    """What ``--print_config`` says of a command line, asked once; not to be changed."""
    out, errors = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        code = main([command, *words, "--print_config"])
    assert (code, errors.getvalue()) == (0, "")
    found: dict[str, Any] = yaml.safe_load(out.getvalue())
    return found


def configs(*paths: object) -> list[str]:
    return [f"--config={path}" for path in paths]
