"""The table of passes, on the smallest model that it takes."""

import json
import sys

import profile_pass
import pytest

SMALL = ("--size=tiny", "--device=cpu", "--height=32", "--width=32", "--repeats=2")


def rows_of(capsys, monkeypatch, *arguments: str) -> list[dict]:
    monkeypatch.setattr(sys, "argv", ["profile_pass.py", *SMALL, *arguments])
    profile_pass.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]


def test_each_window_and_variant_is_a_row_and_one_that_fails_says_why(capsys, monkeypatch):
    rows = rows_of(capsys, monkeypatch, "--windows", "9", "6", "--variants", "eager", "graph")
    assert [(row["window"], row["variant"]) for row in rows] == [
        *((9, "eager"), (9, "graph"), (6, "eager"), (6, "graph"))
    ]
    for row in rows[::2]:
        assert row["block"] == pytest.approx(4 * row["step"] + row["update"])
        assert min(row["step"], row["update"], row["recache"]) > 0
    assert all("needs a CUDA device" in row["error"] for row in rows[1::2])


def test_variants_for_which_there_is_no_time_are_left_out(capsys, monkeypatch):
    rows = rows_of(capsys, monkeypatch, "--windows", "9", "--variants", "eager", "--seconds", "0")
    assert "left out" in rows[0]["error"]


def test_all_rows_can_be_in_eight_bits(capsys, monkeypatch, caplog):
    caplog.set_level("INFO", "longlive")
    arguments = "--windows", "9", "--variants", "eager", "--quantize", "int8", "--keeps", "*_attn.*"
    rows = rows_of(capsys, monkeypatch, *arguments)
    assert rows[0]["step"] > 0
    # Two of the feed-forward network in each of the six layers.
    assert "12 linear layers multiply in int8" in caplog.messages
