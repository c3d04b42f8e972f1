"""A recorded session makes the same latents again, from the command line, bit for bit."""

import json
import logging
from pathlib import Path

import pytest
import torch

from longlive.cli import main
from longlive.live.protocol import Back, Start
from longlive.rollout.transitions import Transition
from longlive.video.latents import read_latents

A, B, C, D = "a large red circle", "a small blue square", "a small red square", "a large circle"


def predict(*args: str) -> tuple[int, list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("longlive").addHandler(handler)
    try:
        return main(["predict", *args]), lines
    finally:
        logging.getLogger("longlive").removeHandler(handler)


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def session(play, tmp_path):
    """Two switches and a branch with a blend, another seed and a cut; the latents; the file."""
    played = play(guidance=2.0)
    engine = played.engine
    engine.start(Start(1, A, seed=3, recipe="standard", steps=2))
    played.watch_blocks(2)
    engine.change_prompt(B, request=2)
    played.watch_blocks(3)
    engine.change_prompt(C, request=3, transition=Transition("blend", 2))
    played.watch_blocks(3)
    engine.back(Back(4, 0, 3, prompt=D, seed=11))
    played.watch_blocks(2)
    engine.change_prompt(A, request=5, transition=Transition("cut"))
    played.watch_blocks(3)
    engine.pause()
    with engine.changed:
        record = engine.session()
        made = dict(played.latents.made)
    branches = record["branches"]
    assert [len(branch["prompts"]) for branch in branches] == [3, 2]
    return write(tmp_path / "session.json", record), record, made


def test_replaying_two_switches_and_a_branch_gives_bit_equal_latents(session, tmp_path, capsys):
    path, record, made = session
    output = tmp_path / "again"
    code, lines = predict("--session", str(path), "--latents", "true", "--output", str(output))
    assert code == 0, lines
    files = sorted(output.glob("*.safetensors"))
    assert len(files) == 2
    fork = record["branches"][1]["block"]
    for branch, file in zip(record["branches"], files, strict=True):
        latents, _ = read_latents(file)
        assert latents.shape[1] == 3 * branch["blocks"]
        for block in range(branch["blocks"]):
            owner = branch["id"] if block >= branch["block"] else 0
            replayed = latents[:, 3 * block : 3 * block + 3]
            assert torch.equal(replayed, made[owner, block]), (branch["id"], block)
    first, second = (read_latents(file)[0] for file in files)
    shared = 3 * fork
    assert torch.equal(first[:, :shared], second[:, :shared])
    assert not torch.equal(first[:, shared : shared + 3], second[:, shared : shared + 3])


def test_the_same_session_with_other_weights_is_refused(session, tmp_path, capsys):
    path, record, _ = session
    record["weights"]["hash"] = "sha256:0"
    code, _ = predict("--session", str(write(path, record)), "--output", str(tmp_path / "x"))
    assert code == 2
    assert "made with other weights" in capsys.readouterr().err


def test_a_configuration_after_the_session_changes_it(session, tmp_path, capsys):
    path, record, _ = session
    code, _ = predict(
        "--session", str(path), "--model.weights", str(tmp_path / "none"), "--output", "x"
    )
    assert code == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--session"], "--session needs a file"),
        (["--session", "none.json"], "cannot read the session none.json"),
        (["--session=none.json"], "cannot read the session none.json"),
        (["--session", "none.jsonl"], "no data and model to predict"),
        (["--session", "a.json", "--prompt", "b"], "--prompt does not go with --session"),
        (["--prompts=b.txt", "--session", "a.json"], "--prompts does not go with --session"),
    ],
)
def test_a_session_that_cannot_be_played_is_refused_in_one_line(args, message, capsys):
    code, _ = predict(*args)
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_official_interactive_file_plays_as_well(nano_settings, tmp_path):
    lines = {"prompts": [A, B, C], "switch_frame_indices": [2, 6]}
    file = tmp_path / "interactive.jsonl"
    file.write_text(json.dumps(lines) + "\n")
    config = write(
        tmp_path / "nano.yaml",
        {
            "model": {"init_args": {**nano_settings, "seconds": None, "latent_frames": 9}},
            "trainer": {"accelerator": "cpu"},
        },
    )
    output = tmp_path / "played"
    tiny = Path(__file__).parents[2] / "configs" / "tiny.yaml"
    code, said = predict(
        "--config",
        str(tiny),
        "--config",
        str(config),
        "--session",
        str(file),
        "--output",
        str(output),
    )
    assert code == 0, said
    sidecar = json.loads(next(output.glob("*.json")).read_text())
    assert [prompt["latent_frame"] for prompt in sidecar["prompts"]] == [0, 3, 6]
