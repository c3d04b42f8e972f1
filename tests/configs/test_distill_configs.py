"""Stages of distillation are configurations: all are complete, and overlays fit on all of them."""

from pathlib import Path
from typing import Any

import composed_configs
import pytest
import yaml
from composed_configs import configs
from jsonargparse import ArgumentParser

from longlive.modules.distillation import Distillation

FOLDER = Path(__file__).parents[2] / "configs" / "distill"
OVERLAYS = {"reference", "sharded", "synthetic", "no_context_update", "tensorboard"}
ALL = sorted(FOLDER.glob("*.yaml"))
STAGES = [path for path in ALL if path.stem not in OVERLAYS]


def composed(*paths: Path) -> dict[str, Any]:
    # A machine without a GPU may look at all of them.
    return composed_configs.composed("fit", *configs(*paths), "--trainer.accelerator=cpu")


def model_of(config: dict[str, Any]) -> Distillation:
    parser = ArgumentParser()
    parser.add_subclass_arguments(Distillation, "model")
    made: Distillation = parser.instantiate_classes(
        parser.parse_object({"model": config["model"]})
    ).model
    return made


def test_there_is_a_configuration_for_each_stage_of_both_models():
    tiny = {f"tiny_{name}" for name in ("pairs", "consistency", "dmd", "long")}
    tiny |= {f"tiny_{steps}step" for steps in (1, 2, 3)}
    assert {path.stem for path in STAGES} == tiny | {"flow", "pairs", "consistency", "dmd", "long"}


@pytest.mark.parametrize("stage", STAGES, ids=lambda path: path.stem)
def test_a_stage_is_complete_says_how_to_run_it_and_can_work(stage):
    lines = stage.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert any("longlive fit --config" in line for line in lines[:4])
    config = composed(stage)
    model = model_of(config)
    callbacks = [entry["class_path"] for entry in config["trainer"]["callbacks"]]
    assert any(path.endswith("SafeCheckpoint") for path in callbacks)
    assert model.plan.recomputes == (not stage.stem.startswith("tiny"))


@pytest.mark.parametrize("overlay", sorted(OVERLAYS))
@pytest.mark.parametrize("stage", ["tiny_dmd", "dmd", "long"])
def test_an_overlay_fits_on_a_stage(stage, overlay):
    path = FOLDER / f"{overlay}.yaml"
    assert len(path.read_text().splitlines()) < 15
    before = composed(FOLDER / f"{stage}.yaml")
    after = composed(FOLDER / f"{stage}.yaml", path)
    said = yaml.safe_load(path.read_text())
    assert {key for key in before if before[key] != after[key]} <= said.keys()
    model_of(after)


def test_the_reference_overlay_switches_all_decisions_and_keeps_the_rest():
    stage = composed(FOLDER / "dmd.yaml")
    model = model_of(composed(FOLDER / "dmd.yaml", FOLDER / "reference.yaml"))
    assert model.plan.decisions.cache_gradients == "leak"
    # Scale three from the prompted side is the four of the stage's own setting.
    assert model.plan.matching.guidance + 1 == stage["model"]["init_args"]["matching"]["guidance"]
    assert model.plan.matching.critic_updates == 5
