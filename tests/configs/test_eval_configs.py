"""Configurations of longlive evaluate: complete, and their prompt sets are what they say."""

import re
from pathlib import Path

import pytest
import yaml

from longlive.cli import main
from longlive.data.prompt_files import read_prompt_file
from longlive.evaluation.prompt_sets import HELD_OUT, INTERACTIVE, LONG, interactive, spread
from longlive.evaluation.prompts import EvaluationPrompts
from longlive.evaluation.rollouts import EvaluateRollouts
from longlive.evaluation.side_by_side import plan_of
from longlive.evaluation.study import AxisValue
from longlive.geometry import FPS, frames_of
from longlive.shapes import held_out_prompts
from longlive.weights.embedded import student_names

ROOT = Path(__file__).parents[2]
EVAL = ROOT / "configs" / "eval"
CONFIGS = sorted(EVAL.glob("*.yaml"))
ROLLOUTS = [path for path in CONFIGS if "EvaluateRollouts" in path.read_text()]


def arguments(path, part):
    return yaml.safe_load(path.read_text())[part].get("init_args", {})


def module_of(path):
    given = arguments(path, "model")
    axes = {
        axis: {str(name): AxisValue(**value) for name, value in values.items()}
        for axis, values in given.pop("axes", {}).items()
    }
    return EvaluateRollouts(**given, axes=axes)


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    # Recipes are named as the commands in the files name them.
    monkeypatch.chdir(ROOT)


def test_there_is_a_config_for_every_question():
    names = {path.stem for path in CONFIGS}
    assert names == {
        *("decoder", "fast_start", "folder", "interactive", "long", "precision", "shapes"),
        *("students", "switch", "tradeoff", "vbench"),
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_complete_and_says_how_to_run_it(path, capsys):
    options = []
    if path.stem == "folder":
        options = ["--videos=outputs"]
    elif path.stem == "vbench":
        options = ["--prompts=configs/eval/prompts/long.txt"]
    code = main(["evaluate", f"--config={path}", *options, "--print_config"])
    written = capsys.readouterr()
    assert (code, written.err) == (0, "")
    assert yaml.safe_load(written.out)["model"]["class_path"].startswith("longlive.evaluation.")
    lines = path.read_text().splitlines()
    assert re.match(r"# \S", lines[0])
    assert any(f"configs/eval/{path.name}" in line for line in lines[1:5])


@pytest.mark.parametrize("path", ROLLOUTS, ids=lambda path: path.stem)
def test_every_variant_can_show_every_prompt(path):
    module = module_of(path)
    if "prompts_file" not in arguments(path, "data"):
        return
    data = EvaluationPrompts(**arguments(path, "data"))
    data.setup("test")
    for variant in module.variants:
        model = variant.recipe.model()
        assert all(plan_of(model, script) for script in data.scripts)


def test_prompt_sets_are_held_out_and_follow_their_rules():
    known = {prompt.text for prompt in held_out_prompts()}
    files = {
        name: read_prompt_file(EVAL / "prompts" / name)
        for name in ("held_out.txt", "long.txt", "interactive.jsonl")
    }
    texts = {name: [entry.prompts for entry in entries] for name, entries in files.items()}
    assert texts["held_out.txt"] == [(p.text,) for p in spread(HELD_OUT)]
    assert texts["long.txt"] == [(p.text,) for p in spread(LONG)]
    assert texts["interactive.jsonl"] == [tuple(p.text for p in v) for v in interactive()]
    for entries in texts.values():
        assert {prompt for prompts in entries for prompt in prompts} <= known
    shown = [prompt for prompts in texts["interactive.jsonl"] for prompt in prompts]
    assert len(shown) == len(set(shown)) == 6 * INTERACTIVE


def test_the_prompts_of_the_model_card_are_those_of_the_set():
    from evaluate_embedded import picked_prompts

    assert picked_prompts(HELD_OUT) == spread(HELD_OUT)


def test_an_interactive_video_holds_each_of_six_prompts_for_ten_seconds():
    path = EVAL / "interactive.yaml"
    model = module_of(path).variants[0].recipe.model()
    data = EvaluationPrompts(**arguments(path, "data"))
    data.setup("test")
    for script in data.scripts:
        starts = [frames_of(latent) / FPS for latent, _ in plan_of(model, script)]
        assert len(starts) == 6
        for number, start in enumerate(starts):
            # A video is whole blocks, and a switch waits for the next of them.
            assert 0 <= start - 10 * number < 1


def test_every_student_stands_beside_its_steps_without_distillation():
    rows = {v.axes["model"]: v for v in module_of(EVAL / "students.yaml").variants}
    settings = {name: row.recipe.settings for name, row in rows.items()}
    assert next(iter(rows)) == "teacher"
    overlays = {path.stem for path in (ROOT / "configs" / "student").glob("*.yaml")}
    # In the package the student that was tuned on long videos is the one of four steps.
    overlays -= {"4step_long"}
    assert overlays <= rows.keys()
    assert overlays - {"teacher"} == set(student_names())
    assert {given.get("student") for given in settings.values()} == {None, *overlays} - {"teacher"}
    for name in overlays - {"teacher"}:
        undistilled = settings[f"teacher in {name[0]}"]
        assert undistilled == {**settings[name], "student": None}
        assert len(settings[name]["denoising_steps"]) == int(name[0])
        assert "no distillation" in rows[f"teacher in {name[0]}"].note


def test_students_are_shown_as_they_were_trained():
    stages = {"4step": "dmd", "4step_long": "long", **{f"{n}step": f"{n}step" for n in (3, 2, 1)}}
    for name, stage in stages.items():
        shown = yaml.safe_load((ROOT / "configs" / "student" / f"{name}.yaml").read_text())
        shown = shown["model"]["init_args"]
        clip = arguments(ROOT / "configs" / "distill" / f"tiny_{stage}.yaml", "model")["clip"]
        base = arguments(ROOT / "configs" / "tiny.yaml", "model")
        assert shown["denoising_steps"] == clip["denoising_steps"]
        assert shown["positions"] == clip["positions"]
        assert base["shift"] == clip["shift"]


def test_the_tradeoff_spans_window_steps_and_precision():
    module = module_of(EVAL / "tradeoff.yaml")
    axes = {axis: {v.axes[axis] for v in module.variants} for axis in module.variants[0].axes}
    assert {"12", "9", "6"} == axes["window"]
    assert {"4", "3", "2"} <= axes["steps"]
    assert {"bfloat16", "fp8", "int8"} == axes["precision"]
    assert len(module.variants) == len(axes["window"]) * len(axes["steps"]) * len(axes["precision"])
    sinks = {v.axes["window"]: v.recipe.settings["sink_latent_frames"] for v in module.variants}
    assert sinks == {"12": 3, "9": 3, "6": 2}
    assert module.variants[0].axes == arguments(EVAL / "tradeoff.yaml", "model")["reference"]
    assert "fidelity" in module.options.names
