"""Distillation as a command: on two processes, after SIGTERM, and with a disk that is full."""

import csv
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import export_student
import pytest
import torch
from nano_distillation import nano_folder, prompts_file
from processes import run_commands

from longlive.weights.state_dicts import read_checkpoint

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "distill"
OPTIONS = {
    "trainer.accelerator": "cpu",
    "trainer.precision": "32-true",
    "trainer.log_every_n_steps": 1,
    "model.clip": '{"height_px": 32, "width_px": 48, "latent_frames": 6, "shift": 3.0,'
    ' "window_latent_frames": 6, "denoising_steps": [1000, 500]}',
    "model.matching.critic_updates": 2,
    "model.updates.student_rate": 1e-3,
    "model.compiles_scores": "false",
}
CALLBACKS = (
    "[{class_path: longlive.callbacks.safe_checkpoint.SafeCheckpoint,"
    " init_args: {folder: checkpoints, every: EVERY}}]"
)

pytestmark = pytest.mark.slow


def fit_words(weights: Path, steps: int, *options: str, every: int = 100) -> list[str]:
    settings = {
        **OPTIONS,
        "model.weights": weights,
        "data": "longlive.data.training_prompts.TrainingPrompts",
        "data.prompts": prompts_file(weights),
        "data.batch_size": 2,
        "trainer.max_steps": steps,
        "trainer.callbacks": CALLBACKS.replace("EVERY", str(every)),
    }
    given = [f"--{name}={value}" for name, value in settings.items()]
    config = f"--config={CONFIGS / 'tiny_dmd.yaml'}"
    return ["fit", config, *given, *options]


def start(folder: Path, words: list[str]) -> "subprocess.Popen[str]":
    """The program itself, which starts its other processes itself."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "longlive", *words]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def train(folder: Path, words: list[str], count: int = 1) -> None:
    for ended in run_commands(words, folder, count):
        assert ended.code == 0, ended.errors


def logged(folder: Path) -> list[dict[str, float]]:
    [path] = folder.glob("runs/tiny_dmd/*/metrics.csv")
    with path.open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return nano_folder(tmp_path_factory.mktemp("nano"))


def test_two_processes_train_what_one_with_twice_the_batch_does(weights, tmp_path):
    """Only the devices and the strategy are others; and a sharded run is gone on with."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, fit_words(weights, 4, "--data.batch_size=2", "--model.updates.micro_batches=2"))
    sharded = (
        f"--config={CONFIGS / 'sharded.yaml'}",
        "--trainer.devices=2",
        "--data.batch_size=1",
    )
    two.mkdir()
    running = start(two, fit_words(weights, 2, *sharded))
    _, errors = running.communicate(timeout=240)
    assert running.returncode == 0, errors
    resume = "--ckpt_path=checkpoints/last.ckpt"
    train(two, fit_words(weights, 4, *sharded, resume, "--trainer.logger=false"), 2)
    for a, b in zip(logged(one), logged(two), strict=False):
        for name in ("train/student_loss", "train/critic_loss", "train/critic_gradient_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name
    exported = tmp_path / "two.pt"
    arguments = [str(two / "checkpoints" / "last.ckpt"), str(exported), "--network=student"]
    assert export_student.main(arguments) == 0
    whole = read_checkpoint(one / "checkpoints" / "last.ckpt")["state_dict"]
    both = read_checkpoint(exported)["generator"]
    assert both
    for name, value in both.items():
        ours = whole[f"student.{name.removeprefix('model.')}"]
        assert torch.allclose(ours, value, atol=1e-5), name


def test_another_strategy_of_several_processes_is_refused(weights, tmp_path):
    words = fit_words(weights, 2, "--trainer.devices=2", "--trainer.strategy=ddp")
    for ended in run_commands(words, tmp_path, 2):
        assert ended.code == 2
        assert "set trainer.strategy to lightning.pytorch.strategies.ModelParallelStrategy" in (
            ended.errors
        )


def test_sigterm_saves_and_exits(weights, tmp_path):
    running = start(tmp_path, fit_words(weights, 100000, every=1))
    last = tmp_path / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while running.poll() is None and not last.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors
    assert "told to stop: saved checkpoints/last.ckpt" in errors
    assert "Traceback" not in errors
    assert read_checkpoint(last)["global_step"] > 0


def no_room_for_a_checkpoint() -> None:
    # A file may not grow beyond half a checkpoint; what a full disk says, the file says.
    half = Path("checkpoints/last.ckpt").stat().st_size // 2
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))


def test_a_full_disk_leaves_the_checkpoint_before_it_and_says_so_in_one_line(weights, tmp_path):
    train(tmp_path, fit_words(weights, 2, every=1))
    last = tmp_path / "checkpoints" / "last.ckpt"
    words = fit_words(weights, 4, f"--ckpt_path={last}", "--trainer.logger=false", every=1)
    [ended] = run_commands(words, tmp_path, prepare=no_room_for_a_checkpoint)
    assert ended.code == 2, ended.errors
    message = ended.errors.strip().splitlines()[-1]
    assert message.startswith("longlive: error: cannot write checkpoints/step-0000003.ckpt")
    assert "step-0000002.ckpt is kept" in message
    assert read_checkpoint(last)["global_step"] == 2
    assert not list((tmp_path / "checkpoints").glob(".*"))


PROBE = "{class_path: state_probe.StateProbe, init_args: {path: PATH}}"


def test_a_checkpoint_written_by_two_processes_loads_on_one_and_on_three(weights, tmp_path):
    def sharded(devices: int, steps: int, *options: str) -> list[str]:
        probe = PROBE.replace("PATH", f"on-{devices}.pt")
        callbacks = f"{CALLBACKS.replace('EVERY', '100')[:-1]}, {probe}]"
        return fit_words(
            weights,
            steps,
            f"--config={CONFIGS / 'sharded.yaml'}",
            f"--trainer.devices={devices}",
            "--data.batch_size=1",
            "--trainer.logger=false",
            f"--trainer.callbacks={callbacks}",
            *options,
        )

    train(tmp_path, sharded(2, 2), 2)
    written = torch.load(tmp_path / "on-2.pt", weights_only=True)
    (tmp_path / "checkpoints").rename(tmp_path / "kept")
    for devices in (1, 3):
        train(tmp_path, sharded(devices, 3, "--ckpt_path=kept/last.ckpt"), devices)
        loaded = torch.load(tmp_path / f"on-{devices}-start.pt", weights_only=True)
        assert loaded["step"] == written["step"] == 2
        for part in ("weights", "optimizers"):
            assert loaded[part].keys() == written[part].keys()
            for name, value in written[part].items():
                assert torch.equal(loaded[part][name], value), name
