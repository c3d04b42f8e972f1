"""tools/check_latency.py: a recipe is timed again from outside, from its results alone."""

import json

import check_latency
import pytest
import torch
import yaml
from made_rollouts import PROMPTS
from nano_model import SETTINGS

from longlive.benchmark import run as run_module
from longlive.benchmark.config import BenchmarkConfig
from longlive.benchmark.results import Results
from longlive.benchmark.run import run_benchmark
from longlive.cli.benchmark import read_command


@pytest.fixture
def measured(nano, tmp_path, monkeypatch):
    """A folder of results that were asked for on a command line."""
    overlay = tmp_path / "nano.yaml"
    settings = {**SETTINGS, "weights": str(nano), "latent_frames": 15}
    config = {
        "trainer": {"accelerator": "cpu", "logger": False, "enable_checkpointing": False},
        "model": {"class_path": "longlive.modules.longlive.LongLive", "init_args": settings},
        "data": {"class_path": "longlive.data.prompts.PromptDataModule"},
    }
    overlay.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(run_module, "write_report", lambda folder: None)
    prompts = json.dumps(PROMPTS[:1])
    asked = read_command(
        ["benchmark", f"--config={overlay}", f"--benchmark.prompts={prompts}", "--output=x"]
    )
    short = BenchmarkConfig(
        num_output_frames=15,
        warmup_iterations=0,
        benchmark_iterations=1,
        prompts=PROMPTS[:1],
        breakdown=False,
    )
    run_benchmark(
        asked.model,
        asked.callbacks,
        short,
        device=torch.device("cpu"),
        output=tmp_path / "out",
        origin=asked.origin,
    )
    return tmp_path / "out"


def test_it_compares_with_the_mean_steady_block(measured, capsys):
    code = check_latency.main([str(measured), "--blocks=3", "--repeats=2"])
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    results = Results.load(measured)
    mean = results.figures["block_period_ms"].distribution.mean
    assert said["benchmark_ms"] == mean
    assert len(said["outside_ms"]) == 2
    assert said["difference"] == pytest.approx(2 * mean / sum(said["outside_ms"]) - 1)
    assert said["agrees"] == (abs(said["difference"]) <= 0.02)
    assert code == (0 if said["agrees"] else 1)


def test_what_it_counts_is_a_block(measured, capsys, monkeypatch):
    times = iter(range(1000))
    monkeypatch.setattr(check_latency, "idle_s", lambda: float(next(times)))
    check_latency.main([str(measured), "--blocks=4", "--repeats=1"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["outside_ms"] == [250.0]


def test_a_folder_without_results_is_one_line(tmp_path, capsys):
    assert check_latency.main([str(tmp_path)]) == 2
    assert "no results of a benchmark" in capsys.readouterr().err
