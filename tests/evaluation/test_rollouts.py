"""longlive evaluate: recipes over prompts, resumed, side by side, on several ranks; one table."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from made_evaluations import PROMPTS, records_in, table_of, write_config, write_prompts
from processes import run_commands

from longlive.callbacks.prompt_cache import PromptCache
from longlive.cli import main
from longlive.data.prompts import PromptScript
from longlive.errors import UserError
from longlive.evaluation.output import save_video
from longlive.evaluation.prompts import EvaluationPrompts
from longlive.evaluation.recipes import load_recipe
from longlive.evaluation.records import RecordStore
from longlive.evaluation.rollouts import EvaluateRollouts
from longlive.evaluation.side_by_side import make_videos
from longlive.evaluation.table import Study, build_table
from longlive.video.frames import to_uint8
from longlive.video.read import read_video

ROOT = Path(__file__).parents[2]
AXES = {
    "window": {
        "6": {"settings": {"window_latent_frames": 6}},
        "9": {"settings": {"window_latent_frames": 9}},
    },
    "steps": {
        "2": {},
        "1": {"settings": {"denoising_steps": 1}, "note": "merely dropped"},
    },
}
MEASURES = ["temporal", "fidelity"]


def test_a_recipe_over_a_prompt_set_leaves_records_videos_and_a_table(run, configure, tmp_path):
    out = tmp_path / "results"
    outcome = run("evaluate", "--config", configure(), "--output", out)
    assert outcome.code == 0
    assert len(records_in(out)) == 4
    [row] = table_of(out)["rows"]
    assert (row["videos"], row["missing"]) == (4, 0)
    assert row["values"]["motion_px"]["videos"] == 4
    videos = sorted((out / "videos" / "recipe").glob("*.mp4"))
    assert [v.name for v in videos][0] == "0000-a-red-circle-s0.mp4"
    assert read_video(videos[0]).shape == (33, 32, 48, 3)
    assert "| recipe |" in (out / "table.md").read_text()
    assert "recipe:" in outcome.out


def test_a_video_depends_on_its_own_prompt_and_seed_and_equals_that_of_predict(
    run, configure, nano_recipe, tmp_path
):
    out = tmp_path / "results"
    run("evaluate", "--config", configure(), "--output", out, "--limit", 2)
    record = json.loads((out / "records" / "recipe" / "0002-s2.json").read_text())
    assert (record["index"], record["seed"]) == (2, 2)
    model = load_recipe([nano_recipe]).model()
    made = model.stream(PROMPTS[2], seed=2)
    frames = torch.cat([block.frames for block in made], 1)
    save_video(tmp_path / "again.mp4", to_uint8(frames[0]), PROMPTS[2])
    assert torch.equal(read_video(out / record["video"]), read_video(tmp_path / "again.mp4"))


def test_variants_are_compared_with_the_reference_pair_by_pair(run, configure, tmp_path):
    out = tmp_path / "results"
    axes = {"copy": {"a": {}, "b": {}, "c": {"settings": {"denoising_steps": 1}}}}
    config = configure(axes=axes, measures=MEASURES)
    assert run("evaluate", "--config", config, "--output", out).code == 0
    a, b, c = table_of(out)["rows"]
    assert "frame_mse" not in a["values"]
    assert a["differences"] == {}
    # The very same rollout, and another one.
    assert b["values"]["frame_mse"]["value"] == 100
    assert b["values"]["latent_error"]["value"] == 0
    assert b["differences"]["motion_px"]["value"] == 0
    assert c["values"]["latent_error"]["value"] > 0.01
    assert len(c["error_by_block"]) == 3
    assert c["differences"]["motion_px"]["value"] == pytest.approx(
        c["values"]["motion_px"]["value"] - a["values"]["motion_px"]["value"]
    )
    assert not table_of(out)["skipped"]


def test_measures_without_weights_are_skipped_with_the_reason(run, configure, tmp_path):
    out = tmp_path / "results"
    config = configure(measures=["shapes", "temporal", "fidelity", "lpips", "clip"])
    outcome = run("evaluate", "--config", config, "--output", out, "--limit", 1)
    assert outcome.code == 0
    reasons = list(table_of(out)["skipped"])
    assert any("alexnet-owt-7be5be79.pth" in reason for reason in reasons)
    assert any(reason.startswith("clip: no weights") for reason in reasons)
    assert any("is not a prompt of the shapes world" in reason for reason in reasons)
    assert any("no reference rollout" in reason for reason in reasons)
    assert "no lpips: no weights" in outcome.out


@pytest.fixture(scope="module")
def evaluated(nano_recipe, tmp_path_factory) -> Path:
    """Two prompts in four variants."""
    folder = tmp_path_factory.mktemp("evaluated")
    prompts = write_prompts(folder / "prompts.txt")
    config = write_config(folder / "eval.yaml", nano_recipe, prompts, axes=AXES, measures=MEASURES)
    arguments = ["--config", config, "--output", folder / "results", "--limit", 2]
    assert main(["evaluate", *map(str, arguments)]) == 0
    return folder / "results"


def test_a_second_run_makes_nothing_again(run, configure, evaluated, tmp_path):
    out = shutil.copytree(evaluated, tmp_path / "results")
    config = configure(axes=AXES, measures=MEASURES)
    before = {path: path.stat().st_mtime_ns for path in records_in(out)}
    assert len(before) == 8
    outcome = run("evaluate", "--config", config, "--output", out, "--limit", 2)
    assert any("8 of 8 videos are judged already" in line for line in outcome.lines)
    assert {path: path.stat().st_mtime_ns for path in records_in(out)} == before


def test_the_reference_is_made_again_only_where_a_variant_needs_it(
    run, configure, evaluated, tmp_path
):
    out = shutil.copytree(evaluated, tmp_path / "results")
    config = configure(axes=AXES, measures=MEASURES)
    table = (out / "table.json").read_bytes()
    shutil.rmtree(out / "reference")
    run("evaluate", "--config", config, "--output", out, "--limit", 2)
    assert not (out / "reference").exists()
    (out / "records" / "window-9-steps-1" / "0002-s2.json").unlink()
    run("evaluate", "--config", config, "--output", out, "--limit", 2)
    assert [path.name[:7] for path in (out / "reference").iterdir()] == ["0002-s2"]
    assert (out / "table.json").read_bytes() == table


def test_records_of_other_settings_or_a_damaged_one_are_made_again(run, configure, tmp_path):
    out = tmp_path / "results"
    run("evaluate", "--config", configure(), "--output", out, "--limit", 2)
    first, second = records_in(out)
    first.write_text("{")
    told = run("evaluate", "--config", configure(), "--output", out, "--limit", 2).lines
    assert any("1 of 2 videos" in line for line in told)
    values = json.loads(second.read_text())["values"]
    changed = configure(settings={"denoising_steps": 1})
    told = run("evaluate", "--config", changed, "--output", out, "--limit", 2).lines
    assert any("0 of 2 videos" in line for line in told)
    assert json.loads(second.read_text())["values"] != values


class Stopped(Exception):
    pass


def test_a_run_that_stops_in_the_middle_ends_with_the_same_table(
    run, configure, evaluated, tmp_path, monkeypatch
):
    cut = tmp_path / "cut"
    command = ("evaluate", "--config", configure(axes=AXES, measures=MEASURES), "--output", cut)

    written, write = [], RecordStore.write

    def stopping(self, record):
        write(self, record)
        written.append(record.key)
        if len(written) == 3:
            raise Stopped

    monkeypatch.setattr(RecordStore, "write", stopping)
    with pytest.raises(Stopped):
        run(*command, "--limit", 2)
    monkeypatch.setattr(RecordStore, "write", write)
    assert len(records_in(cut)) == 3
    assert not (cut / "table.json").exists()
    # What is there is a table already, and says what is missing.
    so_far = build_table(cut, Study.load(cut))
    assert [row.missing for row in so_far.rows] == [0, 1, 2, 2]
    run(*command, "--limit", 2)
    assert (cut / "table.json").read_bytes() == (evaluated / "table.json").read_bytes()


@pytest.mark.slow
def test_a_killed_process_continues_and_ends_with_the_same_table(
    run, configure, evaluated, tmp_path
):
    cut = tmp_path / "cut"
    config = configure(axes=AXES, measures=MEASURES)
    arguments = ("evaluate", "--config", config, "--output", cut, "--limit", 2)
    command = [sys.executable, "-m", "longlive", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        list(map(str, command)),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(records_in(cut)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = len(records_in(cut))
    assert 3 <= there < 8, "it was killed too late, or never began"
    run(*arguments)
    assert (cut / "table.json").read_bytes() == (evaluated / "table.json").read_bytes()


@pytest.mark.slow
def test_two_processes_of_lightning_end_with_the_table_of_one(run, configure, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    config = configure(axes={"copy": {"a": {}, "b": {}}}, measures=MEASURES)
    arguments = ["evaluate", f"--config={config}", "--limit=3"]
    assert run(*arguments, f"--output={one}").code == 0
    options = (f"--output={two}", "--trainer.devices=2", "--trainer.strategy=ddp")
    for ended in run_commands([*arguments, *options], tmp_path, 2):
        assert ended.code == 0, ended.errors
    assert (one / "table.json").read_bytes() == (two / "table.json").read_bytes()
    assert len(records_in(two)) == 6


def strategy_of(rank: int, ranks: int) -> SimpleNamespace:
    return SimpleNamespace(distributed_sampler_kwargs={"rank": rank, "num_replicas": ranks})


def test_a_rank_without_videos_still_takes_part(prompts):
    data = EvaluationPrompts(prompts, limit=1)
    data.trainer = SimpleNamespace(strategy=strategy_of(1, 2), lightning_module=None)
    data.setup("test")
    assert list(data.test_dataloader()) == [None]


@pytest.mark.slow
def test_worker_processes_measure_the_same(run, configure, evaluated, tmp_path):
    out = tmp_path / "results"
    config = configure(axes=AXES, measures=MEASURES)
    run("evaluate", "--config", config, "--output", out, "--limit", 2, "--workers", 1)
    assert (out / "table.json").read_bytes() == (evaluated / "table.json").read_bytes()


def test_videos_side_by_side_are_those_made_alone(nano_recipe):
    model = load_recipe([nano_recipe]).with_settings({"guidance": 2.0}).model()
    scripts = [
        PromptScript(0, ("a red circle", "a blue square"), None, 5),
        PromptScript(1, ("a large circle", "a small circle spins"), None, 6),
    ]
    together = make_videos(model, [], scripts)
    for script, made in zip(scripts, together, strict=True):
        [alone] = make_videos(model, [], [script])
        assert made.timeline == alone.timeline
        assert len(made.timeline) == 2
        torch.testing.assert_close(made.latents_FCHW, alone.latents_FCHW, atol=1e-4, rtol=1e-3)
        off = (made.frames_TCHW.int() - alone.frames_TCHW.int()).abs().max()
        assert off <= 1
    apart = together[0].latents_FCHW - together[1].latents_FCHW
    assert apart.abs().max() > 0.1


def test_a_video_sent_to_another_process_leaves_the_others_of_its_batch_where_they_are(nano_recipe):
    model = load_recipe([nano_recipe]).model()
    scripts = [PromptScript(index, ("a red circle",), None, index) for index in range(2)]
    first, second = make_videos(model, [], scripts)
    for sent, stays in (
        (first.frames_TCHW, second.frames_TCHW),
        (first.latents_FCHW, second.latents_FCHW),
    ):
        # What sending does to a tensor's memory.
        sent.share_memory_()
        assert not stays.is_shared()


def test_a_cache_of_prompts_does_not_mix_up_two_batches(nano_recipe):
    model = load_recipe([nano_recipe]).model()
    cached = [PromptCache()]
    for prompts in (PROMPTS[:2], PROMPTS[2:]):
        scripts = [PromptScript(n, (prompt,), None, n) for n, prompt in enumerate(prompts)]
        for ours, plain in zip(
            make_videos(model, cached, scripts), make_videos(model, [], scripts), strict=True
        ):
            assert torch.equal(ours.latents_FCHW, plain.latents_FCHW)


def test_a_batch_gives_the_table_of_single_videos(run, configure, tmp_path):
    tables = []
    for batch in (1, 3):
        out = tmp_path / str(batch)
        run("evaluate", "--config", configure(), "--output", out, "--batch", batch)
        assert len(records_in(out)) == 4
        tables.append(table_of(out)["rows"][0]["values"])
    for name, value in tables[0].items():
        assert tables[1][name]["value"] == pytest.approx(value["value"], rel=0.02, abs=2e-3)


def test_ranks_share_the_prompts_and_keep_a_video_with_its_reference(prompts):
    def keys(rank, ranks):
        data = EvaluationPrompts(prompts, seeds=[0, 7])
        data.trainer = SimpleNamespace(
            strategy=strategy_of(rank, ranks), lightning_module=SimpleNamespace(variant_count=3)
        )
        data.setup("test")
        return [(task.variant, *task.scripts) for task in data.test_dataloader()]

    alone, halves = keys(0, 1), [keys(rank, 2) for rank in range(2)]
    assert len(alone) == 3 * 8
    assert sorted(map(repr, halves[0] + halves[1])) == sorted(map(repr, alone))
    for half in halves:
        assert [variant for variant, _ in half] == sorted(variant for variant, _ in half)
        by_variant = [{s for v, s in half if v == variant} for variant in range(3)]
        assert by_variant[0] == by_variant[1] == by_variant[2]


def test_prompts_are_limited_evenly_and_seeds_make_videos_of_their_own(prompts):
    data = EvaluationPrompts(prompts, seeds=[0, 3], limit=2, batch=3)
    data.setup("test")
    assert [(s.index, s.seed) for s in data.scripts] == [(0, 0), (2, 2), (0, 300_000), (2, 300_002)]
    assert [len(group) for group in data.groups] == [3, 1]


def test_videos_that_switch_elsewhere_are_in_other_groups(tmp_path):
    lines = [
        {"prompts": ["a red circle", "a blue square"]},
        {"prompts": ["a red circle"]},
        {"prompts": ["a large circle", "a small circle"]},
        {"prompts": ["a large circle", "a small circle"], "switch_frame_indices": [3]},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = EvaluationPrompts(path, batch=8)
    data.setup("test")
    assert [[s.index for s in group] for group in data.groups] == [[0, 2], [1], [3]]


def test_vbench_names_count_the_samples_of_a_prompt(run, configure, tmp_path):
    out = tmp_path / "results"
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\nfour\n")
    arguments = ("--limit", 1, "--seeds", "[0,1]", "--data.names_file", names)
    config = configure(naming="vbench")
    assert run("evaluate", "--config", config, "--output", out, *arguments).code == 0
    videos = [path.name for path in (out / "videos" / "recipe").glob("*.mp4")]
    assert sorted(videos) == ["one-0.mp4", "one-1.mp4"]


def test_only_as_many_videos_are_kept_as_were_asked_for(run, configure, tmp_path):
    out = tmp_path / "results"
    run("evaluate", "--config", configure(videos=1, axes=AXES), "--output", out, "--limit", 2)
    assert len(list((out / "videos").rglob("*.mp4"))) == 4
    assert len(records_in(out)) == 8


# Bad input.


def test_bad_settings_are_one_line_before_any_weight_is_read(run, configure, tmp_path, monkeypatch):
    def forbidden(*args):
        raise AssertionError("a video was about to be made")

    monkeypatch.setattr(EvaluateRollouts, "test_step", forbidden)
    out = ("--output", tmp_path / "results")

    def refusal(*options, **arguments):
        return run("evaluate", "--config", configure(**arguments), *out, *options).refusal()

    assert "did you mean" in refusal(recipee=["x"]) or "recipee" in refusal(recipee=["x"])
    assert "no recipe: begin with a base" in refusal(recipe=["configs/window/9.yaml"])
    assert "cannot read the recipe missing.yaml" in refusal(recipe=["missing.yaml"])
    assert "there is no window '7'" in refusal(axes=AXES, reference={"window": "7"})
    assert "axis 'empty' has no values" in refusal(axes={"empty": {}})
    assert "window" in refusal(settings={"window_latent_frames": 3})
    assert "denoising_stepps" in refusal(settings={"denoising_stepps": 3})
    assert "sharpness" in refusal(measures=["sharpness"])
    assert "workers must not be negative" in refusal("--workers", "-1")
    assert "limit must be at least 1" in refusal("--limit", 0)
    assert "seeds must be different" in refusal("--seeds", "[1,1]")
    assert "takes no folder" in refusal("--videos", tmp_path)
    assert "cannot read prompts from" in refusal("--prompts", tmp_path / "no.txt")
    assert "lines for the 4 videos" in refusal("--data.names_file", one_line(tmp_path))
    assert not (tmp_path / "results").exists()


def one_line(folder):
    path = folder / "one.txt"
    path.write_text("a\n")
    return path


def test_a_config_without_prompts_and_one_without_a_model_say_so(run, configure, tmp_path):
    content = yaml.safe_load(configure().read_text())
    content["data"]["init_args"] = {}
    path = tmp_path / "without.yaml"
    path.write_text(yaml.safe_dump(content))
    assert "give a prompt set with --prompts" in run("evaluate", "--config", path).refusal()
    assert "a --config of configs/eval" in run("evaluate").refusal()


def test_prompts_that_do_not_fit_the_video_are_refused(run, configure, tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text(json.dumps({"prompts": ["a red circle"] * 5}) + "\n")
    told = run("evaluate", "--config", configure(), "--prompts", path, "--output", tmp_path / "r")
    assert "video 0: prompt" in told.refusal()


def test_a_folder_that_cannot_be_written_is_one_line(run, configure, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "cannot write" in run("evaluate", "--config", configure(), "--output", blocked).refusal()


def test_results_of_something_else_are_refused(tmp_path):
    with pytest.raises(UserError, match="longlive evaluate wrote"):
        Study.load(tmp_path)
    (tmp_path / "study.json").write_text('{"format": "other", "version": 1}')
    with pytest.raises(UserError, match="another version"):
        Study.load(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(UserError, match="is broken"):
        Study.load(tmp_path)
