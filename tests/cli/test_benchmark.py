"""longlive benchmark, through the real command line, on a model of random weights."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from nano_model import SETTINGS, write_nano_model

from longlive.benchmark.config import BenchmarkConfig
from longlive.benchmark.results import Results
from longlive.cli import main
from longlive.cli.benchmark import _base_of

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
QUICK = CONFIGS / "benchmark" / "quick.yaml"
STANDARD = CONFIGS / "benchmark" / "standard.yaml"
SMALL = (
    "--benchmark.num_output_frames=24",
    "--benchmark.benchmark_iterations=1",
    "--benchmark.arrival_changes=1",
    '--benchmark.prompts=["a red circle", "a small square"]',
)


@pytest.fixture(scope="session")
def nano_config(tmp_path_factory) -> Path:
    """An overlay for the embedded model's base: another model, of random weights."""
    folder = tmp_path_factory.mktemp("nano")
    settings = {**SETTINGS, "weights": str(write_nano_model(folder)), "guidance": 1.0}
    path = folder / "nano.yaml"
    overlay = {"trainer": {"accelerator": "cpu"}, "model": {"init_args": settings}}
    path.write_text(yaml.safe_dump(overlay))
    return path


@pytest.fixture
def refuse(capsys):
    """Runs the command and returns the line that says why it was refused."""

    def run(*args: object) -> str:
        assert main(["benchmark", *map(str, args)]) == 2
        written = capsys.readouterr()
        assert written.out == ""
        lines = [line for line in written.err.splitlines() if "error: " in line]
        assert lines == written.err.splitlines()[-1:]
        return lines[0].removeprefix("longlive: error: ")

    return run


def configs(*paths: Path) -> list[str]:
    return [f"--config={path}" for path in paths]


def test_a_preset_measures_any_recipe_into_a_folder(nano_config, tmp_path, capsys):
    out = tmp_path / "results"
    window = CONFIGS / "window" / "9.yaml"
    args = [*configs(CONFIGS / "tiny.yaml", nano_config, window, QUICK), *SMALL]
    assert main(["benchmark", *args, f"--output={out}"]) == 0
    *people, last = capsys.readouterr().out.splitlines()
    said = json.loads(last)
    results = Results.load(out)
    assert said["complete"] is True
    assert said["results"] == str(out)
    assert said["figures"]["fps"] == results.figures["fps"].value
    assert any(line.startswith("  frames per second ") for line in people)
    assert (out / "report.md").is_file()
    assert (out / "trace.json").is_file()
    recipe = results.recipe
    assert recipe.name == "tiny+nano+9+quick"
    assert recipe.window_latent_frames == 9
    assert recipe.settings["model"]["init_args"]["window_latent_frames"] == 9
    assert recipe.settings["benchmark"]["num_output_frames"] == 24
    assert recipe.command.startswith("longlive benchmark --config=")
    assert [name.rpartition(".")[2] for name in recipe.left_out] == [
        "FrameWriter",
        "RolloutProgress",
        "WatchProcesses",
    ]
    assert results.benchmark["warmup_iterations"] == 1
    assert results.environment.device == "cpu"


def test_a_preset_alone_brings_its_base_and_one_after_a_base_does_not():
    quick = [Path(arg.partition("=")[2]).resolve() for arg in _base_of([f"--config={QUICK}"])]
    assert quick == [CONFIGS / "tiny.yaml", CONFIGS / "steps" / "4.yaml"]
    standard = [Path(arg.partition("=")[2]).resolve() for arg in _base_of(["-c", str(STANDARD)])]
    assert standard == [CONFIGS / "base.yaml", CONFIGS / "weights" / "synthetic.yaml"]
    assert not list(_base_of(configs(CONFIGS / "tiny.yaml", STANDARD)))


@pytest.mark.parametrize("preset", [QUICK, STANDARD], ids=lambda path: path.stem)
def test_a_preset_says_what_the_parser_understands(preset, capsys):
    accelerator = "--trainer.accelerator=cpu"
    code = main(["benchmark", f"--config={preset}", accelerator, "--print_config"])
    written = capsys.readouterr()
    assert (code, written.err) == (0, "")
    config = yaml.safe_load(written.out)
    said = yaml.safe_load(preset.read_text())["benchmark"]
    assert config["benchmark"].items() >= said.items()
    wanted = "synthetic" if preset == STANDARD else "embedded"
    assert config["model"]["init_args"]["weights"] == wanted


def test_the_standard_benchmark_has_the_lengths_of_the_definitions():
    said = yaml.safe_load(STANDARD.read_text())["benchmark"]
    assert said["num_output_frames"] == 120
    config = BenchmarkConfig(**said).check(3)
    steady = 40 - 3 - len(config.timeline().switch_latent_frames)
    assert steady * config.benchmark_iterations >= 200


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(refuse, tmp_path):
    said = refuse(*configs(STANDARD), f"--output={tmp_path / 'x'}")
    assert said.startswith("no GPU for accelerator gpu: use --config configs/tiny.yaml")
    assert not (tmp_path / "x").exists()


def test_no_iterations_are_one_line(refuse, nano_config, tmp_path):
    base = configs(CONFIGS / "tiny.yaml", nano_config)
    said = refuse(*base, "--benchmark.benchmark_iterations=0", f"--output={tmp_path / 'x'}")
    assert said == "benchmark.benchmark_iterations must be at least 1, got 0"
    assert not (tmp_path / "x").exists()


def test_a_folder_with_files_is_one_line(refuse, nano_config, tmp_path):
    (tmp_path / "old").write_text("")
    said = refuse(*configs(CONFIGS / "tiny.yaml", nano_config), *SMALL, f"--output={tmp_path}")
    assert said == f"{tmp_path} is not empty: name another folder, or add --overwrite"


def test_too_few_blocks_are_one_line(refuse, nano_config, tmp_path):
    base = configs(CONFIGS / "tiny.yaml", nano_config)
    said = refuse(*base, "--benchmark.num_output_frames=9", f"--output={tmp_path / 'x'}")
    assert "steady latency needs 5 blocks" in said


def test_a_misspelled_setting_is_one_line(refuse, nano_config):
    said = refuse(*configs(CONFIGS / "tiny.yaml", nano_config), "--benchmark.iterations=3")
    assert "unknown --benchmark.iterations" in said


def test_no_recipe_is_one_line(refuse):
    assert refuse("--benchmark.seed=1").startswith("no data and model to benchmark: give --config")
