"""Which variants an ablation compares, as a file says it.

A matrix is YAML: ``title``, ``repeats``, ``baseline``, ``interleaved`` (false where not all rows
fit into memory at once), and rows in any of four ways, all of them names with lists of overlays
(paths relative to the file):

    rows         each as it is written
    alone        each on top of the recipe, with nothing else
    left_out     all of them but one, for each; and all of them, as "all"
    cumulative   the first, the first two, the first three, ...

The recipe itself is the row "recipe" of ``alone``, ``left_out`` and ``cumulative``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from longlive.errors import UserError

RECIPE = "recipe"
ALL = "all"
CUMULATIVE = "cumulative"
ONE_BY_ONE = "one by one"

_WAYS = ("rows", "alone", "left_out", "cumulative")
_KEYS = {"title", "repeats", "baseline", "benchmark", "interleaved", *_WAYS}


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """One variant.

    Attributes:
        name: In the table.
        overlays: Configurations on top of the recipe, in order.
    """

    name: str
    overlays: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A whole ablation, asked for.

    Attributes:
        title: What is compared.
        kind: ``cumulative`` if every row adds to the one before it, else ``one by one``.
        baseline: Name of the row that the others are compared with.
        repeats: Rollouts of each row.
        rows: In the order of the table.
        benchmark: Arguments of ``BenchmarkConfig``.
        interleaved: Whether all rows are loaded at once and every repeat runs each of them; else
            one row after the other is loaded, repeated and given up.
    """

    title: str
    kind: str
    baseline: str
    repeats: int
    rows: tuple[MatrixRow, ...]
    benchmark: dict[str, Any]
    interleaved: bool = True


def load_matrix(path: Path) -> Matrix:
    """Read a matrix.

    Raises:
        UserError: If it cannot be read, or says something that does not fit together.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"cannot read the matrix {path}: {problem}") from error
    if not isinstance(content, dict) or not content.keys() <= _KEYS:
        raise UserError(f"{path} can have the keys {', '.join(sorted(_KEYS))}, and no others")
    rows = _rows(path, content)
    names = [row.name for row in rows]
    if not rows:
        raise UserError(f"{path} has no rows: give one of {', '.join(_WAYS)}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path} has two rows {twice!r}: rename one")
    baseline = content.get("baseline", names[0])
    if baseline not in names:
        raise UserError(f"{path}: the baseline {baseline!r} is none of the rows {', '.join(names)}")
    repeats = content.get("repeats", 5)
    if type(repeats) is not int or repeats < 1:
        raise UserError(f"{path}: repeats must be at least 1, got {repeats!r}")
    interleaved = content.get("interleaved", True)
    if not isinstance(interleaved, bool):
        raise UserError(f"{path}: interleaved must be true or false, got {interleaved!r}")
    ways = [way for way in _WAYS if content.get(way)]
    return Matrix(
        title=str(content.get("title", path.stem)),
        kind=CUMULATIVE if ways == [CUMULATIVE] else ONE_BY_ONE,
        baseline=baseline,
        repeats=repeats,
        rows=tuple(rows),
        benchmark=content.get("benchmark") or {},
        interleaved=interleaved,
    )


def _rows(path: Path, content: dict[str, Any]) -> list[MatrixRow]:
    named = {way: _named(path, way, content.get(way)) for way in _WAYS}
    rows = list(named["rows"])
    if any(named[way] for way in _WAYS[1:]) and all(row.name != RECIPE for row in rows):
        rows.append(MatrixRow(RECIPE, ()))
    rows += named["alone"]
    left_out = named["left_out"]
    if left_out:
        rows.append(_joined(ALL, left_out))
    for row in left_out:
        rows.append(_joined(f"without {row.name}", [r for r in left_out if r is not row]))
    for end, row in enumerate(named["cumulative"], start=1):
        rows.append(_joined(f"+ {row.name}", named["cumulative"][:end]))
    return rows


def _joined(name: str, rows: list[MatrixRow]) -> MatrixRow:
    return MatrixRow(name, tuple(path for row in rows for path in row.overlays))


def _named(path: Path, way: str, given: Any) -> list[MatrixRow]:
    if given is None:
        return []
    is_map = isinstance(given, dict)
    if not is_map or not all(isinstance(files, list) for files in given.values()):
        raise UserError(f"{path}: {way} must be names with lists of overlays")
    return [
        MatrixRow(str(name), tuple(path.parent / str(file) for file in files))
        for name, files in given.items()
    ]
