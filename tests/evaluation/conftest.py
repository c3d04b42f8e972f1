"""A recipe of random weights whose videos take milliseconds, and the command line round it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from made_evaluations import Outcome, write_config, write_prompts
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
    return write_prompts(tmp_path / "prompts.txt")


@pytest.fixture
def configure(nano_recipe, prompts, tmp_path) -> Callable[..., Path]:
    """Writes a configuration of ``longlive evaluate`` over the nano model."""
    return partial(write_config, tmp_path / "eval.yaml", nano_recipe, prompts)


@pytest.fixture
def run(capsys) -> Callable[..., Outcome]:
    """Runs the program."""

    def call(*args: object) -> Outcome:
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err.splitlines())

    return call
