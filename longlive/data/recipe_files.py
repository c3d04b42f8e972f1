"""Recipes: a YAML list of overlays, each named relative to the list.

    # What it is for.
    - ../window/9.yaml
    - ../opt/compile.yaml

A file that holds settings instead is an overlay or a base, and stands for itself.
"""

import os
from pathlib import Path

import yaml


def overlays_of(path: Path) -> list[str] | None:
    """Read a recipe.

    Args:
        path: A YAML file.

    Returns:
        Its overlays in order, as one would name them from the working directory; None if it is
        anything but a list of names, of which others know more to say.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    is_recipe = isinstance(content, list) and content and all(isinstance(e, str) for e in content)
    if not is_recipe:
        return None
    return [as_named(path.parent / entry) for entry in content]


def as_named(path: Path) -> str:
    """A path as one would name it from the working directory, if it lies in there."""
    path, here = path.resolve(), Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) else str(path)
