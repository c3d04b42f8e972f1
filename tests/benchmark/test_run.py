"""A benchmark's folder: what is in it, whatever ends the run, and what is refused."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from made_results import results as made_results

from longlive.benchmark import run as run_module
from longlive.benchmark.results import FILE_NAME, Results
from longlive.benchmark.run import TERMINATED, run_benchmark, summary, table
from longlive.benchmark.samples import PLAIN, WARM_UP
from longlive.benchmark.session import Origin
from longlive.errors import UserError
from longlive.rollout.hooks import RolloutCallback

CPU = torch.device("cpu")


class At(RolloutCallback):
    """Does something at a block of a rollout, both counted from 0."""

    def __init__(self, rollout: int, block: int, do) -> None:
        self.wanted = (rollout, block)
        self.do = do
        self.rollouts = -1

    def on_rollout_start(self, trainer, pl_module, state):
        self.rollouts += 1

    def on_latents_ready(self, trainer, pl_module, state, x0_BFCHW):
        if (self.rollouts, state.block_index) == self.wanted:
            self.do()


def interrupt():
    raise KeyboardInterrupt


def fail():
    raise RuntimeError("the device is gone")


@pytest.fixture(autouse=True)
def reports(monkeypatch) -> list:
    """The report has tests of its own; these folders get none."""
    written: list = []
    monkeypatch.setattr(run_module, "write_report", written.append)
    return written


@pytest.fixture
def config(short):
    return replace(short, arrival="block_border", breakdown=False)


def run(model, config, output, *callbacks, **options):
    return run_benchmark(model, callbacks, config, device=CPU, output=output, **options)


def test_results_are_in_the_folder_and_read_back_whole(model, short, tmp_path, reports):
    origin = Origin("longlive benchmark", ("a/base.yaml", "b/9.yaml"), {"model": {"x": [1, None]}})
    results = run(model, short, tmp_path / "out", origin=origin)
    assert results.complete
    assert Results.load(tmp_path / "out") == results
    assert reports == [tmp_path / "out"]
    assert json.loads((tmp_path / "out" / "trace.json").read_text())["traceEvents"]
    assert results.recipe.name == "base+9"
    assert results.recipe.settings == {"model": {"x": [1, None]}}
    assert results.benchmark["prompts"] == short.prompts
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_the_summary_is_one_line_of_json_with_every_figure(model, config, tmp_path):
    results = run(model, config, tmp_path / "out")
    said = json.loads(json.dumps(summary(results, tmp_path / "out")))
    assert said["complete"] is True
    assert said["weights"] == "converted"
    assert said["figures"].keys() == results.figures.keys()
    lines = list(table(results))
    assert any(line.startswith("  inter-frame latency ") for line in lines)
    assert any("no prompt at a random moment" in line for line in lines)


def test_a_folder_with_files_is_refused_unless_told_to(model, config, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty: name another folder, or add --overwrite"):
        run(model, config, tmp_path)
    assert model.parts is None
    run(model, config, tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert Results.load(tmp_path).complete


def test_a_file_in_place_of_the_folder_is_refused(model, config, tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(UserError, match="is a file: name a folder"):
        run(model, config, path, overwrite=True)


def test_what_cannot_be_measured_leaves_no_folder(model, config, tmp_path):
    with pytest.raises(UserError, match="at least 1"):
        run(model, replace(config, benchmark_iterations=0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_benchmark_keeps_its_samples_and_says_so(model, config, tmp_path, reports):
    # Rollout 0 is the warm-up.
    with pytest.raises(KeyboardInterrupt):
        run(model, config, tmp_path / "out", At(2, 5, interrupt))
    results = Results.load(tmp_path / "out")
    assert (results.complete, results.ended) == (False, "interrupted")
    assert [r.kind for r in results.rollouts] == [WARM_UP, PLAIN, PLAIN]
    assert [len(r.blocks) for r in results.rollouts] == [8, 8, 5]
    assert [r.is_whole for r in results.rollouts] == [True, True, False]
    assert results.rollouts[-1].wall_ms is None
    assert results.figures["inter_frame_ms"].distribution.count == 3
    assert not reports


def test_sigterm_ends_a_benchmark_like_an_interrupt(model, config, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    terminate = At(1, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        run(model, config, tmp_path / "out", terminate)
    assert stop.value.code == TERMINATED == 143
    results = Results.load(tmp_path / "out")
    assert (results.complete, results.ended) == (False, "terminated")
    assert [len(r.blocks) for r in results.rollouts] == [8, 4]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_failure_keeps_what_was_measured_and_its_name(model, config, tmp_path):
    with pytest.raises(RuntimeError, match="the device is gone"):
        run(model, config, tmp_path / "out", At(1, 6, fail))
    results = Results.load(tmp_path / "out")
    assert results.ended == "failed: RuntimeError: the device is gone"
    assert [len(r.blocks) for r in results.rollouts] == [8, 6]


def test_a_benchmark_that_is_killed_has_what_it_had_at_its_last_rollout(model, config, tmp_path):
    seen: list[Results] = []
    look = At(2, 2, lambda: seen.append(Results.load(tmp_path / "out")))
    run(model, config, tmp_path / "out", look)
    (results,) = seen
    assert not results.complete
    assert [len(r.blocks) for r in results.rollouts] == [8, 8]


# Files that are no results.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is broken (no JSON): measure again"),
        ("[]", "is no result of a benchmark"),
        ('{"format": "something else"}', "is no result of a benchmark"),
        ('{"format": "longlive benchmark", "version": 99}', "format version 99, not 1"),
        ('{"format": "longlive benchmark", "version": 1}', "is missing): measure again"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, said):
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(UserError) as error:
        Results.load(tmp_path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_field_that_is_younger_than_the_file_has_its_default(tmp_path):
    made = made_results()
    made.save(tmp_path)
    path = tmp_path / FILE_NAME
    content = json.loads(path.read_text())
    del content["breakdown"]["layers_without"]
    path.write_text(json.dumps(content))
    assert Results.load(tmp_path) == made


def test_a_damaged_value_is_named(model, config, tmp_path):
    run(model, replace(config, benchmark_iterations=1, warmup_iterations=0), tmp_path)
    path = tmp_path / FILE_NAME
    content = json.loads(path.read_text())
    content["rollouts"][0]["blocks"][1]["end_ms"] = "late"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"rollouts\[0\]\.blocks\[1\]\.end_ms is not as expected"):
        Results.load(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match="no results of a benchmark in .*name a folder"):
        Results.load(tmp_path / "nowhere")
