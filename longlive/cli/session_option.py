"""``predict --session FILE``: a recorded session as the configuration it stands for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longlive.data.sessions import SessionFile, read_session
from longlive.errors import UserError

OPTION = "--session"
_OTHER_SOURCES = ("--prompt", "--prompts", "--switch")
_TRAINER = {
    "accelerator": "auto",
    "devices": 1,
    "inference_mode": False,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def with_session_spelled_out(args: Sequence[str]) -> list[str]:
    """Put the configuration of a session in place of its option.

    The session says which model with which settings made it, so that no other configuration is
    needed; one that is given comes after it and changes it. An interactive ``.jsonl`` has prompts
    only, and is what ``--prompts`` takes.

    Args:
        args: Command line.

    Raises:
        UserError: If the session cannot be read, or prompts are given as well.
    """
    found = _find(args)
    if found is None:
        return list(args)
    name, rest = found
    path = Path(name)
    for option in _OTHER_SOURCES:
        if any(arg == option or arg.startswith(f"{option}=") for arg in rest):
            raise UserError(f"{option} does not go with {OPTION}, which brings its own prompts")
    if path.suffix == ".jsonl":
        return [*rest, "--prompts", name]
    config = json.dumps(configuration_of(read_session(path)))
    return [rest[0], "--config", config, *rest[1:]]


def configuration_of(session: SessionFile) -> dict[str, Any]:
    """What ``--config`` would have to say to make a session again."""
    watchers = (
        "longlive.callbacks.frame_writer.FrameWriter",
        "longlive.callbacks.progress.RolloutProgress",
    )
    return {
        "seed_everything": True,
        "return_predictions": False,
        "trainer": {
            **_TRAINER,
            "callbacks": [
                *({"class_path": watcher} for watcher in watchers),
                *(dict(callback) for callback in session.callbacks),
            ],
        },
        "model": dict(session.model),
        "data": {
            "class_path": "longlive.data.prompts.PromptDataModule",
            "init_args": {"session_file": str(session.path)},
        },
    }


def _find(args: Sequence[str]) -> tuple[str, list[str]] | None:
    """The file that is named, and the command line without the option."""
    for place, arg in enumerate(args):
        option, is_one_word, value = arg.partition("=")
        if option != OPTION:
            continue
        if is_one_word:
            return value, [*args[:place], *args[place + 1 :]]
        if place + 1 == len(args):
            raise UserError(f"{OPTION} needs a file: the .json beside a recording, or a .jsonl")
        return args[place + 1], [*args[:place], *args[place + 2 :]]
    return None
