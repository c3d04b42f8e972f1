"""One iteration of every stage of distillation: its command, its figures, its table."""

import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import measure_distillation as tool
import pytest

from longlive.cli import main as longlive
from longlive.data.pair_shards import PairShards

HEADER = (
    "epoch,memory/iteration_gib,step,time/iteration_s,time/student_rollout_s,train/student_loss"
)


def cells(page: str, start: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith(f"| {start}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def runs(monkeypatch):
    """Stages that log what they are told to, and run nothing: ``name: (exit code, said, rows)``."""
    told: dict[str, tuple[int, str, list[str]]] = {}

    def run(words, timeout_s, cwd, stdout, **options):
        save_dir = next(w for w in words if w.startswith("--trainer.logger.save_dir="))
        name = save_dir.partition("=")[2]
        code, said, rows = told[name]
        folder = Path(cwd) / name / "x" / "version_0"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("\n".join([HEADER, *rows]) + "\n")
        stdout.write(said)
        return code

    monkeypatch.setattr(tool, "run_whole", run)
    return told


def measure(folder: Path, *words: str) -> tuple[int, dict, str]:
    code = tool.main(["--size", "tiny", "--output", str(folder), "--commit", "abc", *words])
    results = json.loads((folder / "distillation.json").read_text())
    return code, results, (folder / "distillation.md").read_text()


def test_the_last_iteration_counts_and_the_peak_of_the_run_is_of_all(runs, tmp_path):
    runs["dmd"] = (0, "", ["0,70.5,0,9.0,5.0,0.5", "1,64.0,1,3.0,2.0,0.25"])
    code, results, page = measure(tmp_path, "--stages", "dmd")
    assert code == 0
    assert results["commit"] == "abc"
    (run,) = results["stages"]
    assert [row["train/student_loss"] for row in run["iterations"]] == [0.5, 0.25]
    whole, rollout, rest = cells(page, "self-forcing DMD")
    assert whole[1:5] == ["finite", "3.00", "64.00", "70.50"]
    assert rollout[1:3] == ["student rollout", "2.00"]
    assert rest[1:3] == ["rest", "1.00"]
    assert run["command"] in page
    assert run["command"].startswith("longlive fit --config=configs/distill/dmd.yaml")


def test_a_long_video_counts_its_first_chunk_and_one_after_a_switch(runs, tmp_path):
    runs["long"] = (0, "", [f"{i},,{i},{i + 1},1,0.5" for i in range(4)])
    code, _, page = measure(tmp_path, "--stages", "long")
    assert code == 0
    first, _, _ = cells(page, "streaming long tuning: first")
    later, _, _ = cells(page, "streaming long tuning: chunk after")
    assert (first[2], later[2]) == ("3.00", "4.00")


def test_a_stage_that_fails_is_a_row_and_the_others_are_measured(runs, tmp_path):
    good = ["0,1,0,1,1,0.5", "1,1,1,1,1,0.5"]
    said = "Traceback\n\ntorch.OutOfMemoryError: CUDA out of memory.\n"
    runs |= {"flow": (1, said, good[:1]), "pairs": (0, "", good[:1]), "dmd": (0, "", good)}
    code, results, page = measure(tmp_path, "--stages", "flow", "pairs", "dmd")
    assert code == 1
    assert "torch.OutOfMemoryError: CUDA out of memory." in cells(page, "teacher-forced")[0][1]
    assert "1 iterations were logged, not 2" in cells(page, "ODE-pair")[0][1]
    assert cells(page, "self-forcing")[0][1] == "finite"
    assert [len(run["iterations"]) for run in results["stages"]] == [1, 1, 2]
    assert said in (tmp_path / "logs" / "flow.log").read_text()


@pytest.mark.parametrize("loss", ["nan", "inf", ""])
def test_a_loss_that_is_not_finite_or_not_there_is_a_failure(loss, runs, tmp_path):
    runs["dmd"] = (0, "", ["0,1,0,1,1,0.5" if loss else "0,1,0,1,1,", f"1,1,1,1,1,{loss}"])
    code, results, page = measure(tmp_path, "--stages", "dmd")
    assert code == 1
    assert results["stages"][0]["finite"] is False
    assert cells(page, "self-forcing")[0][1] == "not finite"


def test_no_stage_is_begun_when_the_time_is_up_and_a_taken_folder_is_refused(
    runs, tmp_path, capsys
):
    code, _, page = measure(tmp_path, "--stages", "dmd", "--seconds", "-1")
    assert code == 1
    assert "left out" in cells(page, "self-forcing")[0][1]
    assert tool.main(["--size", "tiny", "--output", str(tmp_path)]) == 2
    assert "is not empty: name another folder, or add --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("size", list(tool.SIZES))
@pytest.mark.parametrize("name", list(tool.STAGES))
def test_a_command_is_one_that_fit_takes(name, size, capsys):
    given = {"size": size, "iterations": 2, "compile": True, "set": ["model.lora_rank=4"]}
    args = Namespace(**given, devices=1 if size == "tiny" else 2)
    command = [*tool.command_of(name, args), "--trainer.accelerator=cpu", "--print_config"]
    assert longlive(command) == 0
    written = capsys.readouterr()
    assert "weights: synthetic" in written.out
    assert "lora_rank: 4" in written.out
    assert ("ModelParallelStrategy" in written.out) == (size != "tiny")


@pytest.mark.slow
def test_a_stage_is_measured_from_end_to_end(tmp_path):
    code, results, page = measure(tmp_path, "--stages", "pairs")
    assert code == 0
    (run,) = results["stages"]
    assert [row["step"] for row in run["iterations"]] == [0, 1]
    whole, *parts = cells(page, "ODE-pair regression")
    assert whole[1] == "finite"
    known = ["text", "student forward", "student backward", "student step", "rest"]
    assert [part[1] for part in parts] == known
    assert sum(float(part[2]) for part in parts) == pytest.approx(float(whole[2]), rel=0.05)


def test_clips_and_pairs_have_the_format_of_real_ones(tmp_path):
    tool.make_data(tmp_path, "wan-1.3b")
    clips, pairs = (PairShards(tmp_path / name) for name in ("clips", "pairs"))
    assert clips.read([0]).states.shape == (1, 1, 21, 16, 60, 104)
    batch = pairs.read([0])
    assert batch.states.shape == (1, 5, 21, 16, 60, 104)
    assert batch.sigmas.tolist()[::4] == [1, 0]


GRANDCHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
"""


@pytest.mark.parametrize("fails", [True, False], ids=["it fails", "it takes too long"])
def test_a_stage_that_ends_takes_all_of_its_processes_with_it(tmp_path, fails):
    said = tmp_path / "said"
    words = [sys.executable, "-c", GRANDCHILD + ("sys.exit(3)" if fails else "time.sleep(60)")]
    with said.open("w") as file:
        if fails:
            assert tool.run_whole(words, 30, stdout=file) == 3
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                tool.run_whole(words, 3, stdout=file)
    pid = int(said.read_text())
    end = time.monotonic() + 10
    while time.monotonic() < end and is_running(pid):
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
