"""Two runs of a study side by side."""

import compare_studies
import pytest
from compare_studies import Agreement, compare, lines_of

from longlive.evaluation.bootstrap import Estimate
from longlive.evaluation.table import Row, Table


def estimate(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value, value - half, value + half, 10, 10)


def table_of(videos: int = 10, **adherence: float) -> Table:
    """The first is the reference."""
    first = next(iter(adherence.values()))
    rows = tuple(
        Row(
            name,
            {},
            videos,
            0,
            {"adherence": estimate(value)},
            {"adherence": estimate(value - first)} if row else {},
            (),
            "",
        )
        for row, (name, value) in enumerate(adherence.items())
    )
    return Table(rows, (), {})


def test_a_run_agrees_with_itself():
    table = table_of(a=0.9, b=0.8, c=0.85, d=0.895)
    # The last is within its interval of the reference.
    assert compare(table, table) == [Agreement("adherence", 4, pytest.approx(1, abs=1e-5), 2, 2, 2)]


def test_a_difference_of_the_other_sign_and_one_that_may_be_chance_are_told_apart():
    first = table_of(a=0.9, b=0.8, c=0.7)
    (agreement,) = compare(first, table_of(a=0.9, b=0.895, c=0.95))
    assert (agreement.clear, agreement.same_sign, agreement.clear_again) == (2, 1, 0)
    # The best of the second run is the worst of the first.
    assert agreement.ranks == pytest.approx(-0.5, abs=1e-5)


def test_variants_that_are_equal_or_too_few_have_no_ranks():
    same = table_of(a=0.9, b=0.9, c=0.9)
    assert compare(same, table_of(a=0.9, b=0.8, c=0.7))[0].ranks is None
    assert compare(table_of(a=0.9, b=0.8), table_of(a=0.9, b=0.8))[0].ranks is None
    assert "–" in lines_of(compare(same, same))[2]


def test_a_variant_that_is_hardly_judged_does_not_count():
    first = table_of(a=0.9, b=0.8, c=0.7)
    few = table_of(4, c=0.1).rows
    second = Table((*table_of(a=0.9, b=0.8).rows, *few), (), {})
    assert compare(first, second)[0].variants == 2


def test_a_number_under_a_second_name_counts_once():
    table = table_of(a=0.9, b=0.8, c=0.7)
    for row in table.rows:
        row.values["seam"] = row.values["adherence"]
        row.differences["seam"] = row.differences.get("adherence", estimate(0))
    assert len(compare(table, table)) == 1


def test_the_last_line_adds_up():
    table = table_of(a=0.9, b=0.8)
    assert lines_of(compare(table, table))[-1] == "| **all** |  |  | **1** | **1** | **1** |"


def test_a_folder_without_results_is_one_line(tmp_path, capsys):
    assert compare_studies.main([str(tmp_path), str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
