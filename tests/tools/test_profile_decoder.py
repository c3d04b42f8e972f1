"""The table of decoder steps, on the smallest model that it takes."""

import json
import sys

import profile_decoder
import pytest

from longlive.kernels.tiles import TILES

SMALL = ("--size=tiny", "--device=cpu", "--size-px", "16", "16", "--repeats=2", "--latents=1")


def printed(capsys, monkeypatch, *arguments: str) -> tuple[str, list[dict]]:
    monkeypatch.setattr(sys, "argv", ["profile_decoder.py", *SMALL, *arguments])
    monkeypatch.setattr(profile_decoder, "SMALL", (1, 2))
    # They are set for the whole process.
    for flag in ("benchmark", "allow_tf32"):
        monkeypatch.setattr(profile_decoder.torch.backends.cudnn, flag, False)
    profile_decoder.main()
    text = capsys.readouterr().out
    return text, json.loads(text.splitlines()[-1])["rows"]


def test_each_variant_is_a_row_with_its_error_and_one_that_fails_says_why(capsys, monkeypatch):
    variants = ("eager", "channels-last", "folded", "fused", "fused+folded")
    _, rows = printed(capsys, monkeypatch, "--variants", *variants)
    assert [row["variant"] for row in rows[::2]] == list(variants)
    for row in rows[::2]:
        assert min(row["step_ms"], row["first_s"]) > 0
        assert row["error"] < 1e-4
    assert rows[0]["error"] == 0 < rows[-2]["error"]
    assert all("needs a CUDA device" in row["failure"] for row in rows[1::2])


def test_variants_for_which_there_is_no_time_are_left_out(capsys, monkeypatch):
    _, rows = printed(capsys, monkeypatch, "--variants", "eager", "folded", "--seconds", "0")
    assert all("left out" in row["failure"] for row in rows)


def test_the_kernels_of_a_step_are_a_table_under_its_row(capsys, monkeypatch):
    text, rows = printed(
        capsys, monkeypatch, "--variants", "fused+folded", "--kernels", "--no-errors"
    )
    assert "longlive::conv_input" in text
    assert "longlive::interleave_phases" in text
    assert "kernels" not in rows[0]


def test_each_kernel_is_timed_with_each_tile(capsys, monkeypatch):
    monkeypatch.setattr(profile_decoder, "TILES", dict(TILES))
    _, rows = printed(capsys, monkeypatch, "--tiles", "32:4", "16:8")
    tiles = {(row["positions"], row["warps"]) for row in rows}
    assert tiles == {(32, 4), (16, 8)}
    assert {row["kernel"] for row in rows} == {"norm", "sum, norm", "frames", "phases"}
    assert {row["channels"] for row in rows} == {16, 32, 64}
    # A sum reads and writes twice as much, but for the history.
    moved = {row["kernel"]: row["ms"] * row["tb_per_s"] for row in rows if row["channels"] == 16}
    assert moved["sum, norm"] / moved["norm"] == pytest.approx((4 * 12 + 2 * 2) / (2 * 12 + 2 * 2))
