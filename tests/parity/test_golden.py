"""Our modules against recorded tensors of the official ones, through ``tools/check_parity.py``."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

TOOL = Path(__file__).parents[2] / "tools" / "check_parity.py"
CASES = [
    "01-causal-forward-b1",
    "01-causal-forward-b2-shortprompt",
    "02-rollout-global-block3-batch2",
    "02-rollout-local6-sink0-block3",
    "02-rollout-local6-sink2-block2",
    "02-rollout-quirk-sink4-block2",
    "03-infinity-local6-sink0-block3",
    "03-infinity-local6-sink2-block2",
    "04-switch-early-global-sink",
    "04-switch-global-sink",
    "04-switch-infinity-global-sink",
    "04-switch-reset-sink",
    "05-scheduler",
    "06-umt5-long",
    "06-umt5-short",
    "07-vae",
    "08-bidirectional",
    "09-lora-rank4",
    "10-dmd",
]

Change = Callable[[dict, dict[str, torch.Tensor]], None]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    description = importlib.util.spec_from_file_location("check_parity", TOOL)
    assert description is not None
    assert description.loader is not None
    module = importlib.util.module_from_spec(description)
    sys.modules["check_parity"] = module
    description.loader.exec_module(module)
    return module


def test_every_golden_case_is_checked(tool, golden_dir):
    assert sorted(path.stem for path in tool.case_files(golden_dir)) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_every_recorded_tensor_is_matched_within_its_tolerance(tool, golden_dir, name):
    case = tool.check(golden_dir / f"{name}.json", torch.float32)
    assert case is not None
    assert case.missed() == []
    assert case.worst <= 1, f"{case.worst} times the tolerance in {case.worst_key}"


@pytest.fixture
def changed(golden_dir: Path, tmp_path: Path) -> Callable[[str, Change], Path]:
    """A copy of a golden case in which a weight or a setting is another."""

    def copy(name: str, change: Change) -> Path:
        manifest = json.loads((golden_dir / f"{name}.json").read_text())
        shutil.copy(golden_dir / f"{name}.safetensors", tmp_path)
        shutil.copytree(golden_dir / "weights", tmp_path / "weights")
        weights = load_file(golden_dir / manifest["weights"]["model"])
        change(manifest, weights)
        path = tmp_path / manifest["weights"]["model"]
        save_file(weights, path)
        copied = tmp_path / f"{name}.json"
        copied.write_text(json.dumps(manifest))
        return copied

    return copy


def nothing(manifest: dict, weights: dict[str, torch.Tensor]) -> None:
    """The control of the controls: a copy passes."""


def a_weight_is_one_percent_larger(manifest: dict, weights: dict[str, torch.Tensor]) -> None:
    weights["blocks.1.cross_attn.norm_k.weight"] *= 1.01


def queries_and_keys_are_exchanged(manifest: dict, weights: dict[str, torch.Tensor]) -> None:
    for kind in ("weight", "bias"):
        q, k = (f"blocks.0.self_attn.{name}.{kind}" for name in "qk")
        weights[q], weights[k] = weights[k], weights[q]


def the_sink_is_one_shorter(manifest: dict, weights: dict[str, torch.Tensor]) -> None:
    manifest["config"]["sink_size"] -= 1


def the_window_is_one_shorter(manifest: dict, weights: dict[str, torch.Tensor]) -> None:
    manifest["config"]["local_attn_size"] -= 1


def positions_are_relative(manifest: dict, weights: dict[str, torch.Tensor]) -> None:
    manifest["config"]["use_infinite_attention"] = True


def the_shift_is_another(manifest: dict, weights: dict[str, torch.Tensor]) -> None:
    manifest["config"]["timestep_shift"] = 8.0


def the_sink_is_not_kept(manifest: dict, weights: dict[str, torch.Tensor]) -> None:
    manifest["config"]["global_sink"] = False


def the_switch_is_a_block_later(manifest: dict, weights: dict[str, torch.Tensor]) -> None:
    block = manifest["config"]["num_frame_per_block"]
    manifest["config"]["switch_frame_indices"][0] += block


def guidance_is_one_more(manifest: dict, weights: dict[str, torch.Tensor]) -> None:
    manifest["config"]["guidance_scale"] += 1


def scores_have_the_students_table(manifest: dict, weights: dict[str, torch.Tensor]) -> None:
    manifest["config"]["score_timestep_shift"] = manifest["config"]["timestep_shift"]


def the_text_gets_no_gradient(manifest: dict, weights: dict[str, torch.Tensor]) -> None:
    manifest["config"]["gradient_checkpointing"] = False


def the_context_is_noisier(manifest: dict, weights: dict[str, torch.Tensor]) -> None:
    manifest["config"]["context_noise"] = 20


def test_an_unchanged_copy_of_a_case_passes(tool, changed):
    case = tool.check(changed("04-switch-global-sink", nothing), torch.float32)
    assert case.worst <= 1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("01-causal-forward-b1", a_weight_is_one_percent_larger),
        ("01-causal-forward-b1", queries_and_keys_are_exchanged),
        ("02-rollout-local6-sink2-block2", a_weight_is_one_percent_larger),
        ("02-rollout-local6-sink2-block2", the_sink_is_one_shorter),
        ("02-rollout-local6-sink2-block2", the_window_is_one_shorter),
        ("02-rollout-local6-sink2-block2", positions_are_relative),
        ("02-rollout-local6-sink2-block2", the_shift_is_another),
        ("04-switch-global-sink", the_sink_is_not_kept),
        ("04-switch-global-sink", the_switch_is_a_block_later),
        ("08-bidirectional", a_weight_is_one_percent_larger),
        ("10-dmd", a_weight_is_one_percent_larger),
        ("10-dmd", the_sink_is_one_shorter),
        ("10-dmd", the_window_is_one_shorter),
        ("10-dmd", guidance_is_one_more),
        ("10-dmd", scores_have_the_students_table),
        ("10-dmd", the_text_gets_no_gradient),
        ("10-dmd", the_context_is_noisier),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_subtle_mistake_exceeds_the_tolerance_tenfold(tool, changed, name, change):
    case = tool.check(changed(name, change), torch.float32)
    assert not case.worst <= 10
