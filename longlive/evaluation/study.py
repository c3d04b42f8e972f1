"""A study as data: axes with named values, and the variants of a recipe that they span.

An axis value is a few settings of the model, overlays, or both. A variant takes one value of each
axis. So a new row is one more value in a file, and needs no code.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from longlive.errors import UserError
from longlive.evaluation.recipes import Recipe, load_recipe
from longlive.video.naming import slug

Combine = Literal["product", "one_at_a_time"]
ONLY = "recipe"
"""Name of the one variant of a study without axes."""


@dataclass(slots=True)
class AxisValue:
    """One value of an axis.

    Attributes:
        configs: Overlays, behind the recipe's own files.
        settings: Arguments of ``LongLive``, over those of any file.
        note: What a reader of the table must know.
    """

    configs: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table.

    Attributes:
        name: ``window 9, steps 4``.
        axes: Value of each axis, by name.
        recipe: What is run.
        note: Those of its values.
    """

    name: str
    axes: dict[str, str]
    recipe: Recipe
    note: str = ""

    @property
    def folder(self) -> str:
        """Name of its folders."""
        return slug(self.name.replace(".", "-"), 100)


def variants_of(
    recipe: Sequence[str],
    settings: dict[str, Any],
    axes: dict[str, dict[str, AxisValue]],
    *,
    combine: Combine = "product",
    reference: dict[str, str] | None = None,
) -> tuple[Variant, ...]:
    """Span the variants of a study, the reference first.

    Args:
        recipe: Files, the base first.
        settings: Arguments of ``LongLive`` for all variants.
        axes: Axis, then value, by name.
        combine: ``product`` for every combination, ``one_at_a_time`` for those that differ from the
            reference in one axis.
        reference: Value of each axis; by default the first of each.

    Raises:
        UserError: If a name is missing or two variants are named alike.
    """
    chosen = _reference(axes, reference or {})
    combinations = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    if combine == "one_at_a_time":
        combinations = [c for c in combinations if sum(c[a] != chosen[a] for a in axes) < 2]
    combinations.sort(key=lambda combination: combination != chosen)
    variants = tuple(_variant(recipe, settings, axes, names) for names in combinations)
    folders = [variant.folder for variant in variants]
    twice = next((v for v in variants if folders.count(v.folder) > 1), None)
    if twice is not None:
        raise UserError(f"two variants would be named {twice.folder!r}: rename a value of an axis")
    return variants


def _reference(axes: dict[str, dict[str, AxisValue]], given: dict[str, str]) -> dict[str, str]:
    for axis, values in axes.items():
        if not values:
            raise UserError(f"axis {axis!r} has no values: give it some, or leave it out")
    for axis, value in given.items():
        if value not in axes.get(axis, {}):
            known = ", ".join(axes.get(axis, axes))
            raise UserError(f"reference: there is no {axis} {value!r}; use one of {known}")
    return {axis: given.get(axis, next(iter(values))) for axis, values in axes.items()}


def _variant(
    recipe: Sequence[str],
    settings: dict[str, Any],
    axes: dict[str, dict[str, AxisValue]],
    names: dict[str, str],
) -> Variant:
    values = [axes[axis][name] for axis, name in names.items()]
    files = [*recipe, *(config for value in values for config in value.configs)]
    built = load_recipe(files).with_settings(settings)
    for value in values:
        built = built.with_settings(value.settings)
    name = ", ".join(f"{axis} {value}" for axis, value in names.items()) or ONLY
    notes = "; ".join(value.note for value in values if value.note)
    return Variant(name, names, built, notes)
