"""The report: made from files, complete in itself, the same every time, and honest about gaps."""

import json
import re
from dataclasses import asdict, replace
from xml.etree import ElementTree

import pytest
from evaluation_report import main as report
from made_evaluations import PROMPTS
from made_results import RECIPE, results
from vbench_scores import main as vbench

from longlive.evaluation.bootstrap import Estimate
from longlive.evaluation.measures import NUMBERS
from longlive.evaluation.plots import frontier, pareto_plot
from longlive.evaluation.records import Record, RecordStore
from longlive.evaluation.table import Row, Study, StudyVariant

SETTINGS = {"denoising_steps": 4, "window_latent_frames": 12, "sink_latent_frames": 3}
VARIANTS = (
    StudyVariant("window 12", "window-12", {"window": "12"}, {**SETTINGS, "dtype": "bfloat16"}),
    StudyVariant(
        "window 9",
        "window-9",
        {"window": "9"},
        {**SETTINGS, "window_latent_frames": 9, "dtype": "bfloat16"},
        note="smaller",
    ),
)


@pytest.fixture
def folder(tmp_path):
    """Results of two variants over three prompts, as an evaluation leaves them."""
    out = tmp_path / "results"
    expected, store = [], RecordStore(out)
    for number, variant in enumerate(VARIANTS):
        for index in range(3):
            record = Record(
                variant=variant.folder,
                key=f"{index:04d}-s{index}",
                fingerprint="f",
                index=index,
                seed=index,
                timeline=((0, PROMPTS[index]),),
                frames=81,
                size=(96, 96),
                seconds=2.0 + number,
                values={"adherence": [0.8 - 0.2 * number + 0.01 * index], "seam": [1.1]},
                series={"latent_error_by_block": [0.1, 0.2]} if number else {},
                skipped={"clip": "no weights"} if number else {},
            )
            store.write(record)
            expected.append((record.variant, record.key, record.fingerprint))
    study = Study("rollouts", VARIANTS, tuple(expected), "prompts.txt", "embedded", ("shapes",))
    study.save(out)
    return out


def benchmark(path, **recipe):
    made = results(recipe=replace(RECIPE, callbacks=(), **recipe))
    path.mkdir()
    (path / "results.json").write_text(json.dumps(asdict(made)))
    return path


def pictures(page):
    return re.findall(r"<svg.*?</svg>", page, re.DOTALL)


def test_a_page_is_complete_in_itself_and_the_same_every_time(folder, tmp_path):
    for name in ("one", "two"):
        assert report([str(folder), "--output", str(tmp_path / name), "--title", "A study"]) == 0
    page = (tmp_path / "one" / "report.html").read_text()
    assert page == (tmp_path / "two" / "report.html").read_text()
    text = (tmp_path / "one" / "report.md").read_text()
    # Nothing is fetched; the names in SVG that look like addresses are name spaces.
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page.replace("xlink:href", "href"))
    for shown in ("A study", "window 9", "Difference from window 12", "smaller", "no weights"):
        assert shown in text
        assert shown in page
    assert "cannot speak for the 1.3B model" in text
    drawn = pictures(page)
    assert len(drawn) >= 3
    for picture in drawn:
        assert ElementTree.fromstring(picture).tag.endswith("svg")


def test_tables_hold_values_intervals_and_paired_differences(folder, tmp_path):
    report([str(folder), "--output", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "| window 12 | 81.0 [80.0, 82.0] |" in text
    assert "**-20.0 [-20.0, -20.0]**" in text
    assert "## window: the others as in the reference (window 12)" in text


def test_latency_is_matched_by_what_was_run(folder, tmp_path):
    fast = benchmark(tmp_path / "w9", steps=4, window_latent_frames=9, sink_latent_frames=3)
    other = benchmark(tmp_path / "w21", steps=4, window_latent_frames=21, sink_latent_frames=3)
    report([str(folder), "--output", str(tmp_path / "r"), "--latency", str(fast), str(other)])
    text = (tmp_path / "r" / "report.md").read_text()
    figures = json.loads((fast / "results.json").read_text())["figures"]
    assert f"| window 9 | {figures['inter_frame_ms']['value']:.1f} |" in text
    assert "Without a benchmark: window 12." in text
    assert "inter-frame latency, ms" in (tmp_path / "r" / "report.html").read_text()
    # Or by hand.
    named = ["--latency", f"window-12={other}"]
    assert report([str(folder), "--output", str(tmp_path / "r"), *named]) == 0
    assert "Without a benchmark: window 9." in (tmp_path / "r" / "report.md").read_text()


def test_without_benchmarks_the_plot_says_that_its_times_are_none(folder, tmp_path):
    report([str(folder), "--output", str(tmp_path)])
    assert "not a benchmark" in (tmp_path / "report.html").read_text()


def test_clips_and_sheets_of_the_same_seed_are_inside(run, configure, tmp_path):
    out = tmp_path / "results"
    config = configure(axes={"copy": {"a": {}, "b": {}}}, videos=1)
    run("evaluate", "--config", config, "--output", out, "--limit", 2)
    assert report([str(out), "--output", str(tmp_path / "r")]) == 0
    page = (tmp_path / "r" / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") == 2
    assert page.count("data:image/png;base64,") == 1
    assert f"{PROMPTS[0]} (seed 0)" in page
    # A file that was lost or damaged since is named.
    next((out / "videos" / "copy-a").glob("*.mp4")).write_text("broken")
    assert report([str(out), "--output", str(tmp_path / "r")]) == 0
    assert "cannot be read as a video" in (tmp_path / "r" / "report.html").read_text()
    assert report([str(out), "--output", str(tmp_path / "r"), "--clips", "0"]) == 0
    assert "data:" not in (tmp_path / "r" / "report.html").read_text()


def test_prompts_cannot_break_the_page(folder, tmp_path):
    report([str(folder), "--output", str(tmp_path), "--title", "<script>alert(1)</script>"])
    assert "<script>" not in (tmp_path / "report.html").read_text()


def test_an_unfinished_study_says_so(folder, tmp_path):
    next((folder / "records" / "window-9").glob("*.json")).unlink()
    report([str(folder), "--output", str(tmp_path)])
    assert "**Incomplete**: 1 videos are not judged yet." in (tmp_path / "report.md").read_text()


def test_without_matplotlib_the_report_has_tables_and_says_why(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("longlive.evaluation.report.has_matplotlib", lambda: False)
    assert report([str(folder), "--output", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "matplotlib is not installed" in page
    assert pictures(page) == []


@pytest.mark.parametrize(
    ("better", "kept"),
    [("higher", [(1, 0.5), (2, 0.7), (4, 0.9)]), ("lower", [(1, 0.5), (3, 0.4)])],
)
def test_the_frontier_keeps_what_nothing_beats(better, kept):
    points = [(2, 0.7), (1, 0.5), (3, 0.4), (4, 0.9), (2, 0.6)]
    assert frontier(points, replace(NUMBERS["adherence"], better=better)) == kept


def test_a_point_without_the_number_is_left_out_of_the_plot():
    estimate = Estimate(0.5, 0.4, 0.6, 3, 3)
    rows = [
        Row(name, {"a": name}, 3, 0, values, {}, (), "")
        for name, values in (("x", {"adherence": estimate}), ("y", {}))
    ]
    picture = pareto_plot([(row, 1.0) for row in rows], "adherence", NUMBERS["adherence"], "ms")
    assert "a x" in picture
    assert "a y" not in picture


def test_bad_input_is_one_line(folder, tmp_path, capsys):
    def told(*args):
        assert report([str(folder), *args]) == 2
        return capsys.readouterr().err

    assert "name a folder that longlive evaluate wrote" in refused(report, [str(tmp_path)], capsys)
    assert "cannot read" in told("--latency", str(tmp_path))
    assert "there is no variant 'w'" in told("--latency", f"w={tmp_path}")
    (tmp_path / "results.json").write_text("{}")
    assert "is no result of longlive benchmark" in told("--latency", str(tmp_path))
    (tmp_path / "results.json").write_text("{")
    assert "is not JSON" in told("--latency", str(tmp_path))
    (tmp_path / "results.json").write_text('{"format": "longlive benchmark", "recipe": {}}')
    assert "measure again" in told("--latency", str(tmp_path))
    for path in (folder / "records").rglob("*.json"):
        path.unlink()
    assert "no judged video yet" in told()


def refused(program, args, capsys):
    assert program(args) == 2
    return capsys.readouterr().err


def test_vbench_scores_join_the_report(folder, tmp_path, capsys):
    scores = tmp_path / "vbench"
    scores.mkdir()
    (scores / "x_eval_results.json").write_text('{"color": [0.9, []]}')
    given = [str(folder), "--variant", "window-9", "--read", str(scores)]
    assert vbench(given) == 0
    assert "color: 90.00 %" in capsys.readouterr().out
    report([str(folder), "--output", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "## VBench" in text
    assert "| window 9 | – | – | – | 90.00 |" in text
    assert "there is no variant" in refused(vbench, [str(folder), "--variant", "w"], capsys)
    assert "--full-info" in refused(vbench, [str(folder)], capsys)
