"""VBench: its names, its result files, its package where it is, one line where it is not."""

import json
import sys
import types

import pytest

from longlive.errors import UserError
from longlive.evaluation.vbench import (
    CUSTOM,
    DIMENSIONS,
    QUALITY,
    load_scores,
    missing_videos,
    read_scores,
    run_vbench,
    sample_name,
    save_scores,
    scores_of,
)


def results(path, values):
    content = {name: [mean, [{"video_path": "a", "video_results": mean}]] for name, mean in values}
    path.write_text(json.dumps(content))
    return path


def test_videos_are_named_after_prompt_and_sample():
    assert sample_name("a person swimming in ocean", 3) == "a person swimming in ocean-3"
    with pytest.raises(UserError, match="names_file"):
        sample_name("a cat and/or a dog", 0)
    with pytest.raises(UserError, match="names_file"):
        sample_name("long " * 60, 0)


def test_missing_videos_are_those_that_vbench_would_look_for(tmp_path):
    info = tmp_path / "VBench_full_info.json"
    entries = [
        {"prompt_en": "a cat", "dimension": ["color"]},
        {"prompt_en": "a still lake", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a dog", "dimension": ["scene"]},
    ]
    info.write_text(json.dumps(entries))
    videos = tmp_path / "videos"
    videos.mkdir()
    for index in range(4):
        (videos / f"a cat-{index}.mp4").write_text("")
    assert missing_videos(videos, info, ["color"]) == ["a cat-4.mp4"]
    assert len(missing_videos(videos, info)) == 1 + 25 + 5
    info.write_text(json.dumps(["a cat"]))
    with pytest.raises(UserError, match="lists no prompts"):
        missing_videos(videos, info)
    with pytest.raises(UserError, match="cannot read"):
        missing_videos(videos, tmp_path / "none.json")


def test_scores_are_combined_as_the_leaderboard_does():
    # Every dimension at the top of its range is 1, at the bottom 0.
    tops = {"motion_smoothness": 0.9975, "scene": 0.8222, "appearance_style": 0.2855}
    tops |= {"temporal_style": 0.364, "overall_consistency": 0.364}
    best = scores_of({name: tops.get(name, 1.0) for name in DIMENSIONS})
    assert (best.quality, best.semantic, best.total) == pytest.approx((1, 1, 1))
    # Dynamic degree weighs a half: 6 of 6.5 are left without it.
    still = scores_of(best.dimensions | {"dynamic_degree": 0.0})
    assert still.quality == pytest.approx(6 / 6.5)
    assert still.total == pytest.approx((4 * 6 / 6.5 + 1) / 5)
    half = scores_of(best.dimensions | {"temporal_flickering": (0.6293 + 1) / 2})
    assert half.quality == pytest.approx(6 / 6.5)
    some = scores_of({"color": 0.9})
    assert (some.quality, some.semantic, some.total) == (None, None, None)


def test_result_files_are_read_back_from_one_file_or_many(tmp_path):
    results(tmp_path / "a_eval_results.json", [("color", 0.9), ("scene", 0.4)])
    results(tmp_path / "b_eval_results.json", [(name, 0.9) for name in QUALITY])
    found = read_scores([tmp_path])
    assert found.dimensions["color"] == 0.9
    assert found.quality is not None
    assert found.total is None
    assert read_scores([tmp_path / "a_eval_results.json"]).quality is None


def test_a_missing_or_broken_result_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="name the folder that VBench wrote to"):
        read_scores([tmp_path])
    path = tmp_path / "x_eval_results.json"
    for text, told in (
        ("{", "is not JSON"),
        ("[]", "should hold a dict"),
        ('{"color": []}', "mean"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=told):
            read_scores([path])


def test_scores_stay_beside_a_table_variant_by_variant(tmp_path):
    assert load_scores(tmp_path) == {}
    save_scores(tmp_path, {"window-9": scores_of({"color": 0.9})})
    save_scores(tmp_path, {"window-6": scores_of({"color": 0.7})})
    found = load_scores(tmp_path)
    assert {name: s.dimensions["color"] for name, s in found.items()} == {
        "window-9": 0.9,
        "window-6": 0.7,
    }


@pytest.mark.parametrize(
    ("is_long", "own", "mode"),
    [
        (False, False, "vbench_standard"),
        (False, True, "custom_input"),
        (True, False, "long_vbench_standard"),
        (True, True, "long_custom_input"),
    ],
)
def test_the_package_is_run_where_it_is(is_long, own, mode, tmp_path, monkeypatch):
    asked = {}

    class FakeVBench:
        def __init__(self, device, full_info_dir, output_path):
            asked["made"] = (device, full_info_dir, output_path)
            self.output = output_path

        def evaluate(self, videos_path, name, dimension_list, mode, **options):
            asked.update(videos=videos_path, mode=mode, dimensions=dimension_list, **options)
            path = tmp_path / f"{name}_eval_results.json"
            results(path, [(dimension, 0.5) for dimension in dimension_list])

    package, long = types.ModuleType("vbench"), types.ModuleType("vbench2_beta_long")
    package.VBench = long.VBenchLong = FakeVBench
    monkeypatch.setitem(sys.modules, "vbench", package)
    monkeypatch.setitem(sys.modules, "vbench2_beta_long", long)
    path = run_vbench(
        tmp_path / "videos",
        tmp_path,
        name="ours",
        full_info=tmp_path / "info.json",
        dimensions=["dynamic_degree"],
        is_long=is_long,
        has_own_prompts=own,
        device="cpu",
    )
    assert asked["mode"] == mode
    assert asked["made"] == ("cpu", str(tmp_path / "info.json"), str(tmp_path))
    assert ("clip_length_config" in asked) == is_long
    assert read_scores([path]).dimensions == {"dynamic_degree": 0.5}


def test_without_the_package_or_with_a_wrong_dimension_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vbench", None)
    monkeypatch.setitem(sys.modules, "vbench2_beta_long", None)
    arguments = {"name": "x", "full_info": tmp_path / "info.json"}
    for is_long in (False, True):
        with pytest.raises(UserError, match="pip install vbench in an environment of its own"):
            run_vbench(tmp_path, tmp_path, **arguments, is_long=is_long)
    with pytest.raises(UserError, match="cannot run 'beauty'"):
        run_vbench(tmp_path, tmp_path, **arguments, dimensions=["beauty"])
    with pytest.raises(UserError, match="cannot run 'color'"):
        run_vbench(tmp_path, tmp_path, **arguments, dimensions=["color"], has_own_prompts=True)
    assert "temporal_flickering" not in CUSTOM
