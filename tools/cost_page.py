"""The cost page: what each recipe costs against its floor, what each step gained, what limits it.

    python tools/cost_page.py            # writes docs/cost_page.md from docs/results
    python tools/cost_page.py --check    # change nothing; exit with 1 if it is stale

Every ``docs/results/*/`` with ``results.json`` is a recipe, every one with ``ablation.json`` a
table of gains. Synthetic weights count alone: they are those of the full-size model.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from block_budget import BlockBudget, Cost, block_budget, longest_over
from readme_table import ROOT, Found, find_results, short_commit

from longlive.benchmark.ablation_report import ablation_markdown
from longlive.benchmark.ablation_table import FILE_NAME as ABLATION_NAME
from longlive.benchmark.ablation_table import AblationResults
from longlive.benchmark.markdown import NOTHING, code, decimals, one_line, percent, show, table
from longlive.benchmark.report import CLAIMS, REPORT_NAME
from longlive.benchmark.report_tables import ceilings_line, eager_run
from longlive.benchmark.results import FILE_NAME, Results
from longlive.errors import UserError
from longlive.metrics.ceilings import Ceilings, load_ceilings
from longlive.video.atomic import write_bytes

MADE_BY = "<!-- made by tools/cost_page.py from docs/results; do not edit -->"
WEIGHTS = "synthetic"
MATRICES = ("alone", "alone_decoder", "left_out", "cumulative")
"""Ablations of the optimizations, ``configs/benchmark/ablation_NAME.yaml``."""

LESS_WORK = ("FoldUpsampling", "QuantizeLinears")
"""Callbacks that leave less to do than floors count, which are of the model as it is written."""

MODEL_SETTINGS = {
    "decoder": "wan",
    "positions": "absolute",
    "first_frame_alone": False,
    "first_denoising_steps": None,
    "recached_latent_frames": None,
}
"""Of the model, with their defaults: what else may tell two runs apart."""
STEPS = (
    *("run", "what changed", "attention", "commit", "ms a block", "fps", "over the first"),
    *("p99 / p50", "first frame", "switch adds", "memory in use / held"),
)
BUDGET = ("work", "floor ms", "measured ms", "measured / floor", "over the floor ms")


def page(
    found: Found, ablations: Mapping[Path, AblationResults], ceilings: Ceilings, at: Path
) -> str:
    """Text of the page.

    Args:
        found: Benchmarks by their folder.
        ablations: Likewise.
        ceilings: Rates for results that have none.
        at: Folder of the page, which links are relative to.
    """
    chosen = {
        folder: results
        for folder, results in sorted(found.items(), key=lambda item: -_block_ms(item[1]))
        if results.recipe.weights_kind == WEIGHTS and _block_ms(results)
    }
    lines = [MADE_BY, "", "# What a block costs, and what limits it", "", CLAIMS[WEIGHTS], ""]
    lines += ["## Steps", "", *_steps(chosen, at)]
    budgets = {folder: block_budget(results, ceilings) for folder, results in chosen.items()}
    lines += ["", *_floors(budgets)]
    for folder, results in chosen.items():
        lines += ["", f"## {folder.name}", "", *_recipe(results, budgets[folder])]
    lines += ["", "## What each optimization gains", "", *_gains(ablations, at)]
    return "\n".join(lines).rstrip() + "\n"


def _steps(found: Found, at: Path) -> Iterator[str]:
    if not found:
        yield "No benchmark of the full-size model has been run yet."
        return
    yield "From the slowest to the fastest; what changed is against the row above."
    named = {
        "commits": {results.commit for results in found.values()},
        "attention kernels": {results.recipe.attention for results in found.values()},
        "machines": {results.environment.device_name for results in found.values()},
    }
    mixed = [name for name, values in named.items() if len(values) > 1]
    if mixed:
        yield (
            f"**The rows are of different {' and '.join(mixed)}**, in bold where they change: "
            "there a difference is not that of the callbacks alone."
        )
    yield ""
    rows, first, before = [], next(iter(found.values())), None
    for folder, results in found.items():
        rows.append(_step(folder, results, first, before, at))
        before = results
    yield from table(STEPS, rows, left=4)


def _floors(budgets: Mapping[Path, BlockBudget]) -> Iterator[str]:
    """What the floors of the sections below are, and whether they are the same."""
    yield (
        "A floor is the work of the model as it is written at the rates of the ceilings named "
        "beside it: better kernels, or less work, can pass it."
    )
    rates: list[object] = []
    for budget in budgets.values():
        if budget.ceilings is not None and budget.ceilings not in rates:
            rates.append(budget.ceilings)
    if len(rates) > 1:
        yield "**The ceilings are not the same for all runs**: compare times of two, not ratios."


def _step(
    folder: Path, results: Results, first: Results, before: Results | None, at: Path
) -> list[str]:
    jitter = results.figures.get("jitter_p99")
    commit = code(short_commit(results.commit or ""))
    attention = results.recipe.attention
    if before is not None and results.commit != before.commit:
        commit = f"**{commit}**"
    if before is not None and attention != before.recipe.attention:
        attention = f"**{attention}**"
    name = _link(folder, REPORT_NAME, FILE_NAME, at)
    return [
        name if results.complete else f"{name} (incomplete)",
        ", ".join(_changes(results, before)) or "nothing",
        attention,
        commit,
        decimals(_block_ms(results)),
        _value(results, "fps").removesuffix(" fps"),
        f"{_block_ms(first) / _block_ms(results):.2f}x",
        NOTHING if jitter is None else show(jitter.value, jitter.unit),
        _value(results, "first_frame_cold_ms"),
        _value(results, "switch_added_ms"),
        f"{_value(results, 'peak_memory_bytes')} / {_value(results, 'reserved_memory_bytes')}",
    ]


def _changes(results: Results, before: Results | None) -> Iterator[str]:
    recipe = results.recipe
    if before is None:
        yield "the first: " + (", ".join(_names(results)) or "no optimization")
        return
    mine, theirs = _names(results), _names(before)
    yield from (f"+ {name}" for name in mine if name not in theirs)
    yield from (f"− {name}" for name in theirs if name not in mine)
    settings = (
        *(("window", "window_latent_frames"), ("sink", "sink_latent_frames")),
        *(("block", "block_latent_frames"), ("steps", "steps"), ("", "dtype")),
        *(("attention", "attention"), ("batch", "batch_size"), ("guidance", "guidance")),
        *(("height", "height_px"), ("width", "width_px")),
    )
    for words, field in settings:
        old, new = getattr(before.recipe, field), getattr(recipe, field)
        if old != new:
            yield f"{words} {old} to {new}".strip()
    for field, default in MODEL_SETTINGS.items():
        old, new = (_model_settings(one).get(field, default) for one in (before, results))
        if old != new:
            yield f"{field} {old} to {new}"
    machines = [one.environment.device_name for one in (before, results)]
    if machines[0] != machines[1]:
        yield "**{} to {}**".format(*machines)


def _model_settings(results: Results) -> dict[str, Any]:
    found: dict[str, Any] = results.recipe.settings.get("model", {}).get("init_args", {})
    return found


def _recipe(results: Results, budget: BlockBudget) -> Iterator[str]:
    yield from _limits(results, budget)
    yield ""
    if budget.block.floor_ms is None:
        yield "No ceilings or no costs are known for it, so there are no floors."
    else:
        if budget.ceilings is not None:
            yield from ceilings_line(budget.ceilings)
        if results.ceilings is None:
            yield "They were not measured with this run."
        less = [name for name in _names(results) if name in LESS_WORK]
        if less:
            yield f"With {' and '.join(less)} there is less to do than the floor counts."
    yield ""
    yield "Means of the steady blocks of rollouts without instruments, which add up to the block:"
    yield ""
    whole_ms = budget.block.measured_ms
    rows = [_cells(one, whole_ms) for one in budget.pieces]
    rows.append([f"**{cell}**" for cell in _cells(budget.block, whole_ms)])
    if budget.beside:
        apart = [*budget.beside, *([budget.passes] if budget.passes else ())]
        rows += [_cells(one, None) for one in apart]
    yield from table((*BUDGET, "of the block"), rows)
    yield ""
    yield from _kinds(results, budget)


def _kinds(results: Results, budget: BlockBudget) -> Iterator[str]:
    if not budget.kinds:
        yield "The kinds of work were not looked at in this run."
        return
    sum_ms = sum(kind.measured_ms or 0.0 for kind in budget.kinds)
    yield "By kind of work, over the passes of a block:"
    if sum_ms:
        yield from eager_run(results)
        yield _hooks(sum_ms, budget)
    else:
        notes = results.breakdown.notes if results.breakdown else ("no rollout had instruments",)
        yield f"not timed ({one_line('; '.join(notes)) or 'no rollout had hooks in the layers'})."
    yield ""
    yield from table(
        (*BUDGET, "of the kinds"), (_cells(kind, sum_ms or None) for kind in budget.kinds)
    )


def _hooks(sum_ms: float, budget: BlockBudget) -> str:
    said = f"Hooks in every layer cost the host time: the kinds add up to {_ms(sum_ms)}"
    if budget.passes is None or budget.passes.measured_ms is None:
        return f"{said}."
    return f"{said}, where the passes take {_ms(budget.passes.measured_ms)} without them."


def _limits(results: Results, budget: BlockBudget) -> Iterator[str]:
    block = budget.block
    yield "**What limits it now.**"
    if block.floor_ms is None:
        yield f"A block takes {_ms(block.measured_ms)}."
    else:
        yield (
            f"A block takes {_ms(block.measured_ms)}, {_ratio(block)} times its floor of "
            f"{_ms(block.floor_ms)}. Furthest over their floors, in ms a block:"
        )
    yield ""
    yield f"* by piece: {_named(budget.pieces)}"
    timed = [kind for kind in budget.kinds if kind.measured_ms is not None]
    if not timed:
        yield "* by kind of work: not timed in this run"
        return
    without = results.breakdown.layers_without if results.breakdown else ()
    run = ", in the eager run that is not the recipe's" if without else ", in the run with hooks"
    yield f"* by kind of work{run}: {_named([*timed, budget.decode])}"


def _named(costs: Iterable[Cost]) -> str:
    said = [
        f"{place}. **{cost.name}** {decimals(cost.over_ms)} ({decimals(cost.measured_ms)} against "
        f"{'no counted work' if cost.floor_ms is None else decimals(cost.floor_ms)})"
        for place, cost in enumerate(longest_over(costs), 1)
    ]
    return "; ".join(said) or "nothing is over its floor"


def _cells(cost: Cost, whole_ms: float | None) -> list[str]:
    share = cost.measured_ms / whole_ms if cost.measured_ms is not None and whole_ms else None
    return [
        cost.name,
        decimals(cost.floor_ms),
        decimals(cost.measured_ms),
        _ratio(cost),
        decimals(cost.over_ms),
        percent(share),
    ]


def _gains(ablations: Mapping[Path, AblationResults], at: Path) -> Iterator[str]:
    chosen = {
        folder: results for folder, results in ablations.items() if results.weights_kind == WEIGHTS
    }
    for name in MATRICES:
        matrix = f"configs/benchmark/ablation_{name}.yaml"
        if not any(Path(results.matrix).name == Path(matrix).name for results in chosen.values()):
            yield (
                f"* *{name.replace('_', ' ')}* is not measured: `python tools/ablate.py --matrix "
                f"{matrix} --output docs/results/{name} --config configs/base.yaml --config "
                "configs/weights/synthetic.yaml`"
            )
    for folder, results in chosen.items():
        title, *lines = ablation_markdown(results).splitlines()
        yield from (
            "",
            f"##{title}",
            "",
            f"{results.kind}, {_link(folder, 'ablation.md', ABLATION_NAME, at)}",
        )
        yield from lines


def _link(folder: Path, name: str, otherwise: str, at: Path) -> str:
    file = folder / name
    path = os.path.relpath(file if file.is_file() else folder / otherwise, at)
    return f"[{folder.name}]({Path(path).as_posix()})"


def _names(results: Results) -> list[str]:
    return [name.rpartition(".")[2] for name in results.recipe.callbacks]


def _block_ms(results: Results) -> float:
    figure = results.figures.get("block_period_ms")
    return 0.0 if figure is None or figure.value is None else figure.value


def _value(results: Results, name: str) -> str:
    figure = results.figures.get(name)
    return NOTHING if figure is None else show(figure.value, figure.unit)


def _ms(value: float | None) -> str:
    return show(value, "ms")


def _ratio(cost: Cost) -> str:
    known = cost.measured_ms is not None and cost.floor_ms
    return f"{cost.measured_ms / cost.floor_ms:.2f}" if known else NOTHING


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs" / "cost_page.md", help="what is written"
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "docs" / "results", help="folder of the results"
    )
    parser.add_argument(
        "--ceilings",
        type=Path,
        default=ROOT / "configs" / "ceilings" / "h200.yaml",
        help="rates for results of that machine that have none",
    )
    parser.add_argument("--check", action="store_true", help="change nothing, 1 if it is stale")
    args = parser.parse_args(argv)
    try:
        ablations = {
            path.parent: AblationResults.load(path)
            for path in sorted(args.results.glob(f"*/{ABLATION_NAME}"))
        }
        found, ceilings = find_results(args.results), load_ceilings(args.ceilings)
        wanted = page(found, ablations, ceilings, args.page.parent).encode()
        if args.page.is_file() and args.page.read_bytes() == wanted:
            return 0
        if args.check:
            print(
                f"cost_page: {args.page.name} is stale: run python tools/cost_page.py",
                file=sys.stderr,
            )
            return 1
        write_bytes(args.page, wanted)
    except (OSError, UserError) as error:
        print(f"cost_page: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
