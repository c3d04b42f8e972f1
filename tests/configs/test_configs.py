"""Every configuration that ships: bases are complete, overlays say one thing on top of any base."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from composed_configs import composed, configs

from longlive.data.prompt_files import read_prompt_file
from longlive.data.prompts import PromptDataModule
from longlive.modules.longlive import LongLive
from longlive.shapes import parse, training_prompts

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
LONGEST_OVERLAY = 15
# Folders of files that are no overlays of predict.
APART = {"distill", "train", "prompts", "ceilings", "benchmark", "eval", "recipes"}

BASES = sorted(CONFIGS.glob("*.yaml"))
OVERLAYS = [path for path in sorted(CONFIGS.glob("*/*.yaml")) if path.parent.name not in APART]
TRAINING = sorted((CONFIGS / "train").glob("*.yaml"))
PROMPTS = sorted(path for path in (CONFIGS / "prompts").iterdir() if path.is_file())


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def assert_says(whole: Any, part: Any, where: str = "") -> None:
    """Everything that ``part`` sets is so in ``whole``."""
    if isinstance(part, list) and isinstance(whole, list):
        for item, wanted in zip(whole, part, strict=True):
            assert_says(item, wanted, where)
    elif isinstance(part, dict):
        for key, value in part.items():
            found = whole[key.removesuffix("+")]
            assert_says(
                found[-len(value) :] if key.endswith("+") else found, value, f"{where}.{key}"
            )
    else:
        assert whole == part, where


def model_of(config: dict[str, Any]) -> LongLive:
    assert config["model"]["class_path"] == "longlive.modules.longlive.LongLive"
    return LongLive(**config["model"]["init_args"])


def test_there_are_bases_overlays_and_prompts():
    assert {name_of(path) for path in BASES} == {"base.yaml", "tiny.yaml"}
    needed = {"attention/sdpa.yaml", "length/infinity.yaml", "output/png.yaml", "window/9.yaml"}
    assert needed <= {name_of(path) for path in OVERLAYS}
    assert PROMPTS


@pytest.mark.parametrize("base", BASES, ids=name_of)
def test_a_base_is_complete(base):
    config = composed("predict", *configs(base))
    assert_says(config, yaml.safe_load(base.read_text()))
    model_of(config)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name_of)
@pytest.mark.parametrize("base", BASES, ids=name_of)
def test_an_overlay_changes_what_it_says_and_nothing_else(base, overlay):
    before = composed("predict", *configs(base))
    after = composed("predict", *configs(base, overlay))
    said = yaml.safe_load(overlay.read_text())
    assert_says(after, said)
    kept = before["trainer"]["callbacks"]
    assert after["trainer"]["callbacks"][: len(kept)] == kept
    changed = {key for key in before if before[key] != after[key]}
    assert changed <= said.keys()
    arguments = before["model"]["init_args"].items()
    changed = {key for key, value in arguments if after["model"]["init_args"][key] != value}
    assert changed <= said.get("model", {}).get("init_args", {}).keys()
    model_of(after)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name_of)
def test_an_overlay_is_short_says_what_it_does_and_keeps_the_callbacks(overlay):
    text = overlay.read_text()
    lines = text.splitlines()
    assert len(lines) < LONGEST_OVERLAY
    assert re.match(r"# \S", lines[0])
    assert "callbacks" not in yaml.safe_load(text).get("trainer", {})


def test_callbacks_with_a_plus_are_appended_in_the_order_of_the_overlays(tmp_path):
    overlays = []
    for name in ("compile.CompileLayers", "channels_last.ChannelsLast"):
        entry = {"class_path": f"longlive.callbacks.{name}"}
        overlays.append(tmp_path / f"{name}.yaml")
        overlays[-1].write_text(yaml.safe_dump({"trainer": {"callbacks+": [entry]}}))
    config = composed("predict", *configs(CONFIGS / "tiny.yaml", *overlays))
    paths = [callback["class_path"] for callback in config["trainer"]["callbacks"]]
    assert [path.rpartition(".")[2] for path in paths] == [
        *("FrameWriter", "RolloutProgress", "CompileLayers", "ChannelsLast")
    ]


def test_an_option_overrides_every_file():
    overlays = CONFIGS / "tiny.yaml", CONFIGS / "window" / "9.yaml"
    options = ("--model.window_latent_frames=6", "--seed=7")
    config = composed("predict", *configs(*overlays), *options)
    assert config["model"]["init_args"]["window_latent_frames"] == 6
    assert config["seed"] == 7


@pytest.mark.parametrize("config", TRAINING, ids=name_of)
def test_a_training_configuration_is_complete(config):
    assert_says(composed("fit", *configs(config)), yaml.safe_load(config.read_text()))


@pytest.mark.parametrize("path", PROMPTS, ids=name_of)
def test_prompts_are_ones_that_training_may_use_and_fit_the_embedded_models_video(path):
    known = set(training_prompts())
    assert all(parse(text) in known for entry in read_prompt_file(path) for text in entry.prompts)
    data = PromptDataModule(prompts_file=path)
    data.setup("predict")
    settings = yaml.safe_load((CONFIGS / "tiny.yaml").read_text())["model"]["init_args"]
    spec = LongLive(**settings).spec
    for script in data.scripts:
        timeline = script.timeline(spec.latent_frames, spec.geometry.block_latent_frames)
        shown = timeline.plan(spec.latent_frames, spec.geometry.block_latent_frames)
        assert [prompt for _, prompt in shown] == list(script.prompts)


def test_interactive_prompts_switch_at_named_and_at_equal_places():
    entries = read_prompt_file(CONFIGS / "prompts" / "interactive.jsonl")
    assert all(len(entry.prompts) > 1 for entry in entries)
    assert {entry.switch_latent_frames is None for entry in entries} == {True, False}
