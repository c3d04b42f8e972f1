"""``longlive benchmark compare`` and ``report``: what they print, and a line for what is wrong."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from made_results import results

from longlive.cli import main


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    results().save(tmp_path / "a")
    results(speed=2.0).save(tmp_path / "b")
    return tmp_path / "a", tmp_path / "b"


def compare(*args: object) -> int:
    return main(["benchmark", "compare", *map(str, args)])


def refusal(capsys) -> str:
    written = capsys.readouterr()
    assert written.out == ""
    (line,) = written.err.splitlines()
    return line


def test_two_results_are_compared_on_stdout(folders, capsys):
    assert compare(*folders) == 0
    written = capsys.readouterr()
    assert written.out.startswith("# Two benchmarks\n")
    assert f"`{folders[0]}`" in written.out
    assert "**worse**, exceeds the spread" in written.out
    assert written.err == ""


def test_the_same_goes_into_a_file_if_one_is_named(folders, tmp_path, capsys):
    assert compare(*folders, "--output", tmp_path / "new" / "compared.md") == 0
    assert (tmp_path / "new" / "compared.md").read_text() == capsys.readouterr().out


def test_a_file_may_be_named_in_place_of_its_folder(folders, capsys):
    assert compare(folders[0] / "results.json", folders[1]) == 0
    assert "exceeds the spread" in capsys.readouterr().out


def test_an_incomplete_result_is_compared_with_a_warning(folders, capsys):
    results(complete=False, ended="interrupted").save(folders[1])
    assert compare(*folders) == 0
    assert "> **Warning**: B is incomplete (interrupted)" in capsys.readouterr().out


def test_a_missing_folder_is_one_line(folders, capsys):
    assert compare(folders[0], folders[0].with_name("absent")) == 2
    assert "no results of a benchmark in" in refusal(capsys)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: {"some": "thing"}, "is no result of a benchmark"),
        (lambda content: [1, 2], "is no result of a benchmark"),
        (lambda content: content | {"version": 999}, "has format version 999, not"),
        (lambda content: content | {"rollouts": "none"}, "is broken"),
        (lambda content: {k: v for k, v in content.items() if k != "recipe"}, "recipe is missing"),
    ],
)
def test_what_is_no_result_is_one_line(folders, capsys, change, told):
    path = folders[1] / "results.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert compare(*folders) == 2
    assert told in refusal(capsys)


def test_a_file_that_is_cut_off_is_one_line(folders, capsys):
    path = folders[1] / "results.json"
    path.write_text(path.read_text()[:1000])
    assert compare(*folders) == 2
    assert "is broken (no JSON)" in refusal(capsys)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "required: A, B"),
        (("a",), "required: B"),
        (("a", "b", "c"), "unrecognized arguments: c"),
        (("a", "b", "--outputs", "x"), "unrecognized arguments: --outputs"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, told, capsys):
    assert compare(*arguments) == 2
    assert told in refusal(capsys)


def test_a_folder_for_the_output_is_refused_before_anything_is_printed(folders, tmp_path, capsys):
    assert compare(*folders, "--output", tmp_path) == 2
    assert "is a folder: name a file" in refusal(capsys)


def test_an_output_that_cannot_be_written_is_one_line(folders, capsys):
    inside_a_file = folders[0] / "results.json" / "compared.md"
    assert compare(*folders, "--output", inside_a_file) == 2
    assert "cannot write" in refusal(capsys)


def test_the_report_can_be_written_again(folders, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    replace(results(), complete=False, ended="interrupted").save(folders[0])
    assert main(["benchmark", "report", str(folders[0])]) == 0
    path = capsys.readouterr().out.strip()
    assert path == str(folders[0] / "report.md")
    assert "**Incomplete**: interrupted" in Path(path).read_text()


def test_a_report_on_nothing_is_one_line(tmp_path, capsys):
    assert main(["benchmark", "report", str(tmp_path)]) == 2
    assert "no results of a benchmark" in refusal(capsys)
