"""``longlive analyze``: the numbers add up, and what cannot work is told in a line."""

import json
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest

from longlive.cli import main
from longlive.metrics import measure_ceilings as measuring
from longlive.metrics.ceilings import Ceilings

H200 = str(Path(__file__).parents[2] / "configs" / "ceilings" / "h200.yaml")
TINY = ("--size", "tiny", "--height", "32", "--width", "48")


@cache
def as_json(*options: str) -> dict:
    """The JSON document, asked for once; not to be changed."""
    out = StringIO()
    with redirect_stdout(out):
        assert main(["analyze", "--json", *options]) == 0
    return json.loads(out.getvalue())


def entries(report: dict) -> dict[str, dict]:
    by_name = {entry["name"]: entry for entry in report["entries"]}
    assert len(by_name) == len(report["entries"])
    return by_name


def test_the_published_setup_is_the_default():
    report = as_json("--ceilings", H200)
    assert report["tokens_per_latent_frame"] == 1560
    assert report["window_tokens"] == 18720
    assert report["kv_cache_bytes"] == 2 * 30 * 18720 * 1536 * 2
    pieces = entries(report)
    assert pieces["step, steady"]["shape"] == {
        "queries": 4680,
        "keys": 18720,
        "keys_only": False,
        "attention_pairs": 4680 * 18720,
    }
    assert pieces["step, steady"]["flops"] == pytest.approx(28.3e12, rel=1e-3)
    block = pieces["block, steady"]
    assert block["frames"] == 12
    assert 1e3 * block["frames"] / block["floor_ms"] == pytest.approx(38, abs=0.5)


def test_pieces_add_up_to_blocks():
    pieces = entries(as_json(*TINY, "--steps", "7", "--ceilings", H200))
    for measure in ("flops", "bytes"):
        total = (
            7 * pieces["step, steady"][measure]
            + pieces["context update, steady"][measure]
            + pieces["vae decode, later blocks"][measure]
        )
        assert pieces["block, steady"][measure] == total
        switch = ("text encoder, 16 tokens", "text keys and values", "recache")
        assert pieces["prompt switch"][measure] == sum(pieces[name][measure] for name in switch)
    for piece in pieces.values():
        for measure in ("flops", "bytes"):
            assert piece[measure] == sum(kind[measure] for kind in piece["kinds"].values())
        floors = [kind["floor_ms"] for kind in piece["kinds"].values()]
        assert piece["floor_ms"] == pytest.approx(sum(floors))


def test_the_first_block_makes_fewer_frames_and_is_decoded_for_less():
    pieces = entries(as_json(*TINY))
    assert [pieces[name]["frames"] for name in ("block 0", "block 1", "block, steady")] == [
        *(9, 12, 12)
    ]
    first, later = pieces["vae decode, block 0"], pieces["vae decode, later blocks"]
    alone = pieces["vae decode, first latent"]
    assert alone["flops"] < first["flops"] < later["flops"]


def test_every_filling_pass_is_listed_and_sees_more_than_the_one_before():
    pieces = entries(as_json(*TINY, "--window", "8", "--sink", "1", "--block", "2"))
    names = ["step, block 0", "step, block 1", "step, block 2", "step, steady"]
    assert [pieces[name]["shape"]["keys"] // 24 for name in names] == [2, 4, 6, 8]
    assert "step, block 3" not in pieces


def test_a_window_of_one_block_is_full_from_the_start():
    pieces = entries(as_json(*TINY, "--window", "3", "--sink", "0"))
    assert "step, block 0" not in pieces
    assert pieces["block 0"]["frames"] == 9
    assert pieces["block 0"]["flops"] < pieces["block, steady"]["flops"]


def test_the_text_encoder_runs_on_the_tokens_that_are_asked_for():
    few, all_ = (entries(as_json(*TINY, *options)) for options in (("--text-tokens", "5"), ()))
    assert few["text encoder, 5 tokens"]["flops"] < all_["text encoder, 16 tokens"]["flops"]
    assert few["step, steady"] == all_["step, steady"]


def test_wider_numbers_move_more_and_compute_the_same():
    narrow, wide = (entries(as_json(*TINY, "--dtype", dtype)) for dtype in ("bfloat16", "float32"))
    for name, piece in wide.items():
        assert piece["flops"] == narrow[name]["flops"]
        assert piece["bytes"] == 2 * narrow[name]["bytes"]


def test_without_rates_there_is_no_floor(capsys):
    report = as_json(*TINY)
    assert report["ceilings"] is None
    assert all(entry["floor_ms"] is None for entry in report["entries"])
    assert main(["analyze", *TINY]) == 0
    shown = capsys.readouterr().out
    assert "--ceilings FILE or --measure-ceilings" in shown
    assert "floor ms" not in shown
    assert "fps" not in shown


def test_rates_can_be_measured_on_this_machine(monkeypatch):
    given = []

    def measure(device, dtype):
        given.append(str(dtype))
        return Ceilings("this one", "float32", 1.0, 1.0, 1.0, 1.0)

    monkeypatch.setattr(measuring, "measure_ceilings", measure)
    report = as_json(*TINY, "--measure-ceilings", "--dtype", "float32")
    assert given == ["torch.float32"]
    assert report["ceilings"]["name"] == "this one"
    assert entries(report)["step, steady"]["floor_ms"] > 0


def test_the_table_shows_every_piece_and_every_kind_of_a_steady_block(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    pieces = entries(as_json("--ceilings", H200))
    assert main(["analyze", "--ceilings", H200]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip() for line in lines]
    for name in (*pieces, *pieces["block, steady"]["kinds"]):
        assert sum(row.startswith(f"{name}  ") for row in rows) == 1
    steady = next(row for row in rows if row.startswith("step, steady"))
    assert steady.split()[2:] == ["4680", "x", "18720", "28.3", "18.0", "49.6"]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--window", "5"], "no room for a sink of 3 and a block of 3"),
        (["--sink", "4"], "a sink of 4 latent frames is larger than a block of 3"),
        (["--block", "0"], "a block needs at least one latent frame"),
        (["--steps", "0"], "at least one denoising step"),
        (["--height", "481"], "positive multiples of 16"),
        (["--size", "huge"], "invalid choice: 'huge'"),
        (["--dtype", "int8"], "choose one of bfloat16, float16, float32"),
        (["--text-tokens", "513"], "513 text tokens do not fit: wan-1.3b takes 1 to 512"),
        (["--text-tokens", "0"], "0 text tokens do not fit"),
        (["--ceilings", "absent.yaml"], "cannot read ceilings from absent.yaml"),
        (["--ceilings", H200, "--dtype", "float32"], "set --dtype bfloat16"),
        (["--ceilings", H200, "--measure-ceilings"], "not allowed with"),
        (["--windows", "9"], "unrecognized arguments: --windows 9"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_2(options, told, capsys):
    assert main(["analyze", *options]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert len(written.err.splitlines()) == 1
    assert told in written.err
