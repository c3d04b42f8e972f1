"""The table of attention kernels, at sizes that a CPU takes."""

import json
import sys

import pytest
import time_attention

SMALL = ("--device=cpu", "--heads=2", "--head-dim=32", "--frame=8", "--repeats=2")


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["time_attention.py", *SMALL, *arguments])
    time_attention.main()


def test_each_size_and_kernel_is_a_row_with_its_error(capsys, monkeypatch):
    run(monkeypatch, "--queries", "40", "70", "--keys", "48", "96")
    *lines, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["rows"]
    timed = [row for row in rows if row["kernel"] != "fp8 write"]
    assert [(row["queries"], row["keys"], row["kernel"]) for row in timed] == [
        (queries, keys, kernel)
        for keys in (48, 96)
        for queries in (40, 70)
        for kernel in ("sdpa", "fp8, plain")
    ]
    for plain, fp8 in zip(timed[::2], timed[1::2], strict=True):
        assert plain["error"] < 1e-5
        assert 0.01 < fp8["error"] < 0.1
    for row in timed:
        operations = 4 * row["queries"] * row["keys"] * 2 * 32
        assert row["tflops"] == pytest.approx(operations / row["ms"] / 1e9)
        assert row["max"] >= row["ms"] > 0
    assert [row["keys"] for row in rows if row["kernel"] == "fp8 write"] == [48, 96]
    assert len(lines) == 3 + len(rows)


def test_a_kernel_that_fails_is_a_row_that_says_why(capsys, monkeypatch):
    def broken(*given: object) -> None:
        raise RuntimeError("no tensor\n cores")

    monkeypatch.setattr(time_attention, "plain_fp8_attention", broken)
    run(monkeypatch, "--queries", "40", "--keys", "48")
    out = capsys.readouterr().out
    assert "RuntimeError: no tensor cores" in out
    assert json.loads(out.splitlines()[-1])["rows"][-1]["kernel"] == "fp8 write"


def test_keys_that_are_no_whole_frames_are_refused(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--keys", "50")
    assert "whole latent frames of 8 tokens" in capsys.readouterr().err
