"""``predict`` on two processes: one video in both, a video in each, and the end of one of them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from nano_model import DIT, SETTINGS, write_nano_model
from processes import run_commands
from safetensors.torch import load_file

from longlive.callbacks.frame_writer import FrameWriter
from longlive.modules.longlive import LongLive

ROOT = Path(__file__).parents[2]
PARALLEL = ROOT / "configs" / "parallel"
PROMPTS = ("a red circle", "a blue square", "a large circle spins")
SEED = 5

pytestmark = pytest.mark.slow


def predict_words(weights: Path, overlay: str, *options: str) -> list[str]:
    settings = {**SETTINGS, "student": "null", "weights": weights, "guidance": 1.0, "shift": 5.0}
    configs = [ROOT / "configs" / "tiny.yaml", PARALLEL / overlay]
    return [
        "predict",
        *(f"--config={config}" for config in configs),
        *(f"--model.{name}={value}" for name, value in settings.items()),
        *("--model.seconds=null", "--model.latent_frames=9"),
        *("--trainer.accelerator=cpu", "--trainer.devices=2", "--latents=true"),
        *(f"--seed={SEED}", *options),
    ]


def start(folder: Path, words: list[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "longlive", *words]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def latents_in(path: Path) -> torch.Tensor:
    [latents] = load_file(path).values()
    return latents


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    dit = replace(DIT, width=48, ffn_width=48)
    return write_nano_model(tmp_path_factory.mktemp("nano"), dit=dit)


@pytest.fixture(scope="module")
def alone(weights, tmp_path_factory) -> dict[str, Path]:
    """The latents of each video, made by one process."""
    folder = tmp_path_factory.mktemp("alone")
    model = LongLive(weights=str(weights), latent_frames=9, dtype="float32", **SETTINGS)
    for index, prompt in enumerate(PROMPTS):
        writer = FrameWriter(folder, latents=True)
        stream = model.prepare("cpu").stream(
            prompt, seed=SEED + index, index=index, callbacks=[writer]
        )
        for _ in stream:
            pass
    return {path.name: path for path in folder.glob("*.safetensors")}


def test_each_video_of_a_file_is_made_once_and_is_the_one_that_one_process_makes(
    weights, alone, tmp_path
):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    running = start(tmp_path, predict_words(weights, "videos.yaml", "--prompts=prompts.txt"))
    _, errors = running.communicate(timeout=240)
    assert running.returncode == 0, errors
    made = sorted((tmp_path / "outputs").iterdir())
    assert len([path for path in made if path.suffix == ".mp4"]) == len(made) / 3 == 3
    assert {path.name for path in made if path.suffix == ".safetensors"} == alone.keys()
    for name, path in alone.items():
        assert torch.equal(latents_in(tmp_path / "outputs" / name), latents_in(path)), name
    for index, path in enumerate(path for path in made if path.suffix == ".json"):
        assert json.loads(path.read_text())["seed"] == SEED + index
    assert [errors.count(f"video {index}: ") for index in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("overlay", ["sequence.yaml", "sequence_rests.yaml"])
def test_one_video_on_two_processes_is_written_once(weights, alone, tmp_path, overlay):
    words = predict_words(weights, overlay, f"--prompt={PROMPTS[0]}")
    for ended in run_commands(words, tmp_path, 2):
        assert ended.code == 0, ended.errors
    made = {path.name: path for path in (tmp_path / "outputs").iterdir()}
    assert len(made) == 3
    [name] = made.keys() & alone.keys()
    got, expected = latents_in(made[name]), latents_in(alone[name])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("overlay", "victim"), [("videos.yaml", "second"), ("sequence.yaml", "first")]
)
def test_a_process_that_dies_ends_the_run_within_a_minute_and_is_named(
    weights, tmp_path, overlay, victim
):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    words = predict_words(weights, overlay, "--prompts=prompts.txt", "--model.latent_frames=900")
    running = start(tmp_path, words)
    deadline = time.monotonic() + 120
    parts = 2 if overlay == "videos.yaml" else 1
    while len(list(tmp_path.glob("outputs/.*.part.mp4"))) < parts:
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    [second] = children_of(running.pid)
    pid = running.pid if victim == "first" else second
    os.kill(pid, signal.SIGKILL)
    died = time.monotonic()
    _, errors = running.communicate(timeout=60)
    while is_running(second) and time.monotonic() - died < 60:
        time.sleep(0.2)
    assert time.monotonic() - died < 60
    assert not is_running(second)
    assert running.returncode != 0
    assert f"PID {pid}" in errors
    # The process that is left may have had the time to end its video, which is then a whole one.
    for path in (tmp_path / "outputs").glob("[!.]*.mp4"):
        assert path.with_suffix(".json").is_file()
        with av.open(str(path)) as video:
            assert next(video.decode(video=0))
