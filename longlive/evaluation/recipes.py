"""Recipes as ``longlive predict`` takes them, read by a program: a base, then overlays.

Files are merged from left to right as the command line does it: dictionaries key by key, a list in
place of a list, ``callbacks+`` behind the callbacks there are. Of the result the model and those
callbacks count that change a rollout; who only watches (a writer, a progress bar) is left out.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from longlive.data.recipe_files import overlays_of
from longlive.errors import UserError
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback

Settings = dict[str, Any]
_MODEL = "longlive.modules.longlive.LongLive"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a rollout needs besides prompts.

    Attributes:
        settings: Arguments of ``LongLive``, only those that are given.
        callbacks: ``class_path`` and ``init_args`` of each callback, in order.
    """

    settings: Settings = field(default_factory=dict)
    callbacks: tuple[Settings, ...] = ()

    def with_settings(self, settings: Settings) -> "Recipe":
        """The same with other settings; a length replaces the other way to give it."""
        merged = {**self.settings, **settings}
        for given, other in (("seconds", "latent_frames"), ("latent_frames", "seconds")):
            if settings.get(given) is not None and settings.get(other) is None:
                merged[other] = None
        return Recipe(merged, self.callbacks)

    def model(self) -> LongLive:
        """Build the model; its weights are not read yet.

        Raises:
            UserError: If a setting is unknown, of another type, or cannot work.
        """
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(LongLive, "model")
        parsed = _parsed(parser, {"model": self.settings})
        return LongLive(**parsed["model"])

    def build_callbacks(self) -> list[RolloutCallback]:
        """Build the callbacks that change a rollout.

        Raises:
            UserError: If one is unknown or does not take its arguments.
        """
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--callbacks", type=list[pl.Callback])
        wanted = [copy.deepcopy(callback) for callback in self.callbacks]
        parsed = parser.instantiate_classes(_parsed(parser, {"callbacks": wanted}, keep=True))
        return [c for c in parsed["callbacks"] or [] if changes_rollouts(c)]


def load_recipe(paths: Sequence[str | Path]) -> Recipe:
    """Read and merge the files of a recipe.

    Args:
        paths: YAML files, the base first; one that is a list stands for the files it names, as do
            ``.args`` files with one ``--config=`` a line.

    Raises:
        UserError: If a file is missing, is no YAML or holds no settings, or none of them a model.
    """
    merged: Settings = {}
    for path in _unrolled(paths):
        merged = _merge(merged, _content(path))
    model = merged.get("model")
    if not isinstance(model, dict) or model.get("class_path") != _MODEL:
        names = ", ".join(map(str, paths)) or "nothing"
        raise UserError(f"{names} is no recipe: begin with a base such as configs/tiny.yaml")
    trainer = merged.get("trainer") or {}
    return Recipe(dict(model.get("init_args") or {}), tuple(trainer.get("callbacks") or ()))


def changes_rollouts(callback: pl.Callback) -> bool:
    """Whether a callback overrides a hook that returns something changed."""
    if not isinstance(callback, RolloutCallback):
        return False
    hooks = [name for name in dir(RolloutCallback) if name.startswith("configure_")]
    return any(getattr(type(callback), h) is not getattr(RolloutCallback, h) for h in hooks)


def _unrolled(paths: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        if path.suffix != ".args":
            files += [path] if (listed := overlays_of(path)) is None else map(Path, listed)
            continue
        for line in _text(path).splitlines():
            option, _, value = line.strip().partition("=")
            if option and option != "--config":
                raise UserError(
                    f"{path} holds {option!r}: a recipe lists --config=FILE, one a line"
                )
            if value:
                files.append(Path(value))
    return files


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot read the recipe {path}: {reason}; check its name") from error


def _content(path: Path) -> Settings:
    try:
        content = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "malformed"
        raise UserError(f"{path} is not YAML ({problem}): correct it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: it needs keys such as model and trainer")
    return content


def _merge(base: Settings, over: Settings) -> Settings:
    merged = dict(base)
    for key, value in over.items():
        if key.endswith("+"):
            merged[key[:-1]] = [*(merged.get(key[:-1]) or []), *value]
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            # An overlay may be the first to name the callbacks, with a plus.
            merged[key] = _merge({}, value) if isinstance(value, dict) else value
    return merged


def _parsed(parser: ArgumentParser, given: Settings, *, keep: bool = False) -> Any:
    try:
        parsed = parser.parse_object(given)
    except (ArgumentError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"recipe: {reason[:300]}") from error
    return parsed if keep else parsed.as_dict()
