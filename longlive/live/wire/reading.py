"""JSON to dataclasses, with a plain word about what does not fit."""

import json
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import (
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from longlive.errors import UserError
from longlive.live.wire.limits import (
    MAX_BLOCKS,
    MAX_BUFFER_FRAMES,
    MAX_ID,
    MAX_PROMPT_CHARACTERS,
    MAX_SCRIPT_PROMPTS,
    MAX_SEED,
    ProtocolError,
)

_PROMPTS = ("prompt",)
_RANGES: dict[str, tuple[int, int]] = {
    "id": (1, MAX_ID),
    "seed": (0, MAX_SEED),
    "steps": (1, 1000),
    "branch": (0, MAX_ID),
    "block": (0, MAX_BLOCKS),
    "blocks": (1, MAX_BLOCKS),
    "buffer_frames": (1, MAX_BUFFER_FRAMES),
    "serial": (0, 2**32 - 1),
}

Kind = TypeVar("Kind")


def read_message(text: str | bytes, kinds: dict[str, type], *, is_strict: bool) -> Any:
    try:
        found = json.loads(text)
    # A number of a million digits is a ValueError, arrays in arrays in arrays a RecursionError.
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"this is not JSON ({_short(error)})") from error
    if not isinstance(found, dict):
        raise ProtocolError("a message must be a JSON object with a type")
    name = found.pop("type", None)
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        known = ", ".join(sorted(kinds))
        raise ProtocolError(f"unknown type of message {_short(name)}; it can be {known}")
    return _read(kind, found, str(name), is_strict)


def _read(kind: type[Kind], found: dict[str, Any], place: str, is_strict: bool) -> Kind:
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(found) - set(known))
    if unknown and is_strict:
        raise ProtocolError(f"{place} has an unknown key {_short(unknown[0])}")
    values = {}
    for name, item in known.items():
        if name in found:
            values[name] = _value(found[name], hints[name], f"{place}.{name}", is_strict)
            if is_strict:
                _check_limits(name, values[name], f"{place}.{name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ProtocolError(f"{place} needs {name}")
    try:
        return kind(**values)
    except ProtocolError:
        raise
    except UserError as error:
        raise ProtocolError(f"{place}: {error}", "bad_value") from error


def _value(value: Any, hint: Any, place: str, is_strict: bool) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        hint = next(member for member in get_args(hint) if member is not type(None))
        return _value(value, hint, place, is_strict)
    if origin is tuple:
        if not isinstance(value, list):
            raise ProtocolError(f"{place} must be a list")
        if len(value) > MAX_SCRIPT_PROMPTS and is_strict:
            raise ProtocolError(f"{place} has more than {MAX_SCRIPT_PROMPTS} entries", "bad_value")
        return tuple(_value(entry, get_args(hint)[0], place, is_strict) for entry in value)
    if origin is Literal:
        if value not in get_args(hint):
            raise ProtocolError(f"{place} must be one of {', '.join(get_args(hint))}")
        return value
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise ProtocolError(f"{place} must be an object")
        return _read(cast(type, hint), value, place, is_strict)
    return _plain(value, hint, place)


def _plain(value: Any, hint: type, place: str) -> Any:
    # JSON's true is no number here, though it is one in Python; and 3 is a float.
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        nouns = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        raise ProtocolError(f"{place} must be {nouns[hint]}, got {_short(value)}")
    return value


def _check_limits(name: str, value: Any, place: str) -> None:
    if isinstance(value, str) and name in _PROMPTS:
        if len(value) > MAX_PROMPT_CHARACTERS:
            raise ProtocolError(
                f"the prompt has {len(value)} characters; {MAX_PROMPT_CHARACTERS} are the most",
                "prompt_too_long",
            )
        if not value.strip():
            raise ProtocolError("the prompt is empty; describe what the video shows", "bad_value")
    if name in _RANGES and isinstance(value, int):
        low, high = _RANGES[name]
        if not low <= value <= high:
            raise ProtocolError(f"{place} goes from {low} to {high}, got {value}", "bad_value")


def _short(value: object, characters: int = 60) -> str:
    text = value if isinstance(value, str) else str(value)
    text = repr(text) if isinstance(value, str) else text
    return text if len(text) <= characters else f"{text[:characters]}..."
