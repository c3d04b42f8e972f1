"""Prompt files: the reference's formats, the timeline, and every way to write them wrong."""

import json

import pytest

from longlive.data.prompt_files import read_prompt_file
from longlive.errors import UserError


def write(tmp_path, name: str, text: str | bytes):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("text", ["one\ntwo words\n", "one\ntwo words", "one  \r\ntwo words\t\r\n"])
def test_a_txt_file_has_a_video_per_line_without_trailing_white_space(tmp_path, text):
    entries = read_prompt_file(write(tmp_path, "p.txt", text))
    assert [entry.prompts for entry in entries] == [("one",), ("two words",)]
    assert [entry.switch_latent_frames for entry in entries] == [None, None]


def test_a_byte_order_mark_and_rare_line_separators_do_not_end_up_in_or_cut_a_prompt(tmp_path):
    text = "\ufeffone\u2028still one\ntwo\n"
    entries = read_prompt_file(write(tmp_path, "p.txt", text))
    assert [entry.prompts[0] for entry in entries] == ["one\u2028still one", "two"]


def test_a_jsonl_file_has_a_list_of_prompts_per_line_and_may_say_where_they_switch(tmp_path):
    lines = [
        {"prompts": ["a", "b", "c"]},
        {"prompts": ["d", "é"], "switch_frame_indices": [40]},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    first, second = read_prompt_file(write(tmp_path, "p.jsonl", text))
    assert (first.prompts, first.switch_latent_frames) == (("a", "b", "c"), None)
    assert (second.prompts, second.switch_latent_frames) == (("d", "é"), (40,))


def test_a_yaml_timeline_is_one_video_and_counts_seconds_or_latent_frames(tmp_path):
    text = """
    - prompt: a
    - {at_seconds: 10, prompt: b}
    - {at_latent_frame: 60, prompt: c}
    """
    [entry] = read_prompt_file(write(tmp_path, "p.yaml", text))
    assert entry.prompts == ("a", "b", "c")
    # Latent frame 40 ends with frame 160, which is shown from second 10 on; 41 is the first that
    # shows nothing earlier.
    assert entry.switch_latent_frames == (41, 60)


def test_a_timeline_may_say_that_it_starts_at_zero(tmp_path):
    for key in ("at_seconds", "at_latent_frame"):
        [entry] = read_prompt_file(write(tmp_path, "p.yml", f"- {{{key}: 0, prompt: a}}"))
        assert (entry.prompts, entry.switch_latent_frames) == (("a",), ())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "", "is empty"),
        ("p.txt", "one\n\nthree\n", r"p\.txt line 2 is blank"),
        ("p.txt", "one\n\n", r"p\.txt line 2 is blank"),
        ("p.txt", b"one\n\xff\xfe\n", "not UTF-8"),
        ("p.csv", "one", r"must end in \.txt"),
        ("p.jsonl", '{"prompts": ["a"]}\n{"prompts": ["a",]}', r"line 2 is not JSON .*column \d+"),
        ("p.jsonl", '["a"]', "line 1 has no prompts"),
        ("p.jsonl", '{"prompt": "a"}', "line 1 has no prompts"),
        ("p.jsonl", '{"prompts": "a"}', "must be a list of strings, got 'a'"),
        ("p.jsonl", '{"prompts": []}', r"must be a list of strings, got \[\]"),
        ("p.jsonl", '{"prompts": ["a", 5]}', "must be a string, got 5"),
        ("p.jsonl", '{"prompts": ["a", " "]}', "line 1 has an empty prompt"),
        ("p.jsonl", '{"prompts": ["a"], "switch": [3]}', "unknown key 'switch'"),
        ("p.jsonl", '{"prompts": ["a"], "switch_frame_indices": "3"}', "whole numbers"),
        ("p.jsonl", '{"prompts": ["a"], "switch_frame_indices": [3.5]}', "whole numbers"),
        ("p.jsonl", '{"prompts": ["a"], "switch_frame_indices": [true]}', "whole numbers"),
        ("p.yaml", "", "is empty"),
        ("p.yaml", "- prompt: [a\n- b", "line 2 is not YAML"),
        ("p.yaml", "prompt: a", "must be a list"),
        ("p.yaml", "- a", "entry 1 has no prompt"),
        ("p.yaml", "- prompt: 5", "must be a string, got 5; quote it"),
        ("p.yaml", "- {at_seconds: 2, prompt: a}", "entry 1 must start the video"),
        ("p.yaml", "- prompt: a\n- prompt: b", "entry 2 needs either"),
        ("p.yaml", "- prompt: a\n- {at_second: 3, prompt: b}", "entry 2 needs either"),
        ("p.yaml", "- prompt: a\n- {at_seconds: -3, prompt: b}", "from 0 on, got -3"),
        ("p.yaml", "- prompt: a\n- {at_seconds: .inf, prompt: b}", "from 0 on, got inf"),
        ("p.yaml", "- prompt: a\n- {at_latent_frame: 2.5, prompt: b}", "from 0 on, got 2.5"),
    ],
)
def test_a_malformed_file_is_one_line_that_names_the_place(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_prompt_file(write(tmp_path, name, text))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_file_or_a_folder_is_a_user_error(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    for name in ("missing.txt", "folder.txt"):
        with pytest.raises(UserError, match=name):
            read_prompt_file(tmp_path / name)
