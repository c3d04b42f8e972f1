"""The report says what the results say, and nothing else."""

import re
import sys
from dataclasses import replace

import pytest
from made_results import ENVIRONMENT, GIB, RECIPE, changed, results, rollout

from longlive.benchmark.checks import checks
from longlive.benchmark.definitions import DEFINITIONS
from longlive.benchmark.markdown import decimals, show
from longlive.benchmark.plots import PLOTS
from longlive.benchmark.report import report_text, write_report
from longlive.benchmark.results import Results
from longlive.benchmark.samples import CONTEXT, COPY, DECODE, DIFFUSION, OTHER
from longlive.errors import UserError


def section(text: str, title: str) -> str:
    """What stands below a heading, up to the next one of its kind."""
    level = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert level, title
    rest = text[level.end() :]
    return re.split(rf"^{level[1]} ", rest, flags=re.MULTILINE)[0]


def cells(text: str, first: str) -> list[str]:
    """Cells of the one row that begins with ``first``."""
    rows = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    assert len(rows) == 1, rows
    return [cell.strip().strip("*") for cell in rows[0].strip("|").split(" | ")]


def with_blocks(made: Results, change) -> Results:
    """The same with every block of every rollout changed."""
    return replace(
        made,
        rollouts=tuple(
            replace(one, blocks=tuple(change(block) for block in one.blocks))
            for one in made.rollouts
        ),
    )


def test_every_figure_is_shown_with_its_statistics_and_its_definition():
    made = results()
    text = section(report_text(made), "Figures")
    for name, figure in made.figures.items():
        definition = DEFINITIONS[name]
        row = cells(text, definition.title)
        if figure.value is None:
            assert row[1] == f"none: {figure.reason}"
        else:
            assert row[1] == show(figure.value, figure.unit)
        if figure.distribution is not None:
            found = figure.distribution
            numbers = (found.mean, found.p50, found.p95, found.p99, found.max)
            assert row[2:7] == [show(number, figure.unit) for number in numbers]
            assert row[7] == str(found.count)
        assert f"**{definition.title}** (`{name}`): {definition.text}." in text


def test_a_changed_figure_shows_in_its_row_and_in_no_other():
    made = results()
    before = report_text(made).splitlines()
    after = report_text(changed(made, "fps", value=123.4)).splitlines()
    different = [line for line in after if line not in before]
    assert len(different) == 2  # in short, and in its own table
    assert all("frames per second" in line and "123.40 fps" in line for line in different)


def test_a_figure_that_this_version_does_not_know_is_shown_by_its_name():
    made = results()
    odd = replace(made.figures["fps"], definition="from_the_future", value=4.5)
    text = report_text(replace(made, figures={"odd_ms": odd}))
    assert cells(text, "odd_ms")[1] == "4.50 fps"


def test_synthetic_weights_are_said_before_any_number():
    head = report_text(results()).split("## In short")[0]
    assert head.splitlines()[2].startswith("> **Synthetic weights**")
    assert "quality" in head.splitlines()[2]
    embedded = results(recipe=replace(RECIPE, weights_kind="embedded"))
    assert "Synthetic" not in report_text(embedded)
    assert report_text(embedded).splitlines()[2].startswith("> **Embedded weights**")


def test_an_incomplete_result_says_so_and_why():
    text = report_text(results(complete=False, ended="interrupted"))
    assert "> **Incomplete**: interrupted." in text.split("## In short")[0]
    assert "Complete. Started" not in text
    assert "Incomplete" not in report_text(results())


def test_the_command_is_there_to_copy():
    assert f"```bash\n{RECIPE.command}\n```" in report_text(results())


def test_the_budget_is_the_mean_time_of_a_part_over_the_frames_of_its_blocks():
    text = section(report_text(results()), "Time budget of a frame")
    steady = [
        block
        for i in range(10)
        for block in rollout(i).blocks
        if block.index >= 3 and not block.switches
    ]
    for part in (DIFFUSION, DECODE, COPY, CONTEXT):
        ms = sum(block.parts_ms[part] for block in steady) / (12 * len(steady))
        assert cells(text, part)[3] == decimals(ms)
    assert cells(text, "initialization")[1] == decimals(6 / 9)
    assert cells(text, "initialization")[3] == "–"
    assert cells(text, "recache")[3] == "–"


def test_a_slower_decode_shows_in_its_row_with_its_size_and_in_no_other_part():
    def slower(block):
        parts = {**block.parts_ms, DECODE: block.parts_ms[DECODE] + 120}
        return replace(block, parts_ms=parts, end_ms=block.end_ms + 120)

    made = results()
    plain, slow = (
        section(report_text(one), "Time budget of a frame")
        for one in (made, with_blocks(made, slower))
    )
    for part in (DIFFUSION, COPY, CONTEXT):
        assert cells(slow, part)[3] == cells(plain, part)[3]
    before, after = (float(cells(text, DECODE)[3]) for text in (plain, slow))
    assert after - before == pytest.approx(120 / 12, abs=0.011)


def test_an_allocated_gigabyte_shows_in_the_row_of_its_region():
    made = results()
    regions = list(made.breakdown.regions)
    regions[1] = replace(
        regions[1],
        peak_bytes=regions[1].peak_bytes + GIB,
        grown_bytes=regions[1].grown_bytes + GIB,
    )
    greedy = replace(made, breakdown=replace(made.breakdown, regions=tuple(regions)))
    plain, text = (section(report_text(one), "Memory") for one in (made, greedy))
    assert cells(plain, "· · VAE decode")[2:] == ["23.00 GiB", "128.0 MiB"]
    assert cells(text, "· · VAE decode")[2:] == ["24.00 GiB", "1.12 GiB"]
    assert cells(text, "· · context update") == cells(plain, "· · context update")


def test_layers_are_summed_per_kind_of_pass():
    made = results()
    text = section(report_text(made), "Inside the layers")
    for part in ("attention", "RoPE"):
        rows = [row for row in made.breakdown.layers if row.part == part]
        shown = cells(text, part)
        assert [shown[1], shown[3]] == [decimals(sum(row.layers_ms)) for row in rows]
    assert "denoising step (40 passes)" in text
    assert "take shares from here" in text


def test_layers_that_were_timed_in_a_run_of_their_own_say_so_beside_their_tables():
    made = results()
    without = replace(made.breakdown, layers_without=("CompileLayers", "CaptureDenoiser"))
    said = "timed in a separate eager run**, without CompileLayers, CaptureDenoiser: shares, not"
    for title in ("Inside the layers", "Measured time over the floor"):
        assert said in section(report_text(replace(made, breakdown=without)), title)
        assert "eager run" not in section(report_text(made), title)


def test_measured_time_stands_over_the_floor_where_both_are_known():
    text = section(report_text(results()), "Measured time over the floor")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| step, steady")]
    by_work = {row[1].strip("*"): [cell.strip(" |") for cell in row] for row in rows}
    assert by_work["feed-forward"][2:] == [
        *("7.70", "5.10", "11.80", "12.60", "1.07"),
        decimals(7.7e12 / 12.6e-3 / 1e12),
    ]
    assert by_work["cross-attention"][5:] == ["–", "–", "–"]
    assert "attention 523 TFLOP/s" in text
    without = section(report_text(results(ceilings=None)), "Measured time over the floor")
    assert "No ceilings are known" in without
    assert "does not know this configuration" in report_text(results(work=()))


def test_clocks_before_and_after_stand_side_by_side():
    text = section(report_text(results()), "Clocks and power")
    assert cells(text, "clock of the multiprocessors, MHz")[1:] == ["1980", "1755"]
    assert cells(text, "power drawn, W")[1:] == ["120", "412.50"]
    no_gpu = replace(ENVIRONMENT, gpu_before=None, gpu_after=None)
    assert "no GPU whose clocks" in report_text(results(environment=no_gpu))


def test_the_environment_names_absent_packages_too():
    text = section(report_text(results()), "Machine")
    assert cells(text, "triton")[1] == "3.6.0"
    assert cells(text, "flash-attn-4")[1] == "not installed"
    assert cells(text, "driver")[1] == "580.1"


def test_parts_that_add_up_are_said_to():
    text = section(report_text(results()), "Do the parts add up?")
    assert "**All add up**" in text
    assert all(check.holds for check in checks(results()))


def test_what_no_part_covers_counts_as_missing_and_the_difference_is_stated():
    made = results()
    figure = made.figures["first_frame_cold_ms"]
    total = figure.distribution.mean
    components = {"block 0": 0.9 * total, "other": 0.1 * total}
    text = section(
        report_text(changed(made, "first_frame_cold_ms", components=components)),
        "Do the parts add up?",
    )
    assert "**Not all add up**: the largest difference is -10.00 %" in text
    assert cells(text, "first frame, cold prompt, mean: block 0")[3:] == ["-10.00 %", "no"]


def test_parts_that_run_side_by_side_may_be_longer_than_their_block_and_not_shorter():
    def beside(block):
        parts = {**block.parts_ms, OTHER: -0.3 * block.period_ms}
        return replace(block, parts_ms=parts)

    made = results()
    figure = made.figures["inter_frame_ms"]
    mean = figure.distribution.mean
    longer = changed(made, "inter_frame_ms", components={DIFFUSION: 1.3 * mean, OTHER: -0.3 * mean})
    row = f"inter-frame latency, mean: {DIFFUSION}"
    text = section(report_text(with_blocks(longer, beside)), "Do the parts add up?")
    assert cells(text, row)[3:] == ["+30.00 %", "side by side"]
    text = section(report_text(longer), "Do the parts add up?")
    assert cells(text, row)[3:] == ["+30.00 %", "no"]
    shorter = changed(made, "inter_frame_ms", components={DIFFUSION: 0.9 * mean, OTHER: 0.1 * mean})
    text = section(report_text(with_blocks(shorter, beside)), "Do the parts add up?")
    assert cells(text, row)[3:] == ["-10.00 %", "no"]


def test_an_outside_clock_that_disagrees_is_found_in_the_worst_rollout():
    made = results()
    rollouts = list(made.rollouts)
    rollouts[4] = replace(rollouts[4], wall_ms=rollouts[4].wall_ms * 1.25)
    (walls,) = (
        check
        for check in checks(replace(made, rollouts=tuple(rollouts)))
        if check.name.startswith("wall clock of plain rollout 4")
    )
    assert walls.difference == pytest.approx(1 / 1.25 - 1, abs=1e-3)
    assert not walls.holds


def test_a_block_whose_parts_do_not_make_its_period_is_found():
    made = results()

    def leaky(block):
        return replace(block, end_ms=block.end_ms + 100 * (block.index == 5))

    (period,) = (
        check for check in checks(with_blocks(made, leaky)) if check.name.startswith("period")
    )
    assert period.name.startswith("period of block 5 ")
    assert not period.holds


def test_the_report_and_its_pictures_are_made_from_the_file_alone(tmp_path):
    pytest.importorskip("matplotlib")
    results(iterations=2).save(tmp_path)
    assert write_report(tmp_path) == tmp_path / "report.md"
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\(([\w.]+\.(?:png|svg))\)", text))
    assert linked == {f"{name}{suffix}" for name in PLOTS for suffix in (".png", ".svg")}
    assert linked | {"report.md", "results.json"} == {path.name for path in tmp_path.iterdir()}


def test_without_matplotlib_the_report_has_no_pictures_and_says_so_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    made = results(iterations=1)
    made.save(tmp_path)
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if "No plots" in line)
    assert 'pip install "longlive[eval]"' in line
    assert "](" not in text.replace("](results.json)", "")
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "results.json"}


def test_results_without_a_single_rollout_make_a_report(tmp_path):
    empty = results(
        rollouts=(), figures={}, breakdown=None, work=(), ceilings=None, complete=False, notes=()
    )
    empty.save(tmp_path)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    for said in ("No block of a plain rollout", "Nothing was timed inside", "No memory was read"):
        assert said in text
    assert "No plots" not in text


def test_texts_of_the_user_cannot_break_a_table():
    made = results(benchmark={"prompts": ["a | b", "two\nlines"]})
    shown = [line for line in report_text(made).splitlines() if line.startswith("| prompts |")]
    assert shown == ["| prompts | `['a \\| b', 'two\\nlines']` |"]


def test_a_folder_without_results_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no results of a benchmark"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (59.625, "ms", "59.62 ms"),
        (0.01234, "ms", "0.0123 ms"),
        (0.0, "ms", "0.00 ms"),
        (3 * GIB // 2, "bytes", "1.50 GiB"),
        (1 << 20, "bytes", "1.0 MiB"),
        (2.0, "count", "2"),
        (1.0345, "ratio", "1.034"),
        (None, "fps", "–"),
    ],
)
def test_numbers_keep_three_digits_and_their_unit(value, unit, shown):
    assert show(value, unit) == shown
