"""``--recipe NAME``: the overlays that a name stands for, in place of the name.

Recipes are unrolled before a parser sees them, so that whatever notes the configuration files of a
run notes the overlays. A list of the user's own goes after ``--config``, like any other file.
"""

import logging
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

import longlive
from longlive.cli.config_files import CONFIG_OPTIONS
from longlive.data.recipe_files import as_named, overlays_of
from longlive.errors import UserError

log = logging.getLogger(__name__)

OPTION = "--recipe"
HELP = "overlays that configs/recipes/NAME.yaml lists, on configs/base.yaml or the base given"
_CONFIGS = Path(longlive.__file__).parents[1] / "configs"


def recipe_names() -> list[str]:
    """Names that ``--recipe`` takes."""
    return sorted(path.stem for path in (_CONFIGS / "recipes").glob("*.yaml"))


def recipes_named(args: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Names and overlays of the recipes that a command line names.

    Args:
        args: Command line.

    Raises:
        UserError: If a recipe is unknown, or is no list of files.
    """
    for word in _with_values_joined(args):
        option, _, value = word.partition("=")
        if option == OPTION:
            yield value, _overlays_named(value)


def with_recipes_spelled_out(args: Sequence[str]) -> list[str]:
    """Put overlays where recipes are named.

    Later configurations and options override them, as they override any overlay. A command line
    that names a recipe and no base begins with ``configs/base.yaml``.

    Args:
        args: Command line.

    Raises:
        UserError: If a recipe is unknown, is no list of files, or stands before the base.
    """
    expanded: list[str] = []
    first: int | None = None
    for word in _with_values_joined(args):
        option, _, value = word.partition("=")
        overlays = None
        if option == OPTION:
            overlays = _overlays_named(value)
        elif option in CONFIG_OPTIONS:
            overlays = None if _is_written_out(value) else overlays_of(Path(value))
        if overlays is None:
            expanded.append(word)
            continue
        log.info("recipe %s: %s", Path(value).stem, ", ".join(overlays))
        first = len(expanded) if first is None else first
        expanded += [f"--config={path}" for path in overlays]
    return list(args) if first is None else _on_a_base(expanded, first)


def _with_values_joined(args: Sequence[str]) -> Iterator[str]:
    words = iter(args)
    for word in words:
        value = next(words, None) if word in (OPTION, *CONFIG_OPTIONS) else None
        yield word if value is None else f"{word}={value}"


def _overlays_named(name: str) -> list[str]:
    names = recipe_names()
    if name not in names:
        close = get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"there is no recipe {name!r}: {hint}there are {', '.join(names)}")
    path = _CONFIGS / "recipes" / f"{name}.yaml"
    overlays = overlays_of(path)
    if overlays is None:
        raise UserError(f"{path} is no list of overlays: restore it")
    return overlays


def _on_a_base(args: list[str], first: int) -> list[str]:
    """Make sure of a base before the first overlay of a recipe, which stands at ``first``."""
    contents = {
        place: _content(word.partition("=")[2])
        for place, word in enumerate(args)
        if word.partition("=")[0] in CONFIG_OPTIONS
    }
    bases = [place for place, content in contents.items() if "class_path" in _model(content)]
    if bases and min(bases) > first:
        raise UserError(
            f"{args[min(bases)].partition('=')[2]} is a base and comes too late: name it before "
            "the recipe, which changes it"
        )
    # A preset of the benchmark brings its own, and puts it first.
    if bases or any(content.get("base") for content in contents.values()):
        return args
    # Behind the command, before every option: one that is for the model needs to know its class.
    place = next(place for place, word in enumerate(args) if word.startswith("-"))
    base = as_named(_CONFIGS / "base.yaml")
    return [*args[:place], f"--config={base}", *args[place:]]


def _content(name: str) -> dict[str, Any]:
    """What a configuration says; what is wrong with it others will find."""
    try:
        text = name if _is_written_out(name) else Path(name).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _model(content: dict[str, Any]) -> dict[str, Any]:
    model = content.get("model")
    return model if isinstance(model, dict) else {}


def _is_written_out(name: str) -> bool:
    return name.lstrip().startswith("{")
