"""Recipes read by a program, and the variants that axes span over them."""

from pathlib import Path

import pytest
import yaml

from longlive.callbacks.compile import CompileLayers
from longlive.cli import main
from longlive.errors import UserError
from longlive.evaluation.recipes import Recipe, load_recipe
from longlive.evaluation.study import AxisValue, variants_of

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny.yaml"


def test_files_are_merged_as_the_command_line_does_it(capsys):
    files = [
        TINY,
        ROOT / "configs" / "window" / "9.yaml",
        ROOT / "configs" / "opt" / "compile.yaml",
    ]
    main(["predict", *(f"--config={file}" for file in files), "--print_config"])
    composed = yaml.safe_load(capsys.readouterr().out)
    recipe = load_recipe(files)
    arguments = composed["model"]["init_args"]
    assert {name: arguments[name] for name in recipe.settings} == recipe.settings
    theirs = [callback["class_path"] for callback in composed["trainer"]["callbacks"]]
    assert [callback["class_path"] for callback in recipe.callbacks] == theirs


def test_only_callbacks_that_change_a_rollout_are_built():
    recipe = load_recipe([TINY, ROOT / "configs" / "opt" / "compile.yaml"])
    assert len(recipe.callbacks) == 3
    assert [type(callback) for callback in recipe.build_callbacks()] == [CompileLayers]


def test_a_plain_list_replaces_and_a_plus_appends(tmp_path, nano_recipe):
    one = {"class_path": "longlive.callbacks.compile.CompileLayers"}
    for key, count in (("callbacks+", 2), ("callbacks", 1)):
        base, over = tmp_path / "a.yaml", tmp_path / "b.yaml"
        base.write_text(yaml.safe_dump({"trainer": {"callbacks+": [one]}}))
        over.write_text(yaml.safe_dump({"trainer": {key: [one]}}))
        assert len(load_recipe([nano_recipe, base, over]).callbacks) == count


def test_a_file_of_arguments_lists_files(tmp_path, nano_recipe):
    path = tmp_path / "fast.args"
    path.write_text(f"--config={nano_recipe}\n--config={ROOT}/configs/window/9.yaml\n")
    assert load_recipe([path]).settings["window_latent_frames"] == 9
    path.write_text("--model.seconds=3\n")
    with pytest.raises(UserError, match="a recipe lists --config=FILE"):
        load_recipe([path])


def test_a_length_replaces_the_other_way_to_give_it(nano_recipe):
    recipe = load_recipe([nano_recipe])
    assert recipe.with_settings({"seconds": 1.0}).model().spec.latent_frames == 6
    assert recipe.with_settings({"latent_frames": 12}).model().spec.latent_frames == 12


def test_what_is_no_recipe_is_one_line(tmp_path, nano_recipe):
    with pytest.raises(UserError, match="is not YAML"):
        load_recipe([write(tmp_path, "model: [")])
    with pytest.raises(UserError, match="holds no settings"):
        load_recipe([write(tmp_path, "- 1")])
    with pytest.raises(UserError, match="begin with a base"):
        load_recipe([write(tmp_path, "seed_everything: 1")])
    with pytest.raises(UserError, match="seconds"):
        load_recipe([nano_recipe]).with_settings({"seconds": "long"}).model()
    broken = Recipe(callbacks=({"class_path": "longlive.callbacks.nothing.Nothing"},))
    with pytest.raises(UserError, match="Nothing"):
        broken.build_callbacks()


def write(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


AXES = {
    "window": {"12": AxisValue(), "9": AxisValue(settings={"window_latent_frames": 9})},
    "steps": {
        "4": AxisValue(settings={"denoising_steps": 4}),
        "2": AxisValue(settings={"denoising_steps": 2}, note="merely dropped"),
    },
}


def test_a_product_has_every_combination_and_the_reference_first(nano_recipe):
    variants = variants_of([str(nano_recipe)], {}, AXES, reference={"steps": "2"})
    assert [variant.name for variant in variants] == [
        "window 12, steps 2",
        "window 12, steps 4",
        "window 9, steps 4",
        "window 9, steps 2",
    ]
    assert variants[0].note == "merely dropped"
    assert variants[3].recipe.settings["window_latent_frames"] == 9
    assert variants[3].recipe.settings["denoising_steps"] == 2
    assert variants[3].folder == "window-9-steps-2"


def test_one_at_a_time_leaves_out_what_differs_in_two_axes(nano_recipe):
    variants = variants_of([str(nano_recipe)], {}, AXES, combine="one_at_a_time")
    assert [v.name for v in variants] == [
        "window 12, steps 4",
        "window 12, steps 2",
        "window 9, steps 4",
    ]


def test_a_value_may_be_an_overlay(nano_recipe):
    overlay = AxisValue(configs=[str(ROOT / "configs" / "opt" / "compile.yaml")])
    axes = {"compiled": {"no": AxisValue(), "yes": overlay}}
    plain, compiled = variants_of([str(nano_recipe)], {}, axes)
    assert plain.recipe.build_callbacks() == []
    assert len(compiled.recipe.build_callbacks()) == 1


def test_without_axes_there_is_one_variant_and_names_must_differ(nano_recipe):
    [variant] = variants_of([str(nano_recipe)], {}, {})
    assert (variant.name, variant.axes) == ("recipe", {})
    axes = {"p": {"fp 8": AxisValue(), "fp-8": AxisValue()}}
    with pytest.raises(UserError, match="rename a value"):
        variants_of([str(nano_recipe)], {}, axes)
