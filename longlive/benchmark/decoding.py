"""JSON values back into typed records, strictly: what does not fit the type is an error."""

import dataclasses
import math
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def decode(kind: type[Record], value: object, where: str = "") -> Record:
    """Build a dataclass from what ``dataclasses.asdict`` and JSON made of it.

    A field that has a default may be missing: it is younger than the file.

    Args:
        kind: A dataclass; its fields may be numbers, texts, booleans, None, unions of one of them
            with None, ``tuple[X, ...]``, ``dict[str, X]``, dataclasses, and ``Any``.
        value: The parsed JSON.
        where: Name of the value, for errors.

    Raises:
        ValueError: Naming the first field that is missing, unknown or of another type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'the document'} is no object")
    hints = get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    at = f"{where}." if where else ""
    for name in sorted(value.keys() - {field.name for field in fields}):
        raise ValueError(f"{at}{name} is unknown")
    for name in sorted({field.name for field in fields if _is_required(field)} - value.keys()):
        raise ValueError(f"{at}{name} is missing")
    return kind(
        **{name: _value(hints[name], found, f"{at}{name}") for name, found in value.items()}
    )


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in args if arg is not type(None))
        return None if value is None else _value(inner, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _value(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return decode(hint, value, where)
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ValueError(f"{where} is not as expected: {str(value)[:40]!r}")
