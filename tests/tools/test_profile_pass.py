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


def test_a_variant_may_name_overlays_and_leaves_nothing_for_the_next(capsys, monkeypatch):
    variants = "eager+fuse_projections+fuse_layers", "eager"
    seen: list[str] = []

    def time_variant(model, spec, callbacks, options):
        seen.append(type(model.dit.blocks[0].self_attn).__name__)
        row = timed(model, spec, callbacks, options)
        seen.append(type(model.dit.blocks[0].self_attn).__name__)
        return row

    timed = profile_pass.time_variant
    monkeypatch.setattr(profile_pass, "time_variant", time_variant)
    rows = rows_of(capsys, monkeypatch, "--windows", "9", "--variants", *variants)
    assert [row["variant"] for row in rows] == [*variants]
    assert all(row["step"] > 0 for row in rows)
    assert seen == ["SelfAttention", "StackedSelfAttention", "SelfAttention", "SelfAttention"]


def test_a_variant_of_an_unknown_name_is_refused_with_those_there_are(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        rows_of(capsys, monkeypatch, "--variants", "compiled+fuse_everything")
    assert "'fuse_everything' is not eager, compiled, graph or one of" in capsys.readouterr().err


def test_a_step_is_taken_apart_into_what_it_spends_most_time_in(capsys, monkeypatch):
    arguments = "--windows", "9", "--variants", "eager", "--kernels"
    monkeypatch.setattr(sys, "argv", ["profile_pass.py", *SMALL, *arguments])
    profile_pass.main()
    *table, last = capsys.readouterr().out.splitlines()
    (row,) = json.loads(last)["rows"]
    times = [kernel["ms"] for kernel in row["kernels"]]
    assert times == sorted(times, reverse=True)
    assert 0 < len(times) <= 25
    assert any("addmm" in kernel["name"] for kernel in row["kernels"])
    assert sum(" ms " in line and " x " in line for line in table) == len(times)
