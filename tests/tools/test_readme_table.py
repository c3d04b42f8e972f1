"""The README's table is made from results, and a stale one is noticed."""

from dataclasses import replace
from pathlib import Path

import pytest
import readme_table
from made_results import RECIPE, changed, results

from longlive.benchmark.report import CLAIMS
from longlive.benchmark.results import Results


@pytest.fixture
def page(tmp_path) -> Path:
    """A README with markers, and two results beside it."""
    embedded = replace(RECIPE, weights_kind="embedded", name="tiny", height_px=96)
    save(results(commit="0123456789abcdef-dirty"), tmp_path, "h200")
    save(results(recipe=embedded, speed=0.5), tmp_path, "cpu")
    readme = tmp_path / "README.md"
    readme.write_text(
        f"# Before\n\n{readme_table.START}\nold\n{readme_table.END}\n\nAfter\n", encoding="utf-8"
    )
    return readme


def save(made: Results, folder: Path, name: str) -> None:
    made.save(folder / "docs" / "results" / name)


def run(readme: Path, *options: str) -> int:
    folder = str(readme.parent / "docs" / "results")
    return readme_table.main(["--readme", str(readme), "--results", folder, *options])


def cells(text: str, name: str) -> dict[str, str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| [{name}]"))
    values = [cell.strip() for cell in line.strip("|").split(" | ")]
    return dict(zip(readme_table.COLUMNS, values, strict=True))


def test_the_table_has_the_numbers_of_the_results(page):
    assert run(page) == 0
    row = cells(page.read_text(), "h200")
    figures = results().figures
    assert row["fps"] == f"{figures['fps'].value:.2f}"
    found = figures["inter_frame_ms"]
    assert row["ms a frame, p50 / p99"] == f"{found.value:.2f} / {found.distribution.p99:.2f}"
    assert row["first frame"] == f"{figures['first_frame_cold_ms'].value:.2f} ms"
    assert row["peak memory"] == "23.00 GiB"
    assert row["prompt to pixel"] == "–"
    assert row["machine"] == "NVIDIA H200"
    assert row["commit"] == "`0123456789-dirty`"
    assert row["video"] == "wan-1.3b, 480x832, 4 steps, window 12, bfloat16"


def test_what_is_around_the_markers_stays(page):
    assert run(page) == 0
    text = page.read_text()
    assert text.startswith(f"# Before\n\n{readme_table.START}\n{readme_table.MADE_BY}\n")
    assert text.endswith(f"\n{readme_table.END}\n\nAfter\n")
    assert "old" not in text


def test_kinds_of_weights_are_kept_apart_each_under_its_claim(page):
    assert run(page) == 0
    text = page.read_text()
    synthetic, embedded = (text.index(CLAIMS[kind]) for kind in ("synthetic", "embedded"))
    assert synthetic < text.index("| [h200]") < embedded < text.index("| [cpu]")
    assert text.count("| run | machine |") == 2


def test_a_second_run_changes_nothing_and_the_check_passes(page):
    run(page)
    before = page.read_bytes()
    assert run(page) == 0
    assert page.read_bytes() == before
    assert run(page, "--check") == 0


def test_the_check_fails_on_a_stale_table_and_leaves_it_alone(page, capsys):
    run(page)
    before = page.read_bytes()
    save(changed(results(), "fps", value=99.0), page.parent, "h200")
    assert run(page, "--check") == 1
    assert "is stale: run python tools/readme_table.py" in capsys.readouterr().err
    assert page.read_bytes() == before
    assert run(page) == 0
    assert cells(page.read_text(), "h200")["fps"] == "99.00"


def test_the_check_fails_on_a_number_typed_by_hand(page):
    run(page)
    text = page.read_text()
    page.write_text(text.replace("23.00 GiB", "12.00 GiB", 1))
    assert run(page, "--check") == 1


def test_a_run_links_to_its_report_where_there_is_one(page):
    run(page)
    assert "[h200](docs/results/h200/results.json)" in page.read_text()
    (page.parent / "docs" / "results" / "h200" / "report.md").write_text("x")
    assert run(page, "--check") == 1
    run(page)
    assert "[h200](docs/results/h200/report.md)" in page.read_text()


def test_an_incomplete_run_is_marked(page):
    save(results(complete=False, ended="interrupted"), page.parent, "h200")
    run(page)
    assert "results.json) (incomplete) |" in page.read_text()


def test_no_results_make_a_sentence(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"{readme_table.START}\n{readme_table.END}\n")
    assert run(readme) == 0
    assert "No benchmark has been run yet." in readme.read_text()
    assert run(readme, "--check") == 0


@pytest.mark.parametrize(
    "text",
    [
        "no markers\n",
        f"{readme_table.START}\n",
        f"{readme_table.END}\n{readme_table.START}\n",
        f"{readme_table.START}\n{readme_table.START}\n{readme_table.END}\n",
    ],
)
def test_missing_or_doubled_markers_are_one_line(page, text, capsys):
    page.write_text(text)
    assert run(page) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert readme_table.START in line
    assert page.read_text() == text


def test_broken_results_and_an_absent_page_are_one_line(page, capsys):
    (page.parent / "docs" / "results" / "cpu" / "results.json").write_text("{")
    assert run(page) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is broken" in line
    assert run(page.with_name("absent.md")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "absent.md" in line
