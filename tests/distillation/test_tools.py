"""The programs around distillation: pairs of a teacher, and weights out of a checkpoint."""

import json
from itertools import pairwise

import export_student
import make_ode_pairs
import pytest
import torch
from nano_distillation import fit, nano_folder

from longlive.data.pair_shards import PairShards, shard_path
from longlive.errors import UserError
from longlive.modules.longlive import LongLive

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return nano_folder(tmp_path_factory.mktemp("nano"))


def make(weights, folder, *options: str) -> int:
    prompts = weights / "prompts.txt"
    prompts.write_text("a red circle\na blue square\na circle\n")
    given = {
        "--pairs": 4,
        "--batch": 2,
        "--weights": weights,
        "--prompts": prompts,
        "--height": 32,
        "--width": 48,
        "--latent-frames": 6,
        "--steps": 4,
        "--device": "cpu",
    }
    words = [str(word) for pair in given.items() for word in pair]
    return make_ode_pairs.main([str(folder), *words, *options])


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_pairs_of_a_teacher_are_made_and_a_stopped_run_is_gone_on_with(kind, weights, tmp_path):
    assert make(weights, tmp_path, "--kind", kind, "--window", "6") == 0
    shards = PairShards(tmp_path)
    assert len(shards) == 4
    batch = shards.read([0, 3])
    assert batch.states.shape == (2, 5, 6, 16, 4, 6)
    assert batch.sigmas.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert 0.9 < float(batch.states[:, 0].std()) < 1.1
    second = shard_path(tmp_path, 1)
    before = second.read_bytes()
    first = shard_path(tmp_path, 0)
    first.unlink()
    time = second.stat().st_mtime_ns
    assert make(weights, tmp_path, "--kind", kind, "--window", "6") == 0
    assert second.stat().st_mtime_ns == time
    assert second.read_bytes() == before
    assert torch.equal(PairShards(tmp_path).read([0]).states, batch.states[:1])


def test_pairs_that_would_not_fit_the_students_steps_are_refused(weights, tmp_path, capsys):
    assert make(weights, tmp_path, "--keep", "1000", "900") == 2
    assert "make_ode_pairs: error: 4 equal steps do not stop at 900" in capsys.readouterr().err


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_an_exported_student_makes_videos(lora_rank, weights, tmp_path):
    fit(tmp_path / "run", weights, 2, lora_rank=lora_rank)
    last = str(tmp_path / "run" / "last.ckpt")
    output = tmp_path / "student"
    options = ["--layout", "embedded", "--base", str(weights)]
    assert export_student.main([last, str(output), *options]) == 0
    assert json.loads((output / "config.json").read_text())["dit"]["width"] == 16
    model = LongLive(
        weights=str(output),
        size="tiny",
        height_px=32,
        width_px=48,
        latent_frames=6,
        denoising_steps=[1000, 500],
        window_latent_frames=6,
        first_denoising_steps=[1000, 750, 500],
        updates_context=False,
    )
    blocks = list(model.stream("a red circle"))
    assert sum(block.frames.shape[1] for block in blocks) == 21
    assert export_student.main([last, str(tmp_path / "student.pt")]) == 0
    code = export_student.main([last, str(tmp_path / "lora.pt"), "--layout", "lora"])
    assert code == (2 if lora_rank is None else 0)


def test_students_of_two_runs_lie_beside_their_teacher_and_are_chosen_by_name(weights, tmp_path):
    output = tmp_path / "all"
    for name in ("4step", "2step"):
        fit(tmp_path / name, weights, 3 if name == "4step" else 1)
        last = str(tmp_path / name / "last.ckpt")
        options = ["--student", name, "--base", str(weights)]
        assert export_student.main([last, str(output), *options]) == 0
    heads = []
    for student in (None, "4step", "2step"):
        model = LongLive(
            weights=str(output),
            student=student,
            size="tiny",
            height_px=32,
            width_px=48,
            latent_frames=3,
        )
        heads.append(model.prepare("cpu").dit.head.head.weight)
        assert (student or "") in model.parts.source
    assert not any(torch.equal(a, b) for a, b in pairwise(heads))
    with pytest.raises(UserError, match="choose one of 4step, 2step"):
        LongLive(weights=str(output), student="1step", seconds=1).prepare("cpu")
    with pytest.raises(UserError, match="synthetic weights have no students"):
        LongLive(weights="synthetic", size="tiny", student="1step", seconds=1).prepare("cpu")


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, capsys):
    assert export_student.main([str(tmp_path / "absent.ckpt"), str(tmp_path / "x.pt")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
