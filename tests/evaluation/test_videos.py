"""Finished videos: matched with their prompts and judged; what cannot be is named."""

import json
import shutil

import av
import pytest
import yaml
from made_evaluations import TRAINER, records_in, table_of

from longlive.data.shapes_world import render_clips, render_timeline
from longlive.errors import UserError
from longlive.evaluation.folders import gather, timeline_of
from longlive.evaluation.output import save_video
from longlive.evaluation.vbench import sample_name
from longlive.geometry import Geometry
from longlive.shapes import ShapePrompt
from longlive.video.frames import to_uint8
from longlive.video.naming import output_name
from longlive.video.sidecar import VideoRecord, write_sidecar

RED = ShapePrompt("large", "red", "star", "moves left", "night")
BLUE = ShapePrompt("small", "blue", "circle", "stays still", "snow")
CYAN = ShapePrompt("large", "cyan", "square", "pulses", "grey")
FRAMES = 49


def save_clip(path, asked, seed=0, frames=FRAMES, side=96):
    save_video(path, to_uint8(render_clips([asked], [seed], frames, side)[0]), asked.text)


@pytest.fixture
def folder(tmp_path):
    """Two good videos of three prompts."""
    path = tmp_path / "videos"
    path.mkdir()
    save_clip(path / f"{output_name(0, RED.text, 5)}.mp4", RED, 5)
    save_clip(path / f"{sample_name(BLUE.text, 1)}.mp4", BLUE)
    return path


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"{p.text}\n" for p in (RED, BLUE, CYAN)))
    return path


@pytest.fixture
def judge(run, tmp_path):
    config = tmp_path / "folder.yaml"
    model = {
        "class_path": "longlive.evaluation.videos.JudgeVideos",
        "init_args": {"measures": ["shapes", "temporal"]},
    }
    data = {"class_path": "longlive.evaluation.folders.VideoFolder"}
    config.write_text(yaml.safe_dump({"trainer": TRAINER, "model": model, "data": data}))
    out = ("--output", tmp_path / "results")
    return lambda *options: run("evaluate", "--config", config, *out, *options)


def empty_video(path):
    """An MP4 that opens, declares pictures of 96x96 and holds none."""
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with av.open(path, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width = stream.height = 96
        stream.pix_fmt = "yuv420p"
        container.start_encoding()


def left_out(table):
    return {name.rpartition("/")[2]: reason for name, reason in table["left_out"]}


def test_a_folder_is_judged_against_a_prompt_file(judge, folder, prompts, tmp_path):
    outcome = judge("--videos", folder, "--prompts", prompts)
    assert outcome.code == 0
    table = table_of(tmp_path / "results")
    [row] = table["rows"]
    assert row["videos"] == 2
    assert row["values"]["all_five"]["value"] == 1
    # The truth went through the same format.
    assert abs(row["values"]["flicker"]["value"]) < 1e-3
    assert f"no video of prompt 2: {CYAN.text}" in left_out(table)["prompts.txt line 3"]


def test_without_a_prompt_file_the_record_beside_a_video_says_what_it_shows(judge, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    frames = render_timeline([(0, RED), (81, BLUE)], 3, 165)
    path = folder / "a.mp4"
    save_video(path, to_uint8(frames), RED.text)
    # Latent frame 21 is frame 81.
    prompts = ((0, RED.text), (21, BLUE.text))
    write_sidecar(path, VideoRecord(prompts, 3, Geometry(96, 96, patch=1), "embedded"))
    assert judge("--videos", folder).code == 0
    [row] = table_of(tmp_path / "results")["rows"]
    assert row["values"]["all_five"]["value"] == 1
    assert row["values"]["switch_lags"]["value"] == 0


def test_what_cannot_be_judged_is_named_and_the_rest_goes_on(judge, folder, prompts, tmp_path):
    good = folder / f"{output_name(0, RED.text, 5)}.mp4"
    (folder / "0001-broken.mp4").write_bytes(good.read_bytes()[:400])
    (folder / "0002-text.mp4").write_text("this is no video")
    (folder / "0000-nothing.mp4").write_bytes(b"")
    empty_video(folder / "0001-empty.mp4")
    save_clip(folder / "0002-larger.mp4", CYAN, side=112)
    shutil.copy(good, folder / "holiday.mp4")
    shutil.copy(good, folder / "0009-late.mp4")
    save_clip(folder / "0002-short.mp4", CYAN, frames=2)
    (folder / "notes.txt").write_text("not a video")
    (folder / ".0003.part.mp4").write_text("unfinished")
    outcome = judge("--videos", folder, "--prompts", prompts)
    assert outcome.code == 0
    reasons = left_out(table_of(tmp_path / "results"))
    for name, part in {
        "0001-broken.mp4": "cannot be read as a video",
        "0002-text.mp4": "cannot be read as a video",
        "0000-nothing.mp4": "cannot be read as a video",
        "0001-empty.mp4": "has no frames",
        "0002-larger.mp4": "112x112 pixels, and most of the others have 96x96",
        "holiday.mp4": "no prompt: its name is no prompt of the file",
        "0009-late.mp4": "its name says number 9, and the last in the file is 2",
    }.items():
        assert part in reasons[name], (name, reasons)
        assert f"{name}: {reasons[name]}" in outcome.out
    assert set(reasons) & {"notes.txt", ".0003.part.mp4"} == set()
    [row] = table_of(tmp_path / "results")["rows"]
    assert row["videos"] == 3
    skipped = table_of(tmp_path / "results")["skipped"]
    assert any("at least 3 of them" in reason for reason in skipped)
    text = (tmp_path / "results" / "table.md").read_text()
    assert "0001-broken.mp4" in text


def test_frames_that_change_their_size_are_left_out(judge, folder, prompts, tmp_path, monkeypatch):
    def changing(path):
        raise ValueError("all input arrays must have the same shape")

    monkeypatch.setattr("longlive.evaluation.videos.read_video", changing)
    assert judge("--videos", folder, "--prompts", prompts).code == 0
    assert len(left_out(table_of(tmp_path / "results"))) == 3


def test_a_changed_video_is_judged_again_and_others_are_not(judge, folder, prompts, tmp_path):
    judge("--videos", folder, "--prompts", prompts)
    first, second = records_in(tmp_path / "results")
    before = second.stat().st_mtime_ns
    save_clip(next(folder.glob("0000*")), CYAN, 5)
    told = judge("--videos", folder, "--prompts", prompts)
    assert any("1 of 2 videos" in line for line in told.lines)
    assert second.stat().st_mtime_ns == before
    assert json.loads(first.read_text())["values"]["all_five"] == [0]


def test_prompts_are_found_by_name_or_number(folder, prompts):
    found = {video.path.name[:6]: video for video in gather(folder, prompts).videos}
    assert found["0000-a"].prompts == (RED.text,)
    assert found["0000-a"].seed == 5
    assert found["a smal"].index == 1
    left = gather(folder, None).left_out
    assert len(left) == 2
    assert all("has no record" in reason for reason in left.values())


def test_prompts_share_a_video_equally_or_begin_where_the_file_says(tmp_path, folder):
    path = tmp_path / "two.jsonl"
    lines = [
        {"prompts": [RED.text, BLUE.text]},
        {"prompts": [BLUE.text, RED.text], "switch_frame_indices": [3]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = sorted(gather(folder, path).videos, key=lambda video: video.index)
    assert [start for start, _ in timeline_of(first, 100)] == [0, 50]
    assert [start for start, _ in timeline_of(second, 100)] == [0, 9]
    with pytest.raises(UserError, match="last prompt begins at frame 9"):
        timeline_of(second, 9)


def test_a_folder_that_is_missing_or_without_videos_is_refused(judge, tmp_path, folder, prompts):
    assert "there is no folder" in judge("--videos", tmp_path / "none").refusal()
    (tmp_path / "bare").mkdir()
    assert "has no videos" in judge("--videos", tmp_path / "bare").refusal()
    assert "give a folder with --videos" in judge().refusal()
    assert "takes no seeds" in judge("--videos", folder, "--seeds", 1).refusal()
    missing = judge("--videos", folder, "--prompts", tmp_path / "none.txt")
    assert "cannot read prompts from" in missing.refusal()


def test_a_folder_in_which_nothing_can_be_read_ends_with_a_table_of_reasons(
    judge, tmp_path, prompts
):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "0000-a.mp4").write_text("no video")
    outcome = judge("--videos", folder, "--prompts", prompts)
    assert outcome.code == 0
    table = table_of(tmp_path / "results")
    assert table["rows"][0]["videos"] == 0
    assert "cannot be read" in left_out(table)["0000-a.mp4"]
