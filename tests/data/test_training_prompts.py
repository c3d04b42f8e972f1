"""Prompts and pairs of prompts to train on."""

import json
from pathlib import Path

import pytest

from longlive.data.training_prompts import PromptBatch, ShapesPrompts, TrainingPrompts, read_pairs
from longlive.errors import UserError
from longlive.shapes import held_out_prompts


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_lines_of_two_files_go_together(tmp_path):
    first = write(tmp_path / "a.txt", "a cat", "a dog")
    second = write(tmp_path / "b.txt", "a hat", "a log")
    assert read_pairs(first, second, 0) == [("a cat", "a hat"), ("a dog", "a log")]


def test_a_jsonl_holds_pairs(tmp_path):
    lines = [json.dumps({"prompts": pair}) for pair in (["a", "b"], ["c", "d"])]
    assert read_pairs(write(tmp_path / "a.jsonl", *lines), None, 0) == [("a", "b"), ("c", "d")]


def test_without_pairs_every_prompt_is_followed_by_another_one_once(tmp_path):
    path = write(tmp_path / "a.txt", "a", "b", "c", "d")
    pairs = read_pairs(path, None, 0)
    assert [first for first, _ in pairs] == ["a", "b", "c", "d"]
    assert sorted(second for _, second in pairs) == ["a", "b", "c", "d"]
    assert all(first != second for first, second in pairs)
    assert pairs == read_pairs(path, None, 0)


def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path):
    one = write(tmp_path / "a.txt", "a")
    two = write(tmp_path / "b.txt", "a", "b")
    with pytest.raises(UserError, match="1 lines and .* 2"):
        read_pairs(one, two, 0)
    three = write(tmp_path / "c.jsonl", json.dumps({"prompts": ["a", "b", "c"]}))
    with pytest.raises(UserError, match="line 1 has 3 prompts"):
        read_pairs(three, None, 0)
    mixed = write(
        tmp_path / "d.jsonl", json.dumps({"prompts": ["a"]}), json.dumps({"prompts": ["a", "b"]})
    )
    with pytest.raises(UserError, match="mixes"):
        read_pairs(mixed, None, 0)
    with pytest.raises(UserError, match="cannot read prompts"):
        TrainingPrompts(tmp_path / "absent.txt").setup("fit")


def test_a_data_module_gives_batches_of_both_prompts(tmp_path):
    first = write(tmp_path / "a.txt", "a", "b", "c")
    data = TrainingPrompts(first, batch_size=2)
    data.setup("fit")
    [batch] = list(data.train_dataloader())
    assert isinstance(batch, PromptBatch)
    assert len(batch.first) == len(batch.second) == 2


def test_held_out_prompts_of_the_shapes_world_are_never_trained_on():
    held_out = {prompt.text for prompt in held_out_prompts()}
    seen = set()
    for batch in ShapesPrompts(batch_size=64).train_dataloader():
        seen |= {*batch.first, *batch.second}
    assert len(seen) > 1000
    assert not seen & held_out
