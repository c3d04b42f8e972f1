"""Files of prompts: the reference's two formats, and a timeline of our own.

``.txt``
    One video per line, with one prompt.
``.jsonl``
    One video per line: ``{"prompts": ["...", "..."]}``, optionally with
    ``"switch_frame_indices": [40, 80]``, which count latent frames and are one fewer than the
    prompts.
``.yaml``, ``.yml``
    One video: a list of ``{at_seconds: 10, prompt: "..."}`` or ``{at_latent_frame: 40, prompt:
    "..."}``. The first entry starts the video and may leave its place out.

Unlike the reference, a blank line is an error, not a video without a prompt.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlive.errors import UserError
from longlive.geometry import latent_frames_for_seconds

_SWITCHES = "switch_frame_indices"


@dataclass(frozen=True, slots=True)
class PromptEntry:
    """One video of a prompt file.

    Attributes:
        place: Where it stands, for messages: ``"prompts.jsonl line 3"``.
        prompts: In order.
        switch_latent_frames: As the file says; ``None`` if it does not.
    """

    place: str
    prompts: tuple[str, ...]
    switch_latent_frames: tuple[int, ...] | None = None


def read_prompt_file(path: Path) -> list[PromptEntry]:
    """Read the videos of a prompt file, chosen by its suffix.

    Raises:
        UserError: If the file is missing, empty, of another kind, or malformed; the message names
            the line.
    """
    readers: dict[str, Callable[[Path, str], list[PromptEntry]]] = {
        ".txt": _read_txt,
        ".jsonl": _read_jsonl,
        ".yaml": _read_yaml,
        ".yml": _read_yaml,
    }
    if path.suffix not in readers:
        raise UserError(f"{path} is no prompt file; its name must end in {', '.join(readers)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot read prompts from {path}: {reason}; check the name") from error
    entries = readers[path.suffix](path, text)
    if not entries:
        raise UserError(f"{path} is empty; write a prompt into it")
    return entries


def _read_txt(path: Path, text: str) -> list[PromptEntry]:
    return [PromptEntry(place, (line,)) for place, line in _lines(path, text)]


def _read_jsonl(path: Path, text: str) -> list[PromptEntry]:
    return [_entry_of_json(place, line) for place, line in _lines(path, text)]


def _lines(path: Path, text: str) -> list[tuple[str, str]]:
    """Give lines, without trailing white space, with the name of their place."""
    # Not splitlines(): a prompt may hold a character such as U+2028, which it cuts at.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    placed = []
    for number, line in enumerate(lines, start=1):
        place = f"{path} line {number}"
        if not line.strip():
            raise UserError(f"{place} is blank; remove it or write a prompt")
        placed.append((place, line.rstrip()))
    return placed


def _entry_of_json(place: str, line: str) -> PromptEntry:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        reason = f"{error.msg.lower()}, column {error.colno}"
        raise UserError(f'{place} is not JSON ({reason}); write {{"prompts": ["..."]}}') from error
    if not isinstance(found, dict) or "prompts" not in found:
        raise UserError(f'{place} has no prompts; write {{"prompts": ["...", "..."]}}')
    unknown = sorted(set(found) - {"prompts", _SWITCHES})
    if unknown:
        raise UserError(f"{place} has an unknown key {unknown[0]!r}; use prompts and {_SWITCHES}")
    prompts = found["prompts"]
    if not isinstance(prompts, list) or not prompts:
        raise UserError(f"{place}: prompts must be a list of strings, got {_shown(prompts)}")
    for prompt in prompts:
        _check_prompt(prompt, place)
    return PromptEntry(place, tuple(prompts), _switches(found.get(_SWITCHES), place))


def _switches(value: Any, place: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(index) is int for index in value):
        raise UserError(f"{place}: {_SWITCHES} must be a list of whole numbers of latent frames")
    return tuple(value)


def _read_yaml(path: Path, text: str) -> list[PromptEntry]:
    import yaml

    try:
        steps = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "malformed"
        raise UserError(f"{path}{where} is not YAML ({problem}); correct it") from error
    if not steps:
        return []
    if not isinstance(steps, list):
        raise UserError(f"{path} must be a list of {{at_seconds, prompt}}, got {_shown(steps)}")
    starts = [
        _start_of_step(f"{path} entry {number}", step, is_first=number == 1)
        for number, step in enumerate(steps, start=1)
    ]
    if starts[0] != 0:
        raise UserError(f"{path} entry 1 must start the video; set its at_seconds to 0")
    prompts = tuple(step["prompt"] for step in steps)
    return [PromptEntry(str(path), prompts, tuple(starts[1:]))]


def _start_of_step(place: str, step: Any, *, is_first: bool) -> int:
    """Check one entry of a timeline and return its latent frame."""
    if not isinstance(step, dict) or "prompt" not in step:
        raise UserError(f"{place} has no prompt; write {{at_seconds: 10, prompt: ...}}")
    _check_prompt(step["prompt"], place)
    given = {key: value for key, value in step.items() if key != "prompt"}
    if is_first and not given:
        return 0
    if len(given) != 1 or not given.keys() <= {"at_seconds", "at_latent_frame"}:
        raise UserError(f"{place} needs either at_seconds or at_latent_frame beside its prompt")
    [(key, value)] = given.items()
    if key == "at_latent_frame" and type(value) is int and value >= 0:
        return value
    if key == "at_seconds" and type(value) in (int, float) and 0 <= value < math.inf:
        # As many latent frames as play before that time: the next one shows nothing earlier.
        return latent_frames_for_seconds(value, block_latent_frames=1) if value else 0
    raise UserError(f"{place}: {key} must be a number from 0 on, got {value!r}")


def _check_prompt(prompt: Any, place: str) -> None:
    if not isinstance(prompt, str):
        raise UserError(f"{place}: a prompt must be a string, got {_shown(prompt)}; quote it")
    if not prompt.strip():
        raise UserError(f"{place} has an empty prompt; describe what the video shows")


def _shown(value: Any, characters: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= characters else f"{text[:characters]}..."
