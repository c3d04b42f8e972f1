"""A command line run in this process, and what ``longlive evaluate`` leaves behind."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PROMPTS = ("a red circle", "a blue square", "a large circle spins", "a small square over a circle")
TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "inference_mode": False,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    lines: list[str]
    """Of stderr."""

    def refusal(self) -> str:
        assert self.code == 2, self.lines
        assert self.lines[-1].startswith("longlive: error: "), self.lines
        assert not any("Traceback" in line for line in self.lines)
        return self.lines[-1].removeprefix("longlive: error: ")


def table_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "table.json").read_text())


def records_in(folder: Path) -> list[Path]:
    return sorted((folder / "records").rglob("*.json"))


def write_prompts(path: Path) -> Path:
    path.write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    return path


def write_config(path: Path, recipe: Path, prompts: Path, /, **arguments: Any) -> Path:
    """Write a configuration of ``longlive evaluate``.

    Args:
        path: Where.
        recipe: What makes the videos.
        prompts: What they show.
        **arguments: Of ``EvaluateRollouts``.
    """
    model = {
        "class_path": "longlive.evaluation.rollouts.EvaluateRollouts",
        "init_args": {"recipe": [str(recipe)], "measures": ["temporal"], **arguments},
    }
    data = {
        "class_path": "longlive.evaluation.prompts.EvaluationPrompts",
        "init_args": {"prompts_file": str(prompts)},
    }
    content = {"trainer": TRAINER, "model": model, "data": data}
    # The order of the axes is that of the variants.
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
