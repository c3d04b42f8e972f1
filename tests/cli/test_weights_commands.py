"""download and convert: options reach the functions, and whatever fails is one line."""

import inspect
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from longlive.cli import main
from longlive.models.dit import DiT
from longlive.weights import convert as convert_module
from longlive.weights import hub
from longlive.weights.state_dicts import read_state_dict


@pytest.fixture
def calls(monkeypatch):
    """Records what ``download`` and ``convert`` are called with, under their parameters' names."""
    recorded = []

    def stand_in(original, result):
        signature = inspect.signature(original)

        def record(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            recorded.append(bound.arguments)
            return result

        return record

    monkeypatch.setattr(hub, "download", stand_in(hub.download, [Path("a.pt"), Path("b.pt")]))
    converter = stand_in(convert_module.convert, Path("out/longlive.safetensors"))
    monkeypatch.setattr(convert_module, "convert", converter)
    return recorded


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(DiT("tiny").state_dict(), path)
    return path


def told(capsys) -> str:
    """The one line on stderr, without its beginning."""
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("\n") == 1
    start = "longlive: error: "
    assert written.err.startswith(start)
    return written.err[len(start) :].rstrip("\n")


def test_download_with_a_name_only_takes_the_defaults(calls, capsys):
    assert main(["download", "wan-1.3b"]) == 0
    assert calls == [
        {"name": "wan-1.3b", "folder": Path("models"), "endpoint": None, "revision": None}
    ]
    assert capsys.readouterr().out == "a.pt\nb.pt\n"


def test_download_passes_every_option_on(calls):
    options = ["--folder", "m", "--endpoint", "http://mirror", "--revision", "v1"]
    assert main(["download", *options, "longlive-1.3b"]) == 0
    assert calls == [
        {
            "name": "longlive-1.3b",
            "folder": Path("m"),
            "endpoint": "http://mirror",
            "revision": "v1",
        }
    ]


def test_convert_with_what_is_required_takes_the_defaults(calls, capsys):
    assert main(["convert", "--base", "b.pt", "--output", "out"]) == 0
    assert calls == [
        {
            "base": Path("b.pt"),
            "lora": None,
            "output": Path("out"),
            "alpha": 256.0,
            "dtype": "bfloat16",
            "entry": None,
            "overwrite": False,
        }
    ]
    assert capsys.readouterr().out == f"{Path('out/longlive.safetensors')}\n"


def test_convert_passes_every_option_on(calls):
    options = ["--lora", "l.pt", "--alpha", "64", "--dtype", "float16", "--entry", "generator_ema"]
    assert main(["convert", "--base", "b.pt", "--output", "out", *options, "--overwrite"]) == 0
    assert calls == [
        {
            "base": Path("b.pt"),
            "lora": Path("l.pt"),
            "output": Path("out"),
            "alpha": 64.0,
            "dtype": "float16",
            "entry": "generator_ema",
            "overwrite": True,
        }
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("download", "arguments are required: NAME; see longlive download --help"),
        ("download wan-1.3b extra", "unrecognized arguments: extra; see longlive download"),
        ("download nope", "choose from longlive-1.3b, wan-1.3b, wan-14b"),
        ("convert --base b.pt", "arguments are required: --output; see longlive convert --help"),
        ("convert --base b.pt --output o --alpha much", "argument --alpha: invalid"),
        ("convert --base b.pt --output o --alpha nan", "nan is not a finite number"),
        ("convert --base b.pt --output o --over", "unrecognized arguments: --over"),
        ("convert --base b.pt --output o --dtype fp8", "float32, bfloat16, float16"),
        ("convert --base b.pt --output o", "no weights at b.pt"),
    ],
)
def test_wrong_arguments_are_one_line_that_says_what_to_do(
    line, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    assert expected in told(capsys)


def test_a_hub_out_of_reach_is_one_line_that_names_it(tmp_path, capsys):
    pytest.importorskip("huggingface_hub")
    line = ["download", "wan-14b", "--folder", str(tmp_path), "--endpoint", "http://127.0.0.1:9"]
    assert main(line) == 2
    assert "http://127.0.0.1:9" in told(capsys)


def test_convert_makes_weights_of_the_wanted_type_and_prints_where(base, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["convert", "--base", str(base), "--output", str(out), "--dtype", "float16"]) == 0
    path = Path(capsys.readouterr().out.removesuffix("\n"))
    assert path == out / "longlive.safetensors"
    made = read_state_dict(path)
    assert made.keys() == DiT("tiny").state_dict().keys()
    assert {tensor.dtype for tensor in made.values()} == {torch.float16}


def test_convert_replaces_only_with_overwrite(base, tmp_path, capsys):
    line = ["convert", "--base", str(base), "--output", str(tmp_path / "out")]
    assert main(line) == 0
    capsys.readouterr()
    assert main(line) == 2
    assert "longlive.safetensors exists" in told(capsys)
    assert main([*line, "--overwrite"]) == 0


def test_an_output_that_cannot_be_a_folder_is_one_line(base, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert main(["convert", "--base", str(base), "--output", str(tmp_path / "out")]) == 2
    assert f"into {tmp_path / 'out'}" in told(capsys)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_disk_that_fills_up_is_one_line(base, tmp_path, capsys, monkeypatch, error):
    def fill_up(*args):
        raise error

    monkeypatch.setattr(convert_module, "save_file", fill_up)
    assert main(["convert", "--base", str(base), "--output", str(tmp_path / "out")]) == 2
    assert "No space left on device" in told(capsys)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("download", ["--folder", "--endpoint", "--revision"]),
        ("convert", ["--base", "--lora", "--output", "--alpha", "--dtype", "--entry"]),
    ],
)
def test_help_names_every_option(command, options, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: longlive {command} ")
    assert [option for option in options if option not in shown] == []
