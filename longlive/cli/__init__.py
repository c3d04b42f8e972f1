"""The command line: ``longlive COMMAND ...``.

torch and Lightning take seconds to import, so nothing is imported before a command is known.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

from longlive import __version__
from longlive.errors import UserError

BAD_INPUT = 2
INTERRUPTED = 130
"""What a shell reports for a program that Ctrl-C ended."""


class Command(NamedTuple):
    """One command.

    Attributes:
        summary: What it does, in a line of the help.
        module: Module of this package with ``run(args)``, where ``args`` begins with the command.
    """

    summary: str
    module: str


COMMANDS = {
    "predict": Command("make videos from prompts", "lightning_commands"),
    "serve": Command("watch a video and change its prompt, in a browser", "serve"),
    "fit": Command("train a model", "lightning_commands"),
    "validate": Command("score a model on the validation data", "lightning_commands"),
    "test": Command("score a model on the test data", "lightning_commands"),
    "download": Command("fetch published weights, and check them", "weights_commands"),
    "convert": Command("merge a LoRA into base weights, as one folder", "weights_commands"),
    "benchmark": Command("measure every latency of a recipe, or compare results", "benchmark"),
    "evaluate": Command("judge the videos of a recipe, or those in a folder", "evaluate"),
    "analyze": Command("count the work of a configuration, and its floor", "analyze"),
    "doctor": Command("say what this machine can do, and what it lacks", "doctor"),
}

_EXAMPLES = (
    'longlive predict --config configs/tiny.yaml --prompt "a large red circle bounces over night"',
    "longlive download longlive-1.3b --folder models",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Command line without the program's name; that of the process by default.

    Returns:
        Exit code: 0, 2 for bad input (a line on stderr says which), 130 after Ctrl-C. An error that
        is not the user's is raised, because its traceback is wanted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args:
        sys.stderr.write(help_text())
        return BAD_INPUT
    if args[0] in ("-h", "--help"):
        sys.stdout.write(help_text())
        return 0
    if args[0] == "--version":
        sys.stdout.write(f"longlive {__version__}\n")
        return 0
    try:
        with _log_on_stderr():
            _find(args[0])(args)
    except ValueError as error:
        culprit = _user_error(error)
        if culprit is None:
            raise
        return _say(f"error: {_one_line(culprit)}", BAD_INPUT)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except SystemExit as stop:
        # The Trainer finishes what it can after Ctrl-C, and then exits with 1.
        if isinstance(stop.__context__, KeyboardInterrupt):
            return _say("interrupted", INTERRUPTED)
        if not isinstance(stop.code, int):
            raise
        return stop.code
    return 0


def help_text() -> str:
    """Return what ``longlive --help`` says."""
    width = max(map(len, COMMANDS))
    commands = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: longlive COMMAND [OPTIONS]",
            "",
            "Video that follows the prompts you type, block by block.",
            "",
            "commands:",
            *commands,
            "",
            "options:",
            "  -h, --help  show this help; longlive COMMAND --help shows a command's options",
            "  --version   show the version",
            "",
            "examples:",
            *(f"  {example}" for example in _EXAMPLES),
            "",
        ]
    )


def _find(name: str) -> Callable[[list[str]], None]:
    command = COMMANDS.get(name)
    if command is None:
        raise UserError(f"{_misnamed(name)}; see longlive --help")
    run: Callable[[list[str]], None] = import_module(f"{__name__}.{command.module}").run
    return run


def _misnamed(name: str) -> str:
    if name.startswith("-"):
        return f"{name} comes before the command: begin with one, as in longlive predict {name}"
    from difflib import get_close_matches

    close = get_close_matches(name, COMMANDS)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    return f"unknown command {name!r}{hint}"


def _user_error(error: BaseException | None) -> UserError | None:
    """Find the user's error behind one: what a constructor raises is wrapped by the parser."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _one_line(error: UserError) -> str:
    # One from a worker process of a DataLoader carries the traceback of that process in its text.
    message = str(error).rpartition("longlive.errors.UserError: ")[2]
    return " ".join(message.split())


def _say(line: str, code: int) -> int:
    sys.stderr.write(f"longlive: {line}\n")
    return code


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Show what the package logs, as lines of this program, while a command runs."""
    logger = logging.getLogger("longlive")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("longlive: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
