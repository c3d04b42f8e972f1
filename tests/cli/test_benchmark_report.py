"""benchmark report: floors at ceilings that are given afterwards."""

from dataclasses import replace
from pathlib import Path

import made_results
import pytest

from longlive.benchmark.results import Results
from longlive.cli import main

ROOT = Path(__file__).parents[2]
CEILINGS = ROOT / "configs" / "ceilings" / "h200.yaml"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    # The command in the results names configurations as it was run there.
    monkeypatch.chdir(ROOT)


def test_a_report_takes_ceilings_of_a_machine_that_is_not_here(tmp_path, capsys):
    rows = [replace(row, floor_ms=None) for row in made_results.work()]
    made_results.results(work=tuple(rows), ceilings=None).save(tmp_path)
    assert main(["benchmark", "report", str(tmp_path), "--ceilings", str(CEILINGS)]) == 0
    found = Results.load(tmp_path)
    assert found.ceilings is not None
    assert found.ceilings["gemm_tflops"] == 657
    rows = {(row.piece, row.work): row for row in found.work}
    feed_forward = rows["step, steady", "feed-forward"]
    assert feed_forward.measured_ms == 12.6, "what was measured stays"
    whole = rows["step, steady", "all"]
    # 28.3 TFLOP of which 16.1 in the attention: the figures of docs/costs.md.
    assert whole.floor_ms == pytest.approx(49.6, rel=0.01)
    assert "| step, steady | **all** |" in (tmp_path / "report.md").read_text()


def test_ceilings_of_another_type_are_one_line(tmp_path, capsys):
    ceilings = tmp_path / "other.yaml"
    ceilings.write_text(CEILINGS.read_text().replace("dtype: bfloat16", "dtype: float32"))
    made_results.results().save(tmp_path)
    assert main(["benchmark", "report", str(tmp_path), "--ceilings", str(ceilings)]) == 2
    assert "the model computes in bfloat16" in capsys.readouterr().err
