"""tools/ablate.py, as a program, on a model of random weights."""

import json
from pathlib import Path

import ablate
import pytest
import yaml
from made_rollouts import PROMPTS
from nano_model import SETTINGS

from longlive.benchmark.ablation_table import AblationResults

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def recipe(nano, tmp_path) -> list[str]:
    """The embedded model's base, with a model of random weights in its place."""
    path = tmp_path / "nano.yaml"
    settings = {**SETTINGS, "weights": str(nano), "guidance": 1.0}
    overlay = {"trainer": {"accelerator": "cpu"}, "model": {"init_args": settings}}
    path.write_text(yaml.safe_dump(overlay))
    return [f"--config={CONFIGS / 'tiny.yaml'}", f"--config={path}"]


@pytest.fixture
def matrix(tmp_path) -> Path:
    rows = {
        "window 6": [str(CONFIGS / "window" / "6.yaml")],
        "window 9": [str(CONFIGS / "window" / "9.yaml")],
        "not there": [str(tmp_path / "nothing.yaml")],
        "on a GPU": [str(tmp_path / "gpu.yaml")],
    }
    (tmp_path / "gpu.yaml").write_text("model: {init_args: {attention: flash-attn-4}}")
    benchmark = {"num_output_frames": 18, "warmup_iterations": 1, "prompts": PROMPTS[:1]}
    path = tmp_path / "matrix.yaml"
    content = {"title": "Window", "rows": rows, "benchmark": benchmark}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_it_makes_one_table_one_file_and_a_last_line_of_json(recipe, matrix, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--matrix", str(matrix), "--output", str(out), "--repeats=2"]
    assert ablate.main([*options, *recipe, "--benchmark.seed=3"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    said = json.loads(last)
    assert list(said["rows"]) == ["window 6", "window 9", "not there", "on a GPU"]
    assert said["rows"]["window 6"]["inter_frame_ms"] > 0
    assert "nothing.yaml" in said["rows"]["not there"]["reason"]
    assert "flash-attn-4" in said["rows"]["on a GPU"]["reason"]
    assert table[0] == "# Window"
    results = AblationResults.load(out)
    assert results.complete
    assert results.recipe == tuple(word.removeprefix("--config=") for word in recipe)
    windows = [row.settings.get("window_latent_frames") for row in results.rows]
    assert windows[:2] == [6, 9]
    assert results.order == (("window 6", "window 9"), ("window 9", "window 6"))
    assert (out / "ablation.md").read_text().startswith("# Window")


def test_overlays_come_behind_the_configurations_and_before_other_options():
    recipe = ["--config", "a.yaml", "--config=b.yaml", "--benchmark.seed=1"]
    assert ablate.with_overlays(recipe, ["x.yaml"]) == [
        *("--config", "a.yaml", "--config=b.yaml", "--config=x.yaml", "--benchmark.seed=1")
    ]
    assert ablate.with_overlays(["--config", "a.yaml"], ["x.yaml"]) == [
        *("--config", "a.yaml", "--config=x.yaml")
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--repeats=0"], "--repeats must be at least 1, got 0"),
        (["--benchmark.nothing=1"], "unknown --benchmark.nothing"),
    ],
)
def test_bad_input_is_one_line(recipe, matrix, tmp_path, capsys, options, said):
    out = tmp_path / "out"
    args = ["--matrix", str(matrix), "--output", str(out), *recipe, *options]
    assert ablate.main(args) == 2
    written = capsys.readouterr()
    assert said in written.err.splitlines()[-1]
    assert not out.exists()


def test_a_folder_with_files_is_refused(recipe, matrix, tmp_path, capsys):
    args = ["--matrix", str(matrix), "--output", str(tmp_path), *recipe]
    assert ablate.main(args) == 2
    assert "is not empty: name another folder, or add --overwrite" in capsys.readouterr().err


def test_an_interrupted_ablation_keeps_its_repeats(recipe, matrix, tmp_path, monkeypatch):
    out = tmp_path / "out"
    calls = []

    def interrupt(results, folder):
        calls.append(results)
        if len(calls) == 1:
            raise KeyboardInterrupt
        results.save(folder)

    monkeypatch.setattr(ablate, "save", interrupt)
    assert ablate.main(["--matrix", str(matrix), "--output", str(out), *recipe]) == 130
    results = AblationResults.load(out)
    assert not results.complete
    assert len(results.rows[0].samples["fps"]) == 1
