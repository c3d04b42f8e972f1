"""The cost page is made from results: budgets that add up, floors, what limits, gains."""

from dataclasses import replace
from pathlib import Path

import cost_page
import pytest
from block_budget import SIDE_BY_SIDE, Cost, block_budget, longest_over
from made_results import (
    CEILINGS,
    RECIPE,
    ablation,
    breakdown,
    changed,
    distribution,
    results,
    rollout,
    steady,
    work,
)

from longlive.benchmark.results import Figure, Results, WorkRow
from longlive.benchmark.samples import CONTEXT, DECODE, DIFFUSION, OTHER, RolloutSample
from longlive.metrics.ceilings import Ceilings

FULL = replace(RECIPE, settings={"model": {"init_args": {"size": "wan-1.3b", "decoder": "wan"}}})
GIVEN = Ceilings(**CEILINGS)


def made(speed: float = 1.0, **changes: object) -> Results:
    """Results with the figures of the page's table that the other pages do not need."""
    one = results(speed=speed, **changes)
    period = distribution([block.period_ms for run in one.rollouts for block in steady(run)])
    more = {
        "block_period_ms": Figure(period.p50, "ms", "block_period_ms", period),
        "jitter_p99": Figure(period.p99 / period.p50, "ratio", "jitter_p99"),
    }
    return replace(one, figures={**one.figures, **more})


def side_by_side(run: RolloutSample) -> RolloutSample:
    """The same rollout with the decoder hidden behind the context update, as its name says."""
    blocks, now_ms = [], run.initialization_ms
    for block in run.blocks:
        saved_ms = 0.9 * block.parts_ms[DECODE]
        parts = {**block.parts_ms, OTHER: block.parts_ms[OTHER] - saved_ms}
        end_ms = now_ms + sum(parts.values())
        blocks.append(replace(block, start_ms=now_ms, end_ms=end_ms, parts_ms=parts))
        now_ms = end_ms
    return replace(run, blocks=tuple(blocks))


@pytest.fixture
def page(tmp_path) -> Path:
    """Where the page will be, with two results beside it; by name the faster one is first."""
    faster = replace(
        FULL,
        callbacks=("longlive.callbacks.fp8.QuantizeLinears",),
        window_latent_frames=9,
        attention="sdpa",
    )
    save(made(recipe=FULL), tmp_path, "slow")
    save(made(recipe=faster, speed=0.5, commit="fedcba9876543210"), tmp_path, "fast")
    return tmp_path / "docs" / "cost_page.md"


def save(one: Results, folder: Path, name: str) -> None:
    one.save(folder / "docs" / "results" / name)


def run(page: Path, *options: str) -> int:
    folder = str(page.parent / "results")
    return cost_page.main(["--page", str(page), "--results", folder, *options])


def text_of(page: Path) -> str:
    assert run(page) == 0
    return page.read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def cells(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_steps_go_from_slow_to_fast_and_say_what_changed(page):
    steps = section(text_of(page), "Steps")
    slow, fast = cells(steps, "[slow]"), cells(steps, "[fast]")
    assert steps.index("| [slow]") < steps.index("| [fast]")
    assert slow[1] == "the first: CompileDenoiser"
    assert fast[1] == (
        "+ QuantizeLinears, − CompileDenoiser, window 12 to 9, attention flash_attn_4 to sdpa"
    )
    gain = dict(zip(cost_page.STEPS, fast, strict=True))["over the first"]
    assert gain == "2.00x"
    assert dict(zip(cost_page.STEPS, slow, strict=True))["over the first"] == "1.00x"


def test_another_commit_or_attention_is_visible_and_the_same_is_not(page):
    steps = section(text_of(page), "Steps")
    assert "different commits and attention kernels" in steps
    assert cells(steps, "[fast]")[2:4] == ["**sdpa**", "**`fedcba9876`**"]
    save(made(recipe=FULL, speed=0.5), page.parents[1], "fast")
    steps = section(text_of(page), "Steps")
    assert "different" not in steps
    assert cells(steps, "[fast]")[1:4] == ["nothing", "flash_attn_4", "`0123456789`"]


def test_other_weights_are_not_on_the_page(page):
    embedded = replace(FULL, weights_kind="embedded")
    save(made(recipe=embedded), page.parents[1], "tiny")
    assert "tiny" not in text_of(page)


def test_pieces_add_up_to_the_block_and_floors_count_every_step():
    budget = block_budget(made(), GIVEN)
    assert sum(piece.measured_ms for piece in budget.pieces) == pytest.approx(
        budget.block.measured_ms
    )
    assert budget.block.floor_ms == pytest.approx(4 * 49.6 + 48.0 + 70.5)
    floors = {piece.name: piece.floor_ms for piece in budget.pieces}
    assert floors["denoising steps"] == pytest.approx(4 * 49.6)
    assert floors[CONTEXT] == 48.0
    assert floors[DECODE] == 70.5
    assert floors[OTHER] is None


def test_what_runs_side_by_side_is_one_piece_and_still_adds_up():
    one = made(rollouts=tuple(side_by_side(rollout(i)) for i in range(3)))
    budget = block_budget(one, GIVEN)
    assert [piece.name for piece in budget.pieces] == ["denoising steps", SIDE_BY_SIDE]
    assert sum(piece.measured_ms for piece in budget.pieces) == pytest.approx(
        budget.block.measured_ms
    )
    assert budget.pieces[1].floor_ms == pytest.approx(48.0 + 70.5)
    parts = steady(one.rollouts[0])[0].parts_ms
    update, decode = budget.beside
    assert update.measured_ms == pytest.approx(parts[CONTEXT], rel=0.03)
    assert decode.measured_ms == pytest.approx(parts[DECODE], rel=0.03)
    assert budget.passes is None


def test_passes_beside_a_decoder_are_those_of_rollouts_that_decode_nothing():
    one = made(rollouts=tuple(side_by_side(rollout(i)) for i in range(3)))
    alone = Figure(401.0, "ms", "diffusion_ms")
    budget = block_budget(replace(one, figures={**one.figures, "diffusion_ms": alone}), GIVEN)
    assert budget.passes.measured_ms == 401.0
    assert budget.passes.floor_ms == pytest.approx(4 * 49.6 + 48.0)


def test_kinds_are_summed_over_the_passes_of_a_block():
    rows = (
        WorkRow("step, steady", "FFN", "gemm", 1, 1, 10.0, 12.0),
        WorkRow("context update, steady", "FFN", "gemm", 1, 1, 9.0, 11.0),
        WorkRow("step, steady", "RoPE", "", 0, 0, None, 3.0),
        WorkRow("context update, steady", "RoPE", "", 0, 0, None, 2.0),
        WorkRow("step, steady", "embeddings", "gemm", 1, 1, 0.5, 1.0),
        WorkRow("context update, steady", "embeddings", "gemm", 1, 1, 0.5, None),
        WorkRow("recache", "FFN", "gemm", 1, 1, 100.0, 100.0),
        *(row for row in work() if row.work == "all"),
    )
    assert block_budget(made(work=rows), GIVEN).kinds == (
        Cost("FFN", 49.0, 59.0),
        Cost("RoPE", None, 14.0),
        Cost("embeddings (denoising steps alone)", 2.0, 4.0),
    )


def test_limits_are_the_three_that_are_longest_over_their_floors():
    costs = [
        Cost("long", 100.0, 101.0),
        Cost("far over", 5.0, 15.0),
        Cost("uncounted", None, 4.0),
        Cost("untimed", 50.0, None),
        Cost("under", 9.0, 8.0),
        Cost("over", 1.0, 3.0),
    ]
    assert [cost.name for cost in longest_over(costs)] == ["far over", "uncounted", "over"]


def test_the_page_names_what_limits_with_its_numbers(page):
    limits = section(text_of(page), "slow").split("Ceilings")[0]
    (kinds,) = (line for line in limits.splitlines() if line.startswith("* by kind of work"))
    order = [kinds.index(f"**{name}**") for name in ("VAE decode", "qkv", "attention output")]
    assert order == sorted(order)
    assert "3. **attention output** 9.20 (13.20 against 4.00)" in kinds
    assert "times its floor of 316.90 ms" in limits


def test_layers_of_another_run_are_said_to_be_such(page):
    said = "**The layers were timed in a separate eager run**"
    assert said not in text_of(page)
    without = replace(breakdown(), layers_without=("CompileLayers",))
    save(made(recipe=FULL, breakdown=without), page.parents[1], "slow")
    slow = section(text_of(page), "slow")
    assert said in slow
    assert "* by kind of work, in the eager run that is not the recipe's:" in slow


def test_results_without_a_breakdown_have_pieces_and_floors():
    budget = block_budget(made(recipe=FULL, work=(), breakdown=None), GIVEN)
    assert {kind.measured_ms for kind in budget.kinds} == {None}
    assert sum(kind.floor_ms for kind in budget.kinds) == pytest.approx(
        budget.block.floor_ms - budget.decode.floor_ms
    )
    assert all(piece.measured_ms is not None for piece in budget.pieces)
    assert budget.pieces[0].name == "denoising steps"
    assert budget.pieces[0].measured_ms == pytest.approx(
        steady(rollout(0))[0].parts_ms[DIFFUSION], rel=0.03
    )


def test_given_ceilings_count_where_there_are_none_of_the_same_machine_alone():
    bare = made(recipe=FULL, work=(), ceilings=None)
    assert block_budget(bare, GIVEN).block.floor_ms is not None
    assert block_budget(bare, replace(GIVEN, name="another")).block.floor_ms is None
    slower = replace(GIVEN, gemm_tflops=1.0)
    assert block_budget(made(), slower) == block_budget(made(), GIVEN)


def test_floors_by_the_recipe_are_those_that_the_benchmark_wrote():
    measured = Results.load(cost_page.ROOT / "docs" / "results" / "eager")
    rates = Ceilings(**measured.ceilings)
    again, wrote = (
        block_budget(replace(measured, ceilings=kept), rates) for kept in (None, measured.ceilings)
    )
    for one, other in zip(
        (again.block, *again.pieces, *again.kinds),
        (wrote.block, *wrote.pieces, *wrote.kinds),
        strict=True,
    ):
        assert one.floor_ms == (None if other.floor_ms is None else pytest.approx(other.floor_ms))
        assert (one.name, one.measured_ms) == (other.name, other.measured_ms)
    assert again.block.floor_ms == pytest.approx(
        next(row.floor_ms for row in measured.work if row.piece == "block, steady")
    )


def test_an_ablation_takes_the_place_of_the_command_that_makes_it(page):
    text = text_of(page)
    assert text.count("python tools/ablate.py --matrix configs/benchmark/ablation_") == 4
    alone = ablation(title="Each alone", matrix="configs/benchmark/ablation_alone.yaml")
    alone.save(page.parent / "results" / "alone")
    gains = section(text_of(page), "What each optimization gains")
    assert "ablation_alone.yaml --output" not in gains
    assert gains.count("is not measured") == 3
    assert "\n### Each alone\n" in gains
    assert "[alone](results/alone/ablation.json)" in gains
    assert cells(gains, "window 6")[-1].startswith("-")
    replace(alone, weights_kind="embedded").save(page.parent / "results" / "alone")
    assert "Each alone" not in text_of(page)


def test_a_second_run_changes_nothing_and_the_check_passes(page):
    before = text_of(page)
    assert text_of(page) == before
    assert run(page, "--check") == 0


def test_the_check_fails_on_a_stale_or_absent_page_and_leaves_it_alone(page, capsys):
    assert run(page, "--check") == 1
    assert not page.exists()
    before = text_of(page)
    save(changed(made(recipe=FULL), "fps", value=99.0), page.parents[1], "slow")
    assert run(page, "--check") == 1
    assert "is stale: run python tools/cost_page.py" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == before
    assert "| 99.00 |" in text_of(page)


def test_an_incomplete_run_is_marked(page):
    save(made(recipe=FULL, complete=False, ended="interrupted"), page.parents[1], "slow")
    assert "results.json) (incomplete) |" in text_of(page)


def test_no_results_make_a_sentence(tmp_path):
    page = tmp_path / "cost_page.md"
    assert run(page) == 0
    assert "No benchmark of the full-size model has been run yet." in page.read_text()


def test_broken_results_are_one_line(page, capsys):
    (page.parent / "results" / "fast" / "results.json").write_text("{")
    assert run(page) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is broken" in line
