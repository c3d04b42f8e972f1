"""Where time and memory went, as sections of the report: budget, layers, floors, regions."""

from collections.abc import Iterator, Mapping

from longlive.benchmark.budget import BUDGET_PARTS, budgets, plain_rollouts
from longlive.benchmark.latency import decodes_beside
from longlive.benchmark.markdown import NOTHING, decimals, percent, show, table
from longlive.benchmark.results import LayerRow, RegionRow, Results, WorkRow


def budget_section(results: Results) -> Iterator[str]:
    """Milliseconds of each part per frame, for first, steady and switching blocks."""
    found = budgets(results)
    if not found:
        yield "No block of a plain rollout was measured."
        return
    yield "Milliseconds per frame: the mean time of a part over the frames of the block."
    yield ""
    columns = ["part"]
    for one in found:
        columns += [f"{one.name} ({one.blocks} blocks)", "share"]
    rows = []
    for part in BUDGET_PARTS:
        cells = [part]
        for one in found:
            ms = one.parts_ms.get(part)
            share = ms / one.total_ms if ms is not None and one.total_ms else None
            cells += [decimals(ms), percent(share)]
        if any(part in one.parts_ms for one in found):
            rows.append(cells)
    totals = ["**all**"]
    for one in found:
        totals += [f"**{decimals(one.total_ms)}**", ""]
    yield from table(columns, [*rows, totals])


def layer_section(results: Results) -> Iterator[str]:
    """Parts of the layers, summed over the layers, for each kind of pass."""
    layers = results.breakdown.layers if results.breakdown else ()
    if not layers:
        yield "Nothing was timed inside the layers."
        return
    yield (
        "Milliseconds per pass, summed over the layers, from a rollout with hooks in every layer. "
        "The hooks cost the host time: take shares from here, not totals."
    )
    yield from eager_run(results)
    yield ""
    kinds = list(dict.fromkeys(row.pass_kind for row in layers))
    by_place = {(row.pass_kind, row.part): row for row in layers}
    totals = {
        kind: sum(_layer_ms(row) for row in layers if row.pass_kind == kind) for kind in kinds
    }
    columns = ["part"]
    for kind in kinds:
        passes = max(row.passes for row in layers if row.pass_kind == kind)
        columns += [f"{kind} ({passes} passes)", "share"]
    rows = []
    for part in dict.fromkeys(row.part for row in layers):
        cells = [part]
        for kind in kinds:
            row = by_place.get((kind, part))
            ms = None if row is None else _layer_ms(row)
            share = ms / totals[kind] if ms is not None and totals[kind] else None
            cells += [decimals(ms), percent(share)]
        rows.append(cells)
    last = ["**all layers**"]
    for kind in kinds:
        last += [f"**{decimals(totals[kind])}**", ""]
    yield from table(columns, [*rows, last])


def floor_section(results: Results) -> Iterator[str]:
    """Measured time over the floor of the cost model, for each kind of work."""
    if not results.work:
        yield "The cost model does not know this configuration."
        return
    if results.ceilings is None:
        yield "No ceilings are known for this machine, so there are no floors."
    else:
        yield from ceilings_line(results.ceilings)
    yield ""
    yield from eager_run(results)
    if decodes_beside(plain_rollouts(results)):
        yield "The decoder ran beside the transformer: each piece had a part of the device."
    yield ""
    columns = (
        *("piece", "work", "TFLOP", "GB", "floor ms", "measured ms"),
        *("measured / floor", "TFLOP/s"),
    )
    yield from table(columns, (_work_row(row) for row in results.work), left=2)


def region_section(results: Results) -> Iterator[str]:
    """Time of every region of the profiled rollout."""
    rows = results.breakdown.regions if results.breakdown else ()
    if not rows:
        yield "No rollout was profiled."
        return
    yield (
        "From a rollout with the profiler (`docs/profiler.md`); of what is inside blocks, steady "
        "ones count. `own` is the part of the mean that no region inside covers."
    )
    yield ""
    columns = (
        *("region", "count", "mean ms", "p50", "p95", "p99", "max", "own"),
        *("total", "of parent"),
    )
    yield from table(columns, (_region_row(row) for row in rows))


def memory_section(results: Results) -> Iterator[str]:
    """Memory of every region of the profiled rollout."""
    regions = results.breakdown.regions if results.breakdown else ()
    rows = [row for row in regions if row.peak_bytes is not None]
    if not rows:
        yield "No memory was read."
        return
    yield (
        f"{results.environment.memory or 'Memory'}. `peak` is the highest in use while a region "
        "ran, `grown` what it left in use, summed over its runs."
    )
    yield ""
    yield from table(
        ("region", "count", "peak", "grown"),
        (
            (_region_name(row), row.count, show(row.peak_bytes, "bytes"), _grown(row))
            for row in rows
        ),
    )


def eager_run(results: Results) -> Iterator[str]:
    """That the layers ran otherwise than in the recipe, if they did."""
    if results.breakdown and results.breakdown.layers and results.breakdown.layers_without:
        without = ", ".join(results.breakdown.layers_without)
        yield (
            f"**The layers were timed in a separate eager run**, without {without}: "
            "shares, not times, carry over, and what compilation fuses stands apart."
        )


def _layer_ms(row: LayerRow) -> float:
    return sum(row.layers_ms)


def ceilings_line(ceilings: Mapping[str, object]) -> Iterator[str]:
    """The rates that floors rest on."""
    rates = ", ".join(
        f"{words} {ceilings[key]:.4g} {unit}"
        for key, words, unit in (
            ("gemm_tflops", "matrix products", "TFLOP/s"),
            ("attention_tflops", "attention", "TFLOP/s"),
            ("conv_tflops", "convolutions", "TFLOP/s"),
            ("copy_tb_s", "memory", "TB/s"),
        )
        if isinstance(ceilings.get(key), int | float)
    )
    yield f"Ceilings of {ceilings.get('name')} in {ceilings.get('dtype')}: {rates}."


def _work_row(row: WorkRow) -> list[object]:
    floor, measured = row.floor_ms, row.measured_ms
    return [
        row.piece,
        f"**{row.work}**" if row.work == "all" else row.work,
        decimals(row.flops / 1e12),
        decimals(row.moved_bytes / 1e9),
        decimals(floor),
        decimals(measured),
        decimals(measured / floor) if floor and measured else NOTHING,
        decimals(row.flops / measured / 1e9) if measured else NOTHING,
    ]


def _region_name(row: RegionRow) -> str:
    # Spaces at the start of a cell are dropped.
    return "· " * (len(row.path) - 1) + row.path[-1]


def _region_row(row: RegionRow) -> list[object]:
    times = (row.mean_ms, row.p50_ms, row.p95_ms, row.p99_ms, row.max_ms)
    own = row.own_ms / row.count if row.count else None
    return [
        _region_name(row),
        row.count,
        *map(decimals, (*times, own, row.total_ms)),
        percent(row.share_of_parent),
    ]


def _grown(row: RegionRow) -> str:
    return show(row.grown_bytes, "bytes")
