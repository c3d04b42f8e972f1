"""Recipes: names for lists of overlays, on the user's base or on that of the published model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nano_model import SETTINGS, write_nano_model

from longlive.benchmark.results import Results
from longlive.cli import main
from longlive.cli.benchmark import read_command
from longlive.cli.recipe_option import recipe_names, with_recipes_spelled_out
from longlive.data.recipe_files import overlays_of
from longlive.errors import UserError
from longlive.evaluation.recipes import load_recipe
from longlive.modules.longlive import LongLive

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))
QUICK = CONFIGS / "benchmark" / "quick.yaml"
# Where nothing needs a GPU; the models are made of the settings alone.
ON_A_CPU = "--trainer.accelerator=cpu"

names = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def refusal(capsys):
    """The line that says why a command line was refused."""

    def call(*args: object) -> str:
        assert main([str(arg) for arg in args]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("longlive: error: ")
        return last.removeprefix("longlive: error: ")

    return call


def overlays(path: Path) -> list[str]:
    found = overlays_of(path)
    assert found is not None
    return found


def composed(capsys, *args: object) -> dict[str, Any]:
    assert main(["predict", *map(str, args), "--prompt=x", "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def configs(*paths: object) -> list[str]:
    return [f"--config={path}" for path in paths]


def settings(path: Path) -> dict[str, Any]:
    return load_recipe(["configs/base.yaml", path]).settings


def test_there_are_the_four_recipes():
    assert recipe_names() == ["exact", "max_speed", "preview", "sweet_spot"]


@names
def test_a_recipe_is_the_overlays_it_lists_on_the_base_of_the_published_model(path, capsys):
    listed = overlays(path)
    assert re.match(r"# \S", path.read_text())
    assert len(set(listed)) == len(listed)
    named = composed(capsys, "--recipe", path.stem)
    assert named == composed(capsys, *configs("configs/base.yaml", *listed))
    LongLive(**named["model"]["init_args"])


@names
def test_a_recipe_takes_the_users_weights_and_later_words_override_it(path, capsys):
    options = ("--model.weights=mine", "--config=configs/attention/sdpa.yaml")
    for args in ((f"--recipe={path.stem}", *options), (*options[:1], "--recipe", path.stem)):
        assert composed(capsys, *args)["model"]["init_args"]["weights"] == "mine"
    args = (
        f"--recipe={path.stem}",
        "--config=configs/steps/3.yaml",
        "--model.window_latent_frames=9",
    )
    arguments = composed(capsys, *args)["model"]["init_args"]
    assert arguments["denoising_steps"] == [1000, 667, 333]
    assert arguments["window_latent_frames"] == 9


def test_a_recipe_goes_on_the_base_that_is_given(capsys):
    args = ("-c", "configs/tiny.yaml", "--recipe", "exact")
    config = composed(capsys, *args)
    assert config == composed(capsys, *configs("configs/tiny.yaml", *overlays(RECIPES[0])))
    assert config["model"]["init_args"]["weights"] == "embedded"
    # A base may be written out in place of a file, as that of a session is.
    base = json.dumps(yaml.safe_load((CONFIGS / "tiny.yaml").read_text()))
    assert composed(capsys, "--config", base, "--recipe=exact") == config


def test_exact_promises_the_arithmetic_of_the_eager_path():
    path = CONFIGS / "recipes" / "exact.yaml"
    for name in overlays(path):
        first = Path(name).read_text().splitlines()[0]
        assert "numerics: different" not in first
    plain = settings(CONFIGS / "window" / "12.yaml")
    assert settings(path) == plain


@pytest.mark.parametrize(
    ("name", "window", "sink", "steps", "decoder"),
    [
        ("exact", 12, 3, 4, "wan"),
        ("sweet_spot", 9, 3, 4, "wan"),
        ("preview", 9, 3, 4, "tiny"),
        ("max_speed", 6, 2, 2, "tiny"),
    ],
)
def test_the_recipes_are_what_they_are_called(name, window, sink, steps, decoder):
    model = load_recipe(["configs/base.yaml", f"configs/recipes/{name}.yaml"]).model()
    spec = model.spec
    assert (spec.window_latent_frames, spec.sink_latent_frames) == (window, sink)
    assert len(spec.schedule.sigmas) == steps
    assert model.decoder == decoder


@names
def test_eight_bits_are_where_they_passed_their_quality_gate_and_not_in_exact(path):
    found = {Path(name).stem for name in overlays(path)} & {"fp8", "int8", "fp8_attention"}
    assert found == (set() if path.stem == "exact" else {"fp8", "fp8_attention"})


@names
def test_the_callbacks_of_a_recipe_fit_together(path):
    made = load_recipe(["configs/base.yaml", path]).build_callbacks()
    assert len({type(callback) for callback in made}) == len(made) > 3


# In results.


@pytest.fixture
def nano(tmp_path) -> Path:
    model = {**SETTINGS, "weights": str(write_nano_model(tmp_path)), "guidance": 1.0}
    path = tmp_path / "nano.yaml"
    overlay = {"trainer": {"accelerator": "cpu"}, "model": {"init_args": model}}
    path.write_text(yaml.safe_dump(overlay))
    return path


@pytest.fixture
def eager(tmp_path) -> Path:
    """A recipe that needs no GPU."""
    path = tmp_path / "eager.yaml"
    path.write_text(yaml.safe_dump([str(CONFIGS / "window" / "9.yaml"), "cached.yaml"]))
    (tmp_path / "cached.yaml").write_text((CONFIGS / "opt" / "prompt_cache.yaml").read_text())
    return path


def test_results_name_the_overlays_and_the_command_names_the_recipe(nano, eager, tmp_path, capsys):
    options = ["--benchmark.num_output_frames=24", "--benchmark.benchmark_iterations=1"]
    options += ["--benchmark.warmup_iterations=0", "--benchmark.arrival=none"]
    options += ["--benchmark.breakdown=false", '--benchmark.prompts=["a red circle"]']
    out = tmp_path / "results"
    args = [*configs(CONFIGS / "tiny.yaml", nano, eager, QUICK), *options, f"--output={out}"]
    assert main(["benchmark", *args]) == 0
    said = capsys.readouterr().err
    recipe = Results.load(out).recipe
    assert recipe.config_files[2:4] == ("configs/window/9.yaml", str(tmp_path / "cached.yaml"))
    assert recipe.name == "tiny+nano+9+cached+quick"
    assert recipe.window_latent_frames == 9
    assert f"--config={eager}" in recipe.command
    assert f"recipe eager: configs/window/9.yaml, {tmp_path / 'cached.yaml'}" in said


def test_a_benchmark_takes_a_recipe_by_name_on_the_base_of_its_preset(monkeypatch):
    command = ["benchmark", "--recipe", "sweet_spot", f"--config={QUICK}", ON_A_CPU]
    # The base of the preset, the embedded model, has no accelerator of its own.
    asked = read_command(command)
    assert asked.origin.command == " ".join(["longlive", *command])
    files = [Path(name).name for name in asked.origin.config_files]
    assert files[:4] == ["tiny.yaml", "4.yaml", "9.yaml", "4.yaml"]
    assert files[-1] == "quick.yaml"
    assert asked.origin.title == "tiny+4+sweet_spot+quick"
    assert asked.model.weights == "embedded"
    assert asked.model.spec.window_latent_frames == 9


def test_serve_takes_a_recipe_too():
    from longlive.cli.serve_model import configure

    args = with_recipes_spelled_out(["--recipe=preview", ON_A_CPU])
    served = configure(args)
    assert served.device == torch.device("cpu")
    assert served.model.decoder == "tiny"
    assert {"CompileLayers", "CaptureDecoder"} <= {type(c).__name__ for c in served.callbacks}


def test_evaluate_takes_a_recipe_among_its_files():
    listed = load_recipe(["configs/tiny.yaml", "configs/recipes/exact.yaml"])
    assert listed == load_recipe(["configs/tiny.yaml", *overlays(RECIPES[0])])


def test_without_a_gpu_a_recipe_says_which_optimization_needs_one(nano, refusal):
    base = configs(CONFIGS / "tiny.yaml", nano)
    assert re.match(
        r"Capture\w+ needs a CUDA device, and this is cpu",
        refusal("predict", *base, "--recipe=exact", "--prompt=a red circle", "--seconds=0.1"),
    )


# What cannot work.


def test_an_unknown_name_is_one_line_with_the_names_there_are(refusal):
    said = refusal("predict", "--recipe", "fast", "--prompt=x")
    assert said == "there is no recipe 'fast': there are exact, max_speed, preview, sweet_spot"
    assert "did you mean sweet_spot?" in refusal("benchmark", "--recipe=sweetspot")
    assert "there is no recipe ''" in refusal("predict", "--prompt=x", "--recipe=")
    assert "there is no recipe ''" in refusal("predict", "--prompt=x", "--recipe")


def test_serve_refuses_an_unknown_name_too(refusal):
    pytest.importorskip("starlette")
    assert "there is no recipe 'fast'" in refusal("serve", "--recipe", "fast")


def test_a_recipe_before_its_base_is_refused(refusal):
    said = refusal("predict", "--recipe=exact", "--config=configs/tiny.yaml", "--prompt=x")
    assert said.startswith("configs/tiny.yaml is a base and comes too late")


def test_two_recipes_or_an_overlay_of_a_recipe_again_are_refused(refusal):
    for also, twice in (
        ("--recipe=preview", "FuseProjections"),
        ("--config=configs/opt/compile.yaml", "CompileLayers"),
    ):
        said = refusal("predict", "--recipe=exact", also, ON_A_CPU, "--prompt=x")
        assert f"{twice} is configured twice" in said


def test_a_training_run_takes_no_recipe(refusal):
    assert "--recipe" in refusal("fit", "--config=configs/train/tiny_dit.yaml", "--recipe=exact")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "holds no settings"),
        ("- 9\n", "holds no settings"),
        ("- {model: {}}\n", "holds no settings"),
        ("- missing.yaml\n", r"cannot read the configuration .*missing\.yaml: no such file"),
    ],
)
def test_a_recipe_of_ones_own_that_cannot_work_is_one_line(content, said, tmp_path, refusal):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    assert re.search(said, refusal("predict", f"--config={path}", "--prompt=x"))


def test_what_names_no_recipe_is_left_as_it_is():
    args = ["predict", "-c", "configs/tiny.yaml", "--config", "missing.yaml", "--prompt", "--x"]
    assert with_recipes_spelled_out(args) == args
    with pytest.raises(UserError, match="there is no recipe"):
        with_recipes_spelled_out([*args, "--recipe"])
