"""What is wrong with a setting, in one line with its key and the fix.

jsonargparse answers with a paragraph for each type that a value might have had, and checks the
arguments of a class with a parser of their own, which does not know where the class stands. Here
the innermost parser phrases the complaint and those around it only say where.
"""

import re
import types
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal, Union, get_args, get_origin

from longlive.errors import UserError

_OPTION = re.compile(r"(?:Group '(?P<group>[^']+)' .*)?[Oo]ption '(?P<key>[^']+)'")
_VALUE = re.compile(r'Parser key "(?P<key>[^"]+)"(?: element \d+)?:\s*(?P<text>.*)', re.DOTALL)
_GIVEN = (re.compile(r"Given value: (.*)\Z", re.DOTALL), re.compile(r"Got value: (.*)"))
_NO_SUBCLASS = re.compile(r"Import path (\S+) does not correspond to a subclass of (\w+)")
_REQUIRED = "the following arguments are required: "
_UNKNOWN = "unrecognized arguments: "
_LONGEST_TEXT = 80
_MOST_KEYS = 30

# What a type is called, one of it and several.
_NOUNS: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    Path: ("a path", "paths"),
    type(None): ("null", "null"),
}


class Complaint(UserError):
    """One line about one setting.

    Args:
        sentence: Makes the line from what comes before the key, such as ``"model."``.
        prefix: What is known to come before it.
    """

    def __init__(self, sentence: Callable[[str], str], prefix: str = "") -> None:
        super().__init__(sentence(prefix))
        self._sentence = sentence
        self._prefix = prefix

    def below(self, key: str) -> "Complaint":
        """The same about a setting of the class that ``key`` holds."""
        return Complaint(self._sentence, f"{key}.{self._prefix}")


def complaint_about(parser: ArgumentParser, message: str, error: Exception | None) -> UserError:
    """Reduce what a parser says to one line.

    Args:
        parser: Who says it.
        message: What it says.
        error: What it was told.
    """
    value = _VALUE.match(message)
    inner = next((e for e in _chain(error) if isinstance(e, UserError)), None)
    if isinstance(inner, Complaint) and value:
        return inner.below(value["key"])
    if inner is not None:
        return inner
    if message.startswith(_REQUIRED):
        return _missing(message.removeprefix(_REQUIRED))
    if message.startswith(_UNKNOWN):
        return _unrecognized(parser, message.removeprefix(_UNKNOWN))
    if "accept" in message and (option := _OPTION.search(message)):
        asked = getattr(error, "subcommand_parser", parser)
        key = ".".join(filter(None, option.groups()))
        return _unknown_key(key, asked)
    if value:
        return _wrong_value(parser, value["key"], value["text"], error)
    return UserError(_short(message))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _missing(names: str) -> UserError:
    command = names.partition(".")[0]
    wanted = " and ".join(sorted(name.rpartition(".")[2] for name in names.split(", ")))
    makes_videos = command in ("predict", "benchmark")
    folder = "configs/eval" if command == "evaluate" else "configs/train"
    base = "--config configs/tiny.yaml" if makes_videos else f"a --config of {folder}"
    return UserError(f"no {wanted} to {command}: give {base}, before other ones")


def _unrecognized(parser: ArgumentParser, words: str) -> UserError:
    first = words.split(maxsplit=1)[0]
    if not first.startswith("-"):
        return UserError(f"{_short(words)!r} belongs to no option: put a prompt in quotes")
    name = first.lstrip("-").partition("=")[0]
    return _unknown_key(name, parser, dashes="--")


def _unknown_key(key: str, parser: ArgumentParser, dashes: str = "") -> Complaint:
    known = _keys(parser)
    match = _closest(key, known)
    if match:
        fix = f"did you mean {dashes}@{match}?"
    elif not known:
        fix = "no class is configured that takes it, begin with --config configs/tiny.yaml"
    elif len(known) <= _MOST_KEYS:
        fix = f"it can be {', '.join(known)}"
    else:
        fix = _help_of(parser)
    return Complaint(lambda at: f"unknown {dashes}{at}{key}: {fix.replace('@', at)}")


def _closest(key: str, known: list[str]) -> str | None:
    first = key.partition(".")[0]
    firsts = {name.partition(".")[0] for name in known}
    # A wrong first part, as in modle.seconds, is looked up alone: the rest depends on the class.
    wanted, names = (key, known) if first in firsts else (first, sorted(firsts))
    matches = get_close_matches(wanted, names, 1)
    return matches[0] if matches else None


def _keys(parser: ArgumentParser) -> list[str]:
    return [
        action.dest for action in parser._actions if action.dest not in ("help", "==SUPPRESS==")
    ]


def _wrong_value(parser: ArgumentParser, key: str, text: str, error: Exception | None) -> Complaint:
    names_class = "class_path" in text or "Import path" in text
    problem = next(filter(None, map(_class_problem, _chain(error))), None)
    if names_class and problem:
        return Complaint(lambda at: f"{at}{key}: {problem}")
    action = next((action for action in parser._actions if action.dest == key), None)
    allowed = allowed_by(getattr(action, "_typehint", None))
    given = next(filter(None, (pattern.search(text) for pattern in _GIVEN)), None)
    if given is None:
        return Complaint(lambda at: f"{at}{key}: {_short(text)}")
    value = _short(given[1])
    if allowed is None:
        return Complaint(lambda at: f"{at}{key} cannot be {value}: {_help_of(parser)}")
    return Complaint(lambda at: f"{at}{key} must be {allowed}, got {value}")


def _class_problem(error: BaseException) -> str | None:
    if isinstance(error, AttributeError) and error.name and isinstance(error.obj, types.ModuleType):
        names = [*dir(error.obj), *_modules_of(error.obj)]
        match = get_close_matches(error.name, names, 1)
        fix = f"did you mean {match[0]}?" if match else "check the name"
        return f"{error.obj.__name__} has no {error.name}, {fix}"
    if isinstance(error, ImportError):
        return _short(str(error))
    if found := _NO_SUBCLASS.fullmatch(str(error)):
        return f"{found[1]} is no {found[2]}"
    return None


def _modules_of(package: types.ModuleType) -> Iterable[str]:
    return (module.name for module in iter_modules(getattr(package, "__path__", [])))


def _help_of(parser: ArgumentParser) -> str:
    return f"see {parser.prog.replace(' [options]', '')} --help"


def allowed_by(hint: Any) -> str | None:
    """Say in words what a type hint allows; None if that would take code."""
    words = _words_of(hint)
    if None in words:
        return None
    known = [word for word in dict.fromkeys(words) if word]
    return " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))


def _words_of(hint: Any) -> list[str | None]:
    if hint in _NOUNS:
        return [_NOUNS[hint][0]]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return [str(value) for value in args]
    if origin in (Union, types.UnionType):
        return [word for member in args for word in _words_of(member)]
    if origin is list and args[0] in _NOUNS:
        return [f"a list of {_NOUNS[args[0]][1]}"]
    return [None]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TEXT else f"{line[:_LONGEST_TEXT]}..."
