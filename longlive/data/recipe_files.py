"""Recipes: a YAML list of overlays, each named relative to the list.

    # What it is for.
    - ../window/9.yaml
    - ../opt/compile.yaml

A file that holds settings instead is an overlay or a base, and stands for itself.
"""

import os
from pathlib import Path

import yaml

from longlive.errors import UserError


def overlays_of(path: Path) -> list[str] | None:
    """Read a recipe.

    Args:
        path: A YAML file.

    Returns:
        Its overlays in order, as one would name them from the working directory; None if it is no
        list, or cannot be read as YAML, of which others know more to say.

    Raises:
        UserError: If it lists something that is not the name of a file, or nothing.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    if not isinstance(content, list):
        return None
    if not content:
        raise UserError(f"{path} lists no overlays: leave it out")
    strange = next((entry for entry in content if not isinstance(entry, str)), None)
    if strange is not None:
        raise UserError(f"{path} lists {strange!r}: a recipe names overlays, one file a line")
    return [_named(path.parent / entry) for entry in content]


def _named(path: Path) -> str:
    path, here = path.resolve(), Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) else str(path)
