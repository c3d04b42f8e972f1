"""Fewer steps are those of a student that was distilled for them, where there is one."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from nano_model import DIT

from longlive.callbacks.quantize import QuantizeLinears
from longlive.cli import main
from longlive.errors import UserError
from longlive.live.protocol import Start
from longlive.live.recipes import Recipes, Setup
from longlive.models.dit import DiT
from longlive.modules.longlive import LongLive
from longlive.video.latents import read_latents
from longlive.weights.embedded import read_config, save_component, save_student, steps_of_alike
from longlive.weights.synthetic import fill_synthetic

A = "a large red circle"
STEPS = {"3step": (1000, 750, 500), "2step": (1000, 400)}


@pytest.fixture(scope="module")
def folder(nano, tmp_path_factory):
    folder = shutil.copytree(nano, tmp_path_factory.mktemp("students") / "nano")
    for seed, (name, steps) in enumerate(STEPS.items(), 1):
        student = DiT(DIT)
        fill_synthetic(student, seed=seed)
        save_student(folder, name, student.state_dict(), asdict(DIT), steps)
    return folder


def latents_of(settings, folder, name):
    student = {"weights": str(folder), "student": name, "denoising_steps": list(STEPS[name])}
    model = LongLive(**{**settings, **student, "positions": "relative"})
    return torch.cat([block.latents for block in model.stream(A, seed=3, latent_frames=6)], 1)


def made_by(played, steps):
    played.engine.start(Start(1, A, seed=3, steps=steps))
    played.watch_blocks(2)
    played.engine.pause()
    with played.engine.changed:
        made = dict(played.latents.made)
    return torch.cat([made[0, 0], made[0, 1]], 1)


def test_a_viewer_who_asks_for_fewer_steps_gets_their_student_and_back(
    play, folder, nano_settings, tmp_path
):
    played = play(weights=str(folder), student="3step", denoising_steps=list(STEPS["3step"]))
    expected = {name: latents_of(nano_settings, folder, name) for name in STEPS}
    assert not torch.equal(*expected.values())
    hashes = []
    for steps, name in ((3, "3step"), (2, "2step"), (3, "3step")):
        assert torch.equal(made_by(played, steps), expected[name])
        record = played.engine.session()
        assert record["config"]["model"]["init_args"]["student"] == name
        assert record["weights"]["source"].endswith(f"student {name}")
        hashes.append(record["weights"]["hash"])
        path = tmp_path / "session.json"
        path.write_text(json.dumps(record))
        output = tmp_path / f"again_{len(hashes)}"
        args = ["predict", "--session", str(path), "--latents", "true", "--output", str(output)]
        assert main(args) == 0
        [again] = output.glob("*.safetensors")
        assert torch.equal(read_latents(again)[0][:, :6], expected[name])
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_model_of_replaced_layers_keeps_its_own_weights(play, folder):
    options = {"weights": str(folder), "student": "3step", "denoising_steps": [1000, 750, 500]}
    quantize = QuantizeLinears("int8", required=False)
    recipes = play(**options, callbacks=[quantize]).engine.recipes
    assert recipes.setup(None, 2) == Setup((1000, 500), 1.0, "3step")
    assert play(**options).engine.recipes.setup(None, 2) == Setup((1000, 400), 1.0, "2step")


def test_students_of_another_size_or_without_known_steps_are_not_alike(folder, tmp_path):
    assert steps_of_alike("3step", folder) == STEPS
    other = shutil.copytree(folder, tmp_path / "other")
    config = read_config(other)
    config["dit_2step"] = {**config["dit_2step"], "layers": 3}
    (other / "config.json").write_text(json.dumps(config))
    assert steps_of_alike("3step", other) == {"3step": STEPS["3step"]}
    assert steps_of_alike("none", other) == {}


def test_students_that_cannot_be_read_are_not_alike(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "dit_2step.safetensors").unlink()
    assert steps_of_alike("3step", other) == {"3step": STEPS["3step"]}
    # The others are changes of another model then.
    dit = DiT(DIT)
    fill_synthetic(dit, seed=5)
    save_component(other, "dit", dit.state_dict(), asdict(DIT))
    assert steps_of_alike("3step", other) == {}


def test_a_student_that_is_written_again_without_its_steps_has_none(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    save_student(other, "2step", DiT(DIT).state_dict(), asdict(DIT))
    assert steps_of_alike("3step", other) == {"3step": STEPS["3step"]}


def test_a_session_is_not_described_by_the_weights_of_the_one_before(play, folder):
    played = play(weights=str(folder), student="3step", denoising_steps=list(STEPS["3step"]))
    made_by(played, 3)
    with played.engine.changed:
        played.engine.start(Start(2, A, steps=2))
        with pytest.raises(UserError, match="has not begun"):
            played.engine.session()
    played.watch(1)
    assert played.engine.session()["weights"]["source"].endswith("student 2step")


def test_of_two_students_of_as_many_steps_the_first_takes_them():
    recipes = Recipes([1000, 500], 1.0, "2step", {"one": (1000,), "other": (900,)})
    assert recipes.setup(None, 1) == Setup((1000,), 1.0, "one")


def test_without_a_student_of_so_many_steps_the_models_own_are_left_out():
    recipes = Recipes([1000, 750, 500, 250], 1.0, "4step", {"2step": (1000, 400)})
    assert recipes.setup(None, None) == Setup((1000, 750, 500, 250), 1.0, "4step")
    assert recipes.setup("fast", None) == Setup((1000, 400), 1.0, "2step")
    assert recipes.setup(None, 3) == Setup((1000, 750, 250), 1.0, "4step")


def test_the_students_of_the_package_are_alike():
    steps = steps_of_alike("4step")
    assert {name: len(own) for name, own in steps.items()} == {
        f"{count}step": count for count in (1, 2, 3, 4)
    }
