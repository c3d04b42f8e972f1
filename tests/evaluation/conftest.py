"""A recipe of random weights whose videos take milliseconds, and the command line round it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_evaluations import PROMPTS, TRAINER, Outcome
from nano_model import SETTINGS, write_nano_model

from longlive.cli import main


@pytest.fixture(scope="session")
def nano_recipe(tmp_path_factory) -> Path:
    """A base: three blocks of a small video, two steps."""
    folder = tmp_path_factory.mktemp("recipe")
    weights = write_nano_model(folder / "weights")
    settings = {**SETTINGS, "weights": str(weights), "latent_frames": 9}
    model = {"class_path": "longlive.modules.longlive.LongLive", "init_args": settings}
    path = folder / "nano.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": []}, "model": model}))
    return path


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    return path


@pytest.fixture
def configure(nano_recipe, prompts, tmp_path) -> Callable[..., Path]:
    """Writes a configuration of ``longlive evaluate`` over the nano model."""

    def write(**arguments: Any) -> Path:
        model = {
            "class_path": "longlive.evaluation.rollouts.EvaluateRollouts",
            "init_args": {"recipe": [str(nano_recipe)], "measures": ["temporal"], **arguments},
        }
        data = {
            "class_path": "longlive.evaluation.prompts.EvaluationPrompts",
            "init_args": {"prompts_file": str(prompts)},
        }
        path = tmp_path / "eval.yaml"
        content = {"trainer": TRAINER, "model": model, "data": data}
        # The order of the axes is that of the variants.
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture
def run(capsys) -> Callable[..., Outcome]:
    """Runs the program."""

    def call(*args: object) -> Outcome:
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err.splitlines())

    return call
