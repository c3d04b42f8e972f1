"""A model of random weights on which a block takes some ten milliseconds."""

from pathlib import Path

import pytest
from made_rollouts import PROMPTS
from nano_model import SETTINGS, write_nano_model

from longlive.benchmark.config import BenchmarkConfig
from longlive.modules.longlive import LongLive


@pytest.fixture(scope="session")
def nano(tmp_path_factory) -> Path:
    return write_nano_model(tmp_path_factory.mktemp("nano"))


@pytest.fixture
def model(nano) -> LongLive:
    return LongLive(**{**SETTINGS, "weights": str(nano), "latent_frames": 15})


@pytest.fixture
def short() -> BenchmarkConfig:
    """Everything once, as short as it goes."""
    return BenchmarkConfig(
        num_output_frames=24,
        warmup_iterations=1,
        benchmark_iterations=2,
        arrival_changes=1,
        prompts=PROMPTS,
    )
