"""Looks at configuration files before the parser, which does not name the one that is wrong."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from longlive.errors import UserError

CONFIG_OPTIONS = ("--config", "-c")


def check_config_files(args: Sequence[str]) -> None:
    """Read every configuration file of a command line.

    Args:
        args: Command line.

    Raises:
        UserError: If one is missing, is no YAML, or holds no settings.
    """
    for name in named_config_files(args):
        # A configuration may also be written out in place of a name.
        if not name.lstrip().startswith("{"):
            _check(Path(name))


def named_config_files(args: Sequence[str]) -> Iterator[str]:
    """Values of the options that name a configuration, in order."""
    for position, arg in enumerate(args):
        option, is_one_word, value = arg.partition("=")
        if option not in CONFIG_OPTIONS:
            continue
        if is_one_word:
            yield value
        elif position + 1 < len(args):
            yield args[position + 1]


def _check(path: Path) -> None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: name a YAML file after --config") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"cannot read the configuration {path}: {reason}; check its name"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "malformed"
        raise UserError(f"{path}{where} is not YAML ({problem}): correct it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: it needs keys such as model and trainer")
