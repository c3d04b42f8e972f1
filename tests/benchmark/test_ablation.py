"""Variants side by side: what a matrix says, in which order they run, and what cannot run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from made_rollouts import PROMPTS

from longlive.benchmark.ablation import FIGURES, Ablation, Variant, reason_of, rotated
from longlive.benchmark.ablation_matrix import load_matrix
from longlive.benchmark.ablation_report import ablation_markdown, gains
from longlive.benchmark.ablation_table import AblationResults
from longlive.benchmark.config import BenchmarkConfig
from longlive.errors import UserError
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CONFIG = BenchmarkConfig(num_output_frames=24, warmup_iterations=1, prompts=PROMPTS[:2])


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def names(matrix) -> dict[str, list[str]]:
    return {row.name: [path.name for path in row.overlays] for row in matrix.rows}


# The matrix.


def test_rows_are_what_they_say(tmp_path):
    rows = {"twelve": [], "nine": ["../window/9.yaml", "x.yaml"]}
    matrix = load_matrix(write(tmp_path, {"title": "T", "repeats": 3, "rows": rows}))
    assert (matrix.title, matrix.repeats, matrix.baseline) == ("T", 3, "twelve")
    assert names(matrix) == {"twelve": [], "nine": ["9.yaml", "x.yaml"]}
    assert matrix.rows[1].overlays[0] == tmp_path / "../window/9.yaml"
    assert matrix.kind == "one by one"


def test_optimizations_are_tried_alone_left_out_and_added_up(tmp_path):
    parts = {"compile": ["c.yaml"], "graph": ["g.yaml"], "fp8": ["f.yaml"]}
    alone = load_matrix(write(tmp_path, {"alone": parts}))
    assert names(alone) == {
        "recipe": [],
        "compile": ["c.yaml"],
        "graph": ["g.yaml"],
        "fp8": ["f.yaml"],
    }
    left_out = load_matrix(write(tmp_path, {"left_out": parts, "baseline": "all"}))
    assert names(left_out) == {
        "recipe": [],
        "all": ["c.yaml", "g.yaml", "f.yaml"],
        "without compile": ["g.yaml", "f.yaml"],
        "without graph": ["c.yaml", "f.yaml"],
        "without fp8": ["c.yaml", "g.yaml"],
    }
    added = load_matrix(write(tmp_path, {"cumulative": parts}))
    assert added.kind == "cumulative"
    assert list(names(added).values()) == [
        [],
        ["c.yaml"],
        ["c.yaml", "g.yaml"],
        ["c.yaml", "g.yaml", "f.yaml"],
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "has no rows"),
        ({"rows": {"a": []}, "interleaved": "no"}, "interleaved must be true or false"),
        ({"row": {}}, "and no others"),
        ({"rows": ["a.yaml"]}, "rows must be names with lists of overlays"),
        ({"rows": {"a": "a.yaml"}}, "rows must be names with lists of overlays"),
        ({"rows": {"a": []}, "baseline": "b"}, "the baseline 'b' is none of the rows a"),
        ({"rows": {"a": []}, "repeats": 0}, "repeats must be at least 1, got 0"),
        ({"rows": {"a": []}, "alone": {"a": []}}, "has two rows 'a'"),
    ],
)
def test_a_matrix_that_makes_no_sense_is_refused_in_one_line(tmp_path, content, said):
    with pytest.raises(UserError) as error:
        load_matrix(write(tmp_path, content))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_matrix_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read the matrix"):
        load_matrix(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs/benchmark").glob("ablation_*.yaml")))
def test_a_matrix_that_ships_names_overlays_that_exist(path):
    matrix = load_matrix(path)
    assert len(matrix.rows) > 1
    for row in matrix.rows:
        assert all(overlay.is_file() for overlay in row.overlays)
    replace(BenchmarkConfig(**matrix.benchmark), benchmark_iterations=1).check(3)


# The runs.


class Fails(RolloutCallback):
    """Cannot run here."""

    def configure_denoiser(self, trainer, pl_module, denoiser):
        raise RuntimeError("needs compute capability 9.0\nand a long traceback")


@pytest.fixture
def build(model):
    """Rows by their only overlay: a window, or one that fails while it is built or run."""

    def make(overlays):
        name = Path(overlays[0]).stem if overlays else "6"
        if name == "absent":
            raise UserError("longlive.callbacks has no fp8: install it")
        window = int(name) if name.isdigit() else 6
        settings = {**model.settings, "window_latent_frames": window}
        return Variant(LongLive(**settings), [Fails()] if name == "fails" else [], CPU, settings)

    return make


@pytest.fixture
def ablation(tmp_path, build):
    rows = {name: [f"{name}.yaml"] for name in ("6", "9", "fails", "absent")}
    matrix = load_matrix(write(tmp_path, {"title": "Window", "repeats": 3, "rows": rows}))
    return Ablation(matrix, ["base.yaml"], build, CONFIG, ("matrix.yaml", "python tools/ablate.py"))


def test_rows_take_turns_and_the_first_one_moves_on(ablation):
    ablation.run()
    assert ablation.results().order == (("6", "9"), ("9", "6"), ("6", "9"))
    rows = ablation.rows
    assert [row.name for row in rotated(rows, 1)] == ["9", "fails", "absent", "6"]


def test_rows_that_do_not_fit_together_run_one_after_the_other(tmp_path, build):
    rows = {name: [f"{name}.yaml"] for name in ("6", "absent", "9")}
    matrix = load_matrix(write(tmp_path, {"repeats": 2, "rows": rows, "interleaved": False}))
    ablation = Ablation(matrix, [], build, CONFIG)
    held = []
    ablation.run(lambda: held.append([row.name for row in ablation.rows if row.runner]))
    assert held == [[], [], []]
    results = ablation.results()
    assert results.order == (("6",), ("6",), ("9",), ("9",))
    assert [len(row.samples.get("fps", ())) for row in results.rows] == [2, 0, 2]
    assert results.rows[2].settings["window_latent_frames"] == 9
    assert "one row after the other" in ablation_markdown(results)


def test_a_row_that_cannot_run_says_why_and_the_others_go_on(ablation):
    ablation.run()
    results = ablation.results()
    reasons = {row.name: row.reason for row in results.rows}
    assert reasons == {
        "6": "",
        "9": "",
        "fails": "RuntimeError: needs compute capability 9.0",
        "absent": "longlive.callbacks has no fp8: install it",
    }
    measured = [row for row in results.rows if row.samples]
    assert [row.name for row in measured] == ["6", "9"]
    for row in measured:
        assert {len(values) for values in row.samples.values()} == {3}
        # Eight blocks, three of them too early, one with a switch and one before it.
        assert [len(periods) for periods in row.block_periods_ms] == [3, 3, 3]
    assert measured[1].settings["window_latent_frames"] == 9
    wanted = {name for name in FIGURES if name != "peak_memory_bytes"}
    assert wanted <= measured[0].samples.keys()


def test_rows_share_the_text_encoder_and_nothing_that_is_changed_in_place(ablation):
    ablation.run()
    first, second = (row.variant.model for row in ablation.rows[:2])
    assert first.text_encoder is second.text_encoder is second.parts.text_encoder
    assert first.dit is not second.dit
    assert first.vae is not second.vae


def test_if_no_row_can_run_that_is_an_error(tmp_path, build):
    matrix = load_matrix(write(tmp_path, {"rows": {"a": ["absent.yaml"]}}))
    with pytest.raises(UserError, match="no row can run here; a: longlive.callbacks has no fp8"):
        Ablation(matrix, [], build, CONFIG).run()


def test_results_come_back_from_their_file_and_other_files_do_not(ablation, tmp_path):
    ablation.run()
    results = ablation.results()
    results.save(tmp_path)
    assert AblationResults.load(tmp_path) == results
    (tmp_path / "ablation.json").write_text(json.dumps({"format": "x"}))
    with pytest.raises(UserError, match="it holds something else"):
        AblationResults.load(tmp_path)


def test_the_table_compares_within_a_repeat(ablation):
    ablation.run()
    results = ablation.results()
    base, other = results.rows[:2]
    base = replace(base, samples={"inter_frame_ms": (100.0, 200.0, 400.0)})
    other = replace(other, samples={"inter_frame_ms": (90.0, 160.0, 360.0)})
    assert gains(other, base, "inter_frame_ms") == [0.9, 0.8, 0.9]
    made = replace(results, rows=(base, other, *results.rows[2:]))
    text = ablation_markdown(made, "ablation.png")
    assert "| 9 | 160.00 ms (± 135.00 ms) | -10.0 % (-20.0 % to -10.0 %) |" in text
    assert "* **absent**: longlive.callbacks has no fp8: install it" in text
    assert "](ablation.png)" in text
    assert "Incomplete" in ablation_markdown(replace(made, complete=False))


def test_a_reason_is_the_users_error_behind_another():
    error = ValueError("a page\nof usage")
    error.__cause__ = UserError("install it")
    assert reason_of(error) == "install it"
    assert reason_of(ValueError("a page\nof usage")) == "ValueError: a page"
    assert reason_of(KeyError()) == "KeyError"
