"""Measured time beside the work that was done in it and the floor that the ceilings leave."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from longlive.benchmark.breakdown import Profiled
from longlive.benchmark.provenance import Recipe
from longlive.benchmark.results import Results, WorkRow
from longlive.callbacks import module_regions as parts
from longlive.errors import UserError
from longlive.metrics.ceilings import Ceilings, product_floor_ms
from longlive.metrics.cost import Product, Work
from longlive.metrics.cost_report import DTYPES, STEADY_BLOCK, CostReport, Setup, analyze
from longlive.models.sizes import dit_config
from longlive.modules.longlive import LongLive

ALL = "all"
"""A piece as a whole, as ``WorkRow.work``."""

STEP, CONTEXT, DECODE = "step, steady", "context update, steady", "vae decode, later blocks"
"""Pieces that a steady block consists of, as ``WorkRow.piece``."""

_RECACHE = "recache"
_TEXT = "text encoder"
_TEXT_KEYS = "text keys and values"

# Kinds of the cost model, and the part of a layer that does them. What shares a part is counted
# together: it cannot be timed apart.
_PART_OF = {
    "qkv": parts.QKV,
    "self-attention": parts.ATTENTION,
    "attention output": parts.OUTPUT_PROJECTION,
    "cross-attention q and output": parts.CROSS_ATTENTION,
    "cross-attention": parts.CROSS_ATTENTION,
    "feed-forward": parts.FFN,
}
_BESIDE = "embeddings and head"
_UNCOUNTED = (parts.ROPE, parts.UPDATE, parts.NORMS)
_PASS_KIND = {STEP: "denoising step", CONTEXT: "context update", _RECACHE: "recache"}


@dataclass(frozen=True, slots=True)
class Times:
    """Measured times, in ms.

    Attributes:
        pieces: Median of each piece of a rollout, by its name.
        layers: For each kind of pass the time of each part, summed over the layers.
        beside_layers: Embeddings and head of a denoising step.
    """

    pieces: Mapping[str, float]
    layers: Mapping[str, Mapping[str, float]]
    beside_layers: float | None


def times_of(profiled: Profiled, block_period_ms: float | None) -> Times:
    """Collect what was measured.

    Args:
        profiled: The rollouts with instruments.
        block_period_ms: Median steady block period of the rollouts without.
    """
    breakdown = profiled.breakdown
    medians = {row.path: row.p50_ms for row in breakdown.regions}
    steps = [ms for path, ms in medians.items() if path[-1].startswith("step ")]
    pieces = {
        CONTEXT: medians.get(("rollout", "block", "context update")),
        DECODE: medians.get(("rollout", "block", "VAE decode")),
        _RECACHE: medians.get(("rollout", "recache")),
        _TEXT: medians.get(("rollout", "text encoding", parts.TEXT_ENCODER)),
        _TEXT_KEYS: medians.get(("rollout", "text encoding", parts.CROSS_RESET)),
        STEP: sum(steps) / len(steps) if steps else None,
        STEADY_BLOCK: block_period_ms,
    }
    layers: dict[str, dict[str, float]] = {}
    for row in breakdown.layers:
        layers.setdefault(row.pass_kind, {})[row.part] = sum(row.layers_ms)
    beside = [profiled.outside_layers_ms(name) for name in (parts.EMBEDDINGS, parts.HEAD)]
    known = [ms for ms in beside if ms is not None]
    return Times(
        pieces={name: ms for name, ms in pieces.items() if ms is not None},
        layers=layers,
        beside_layers=sum(known) if known else None,
    )


def setup_of(model: LongLive) -> Setup | None:
    """What the cost model is asked about a model; None for one that it does not know.

    Args:
        model: With its weights.
    """
    window = model.spec.window_latent_frames
    dtype = str(model.dit.dtype_of_weights).removeprefix("torch.")
    if window is None or dtype not in DTYPES or model.dit.config != dit_config(model.size):
        return None
    return _setup(model, window, dtype)


def _setup(model: LongLive, window: int, dtype: str) -> Setup:
    return Setup(
        size=model.size,
        height_px=model.height_px,
        width_px=model.width_px,
        window_latent_frames=window,
        sink_latent_frames=model.spec.sink_latent_frames,
        block_latent_frames=model.block_latent_frames,
        steps=len(model.spec.schedule.sigmas),
        dtype=dtype,
    )


def check_ceilings(ceilings: Ceilings | None, dtype: str) -> None:
    """Refuse rates of another type of numbers.

    Raises:
        UserError: If they are.
    """
    if ceilings is not None and ceilings.dtype != dtype:
        raise UserError(
            f"the ceilings of {ceilings.name} are those of {ceilings.dtype}, and the model "
            f"computes in {dtype}: set benchmark.measure_ceilings, or leave the ceilings out"
        )


def work_rows(
    model: LongLive, batch: int, times: Times, ceilings: Ceilings | None
) -> tuple[WorkRow, ...]:
    """Work, floor and time of every piece that the cost model knows.

    Guidance runs the transformer on twice the batch. A tiny decoder is unknown to the cost model.

    Args:
        model: With its weights.
        batch: Videos side by side.
        times: What was measured.
        ceilings: Rates; None leaves the floors out.
    """
    setup = setup_of(model)
    return () if setup is None else tuple(_rows_of(setup, model, batch, times, ceilings))


def _rows_of(
    setup: Setup, model: LongLive, batch: int, times: Times, ceilings: Ceilings | None
) -> Iterator[WorkRow]:
    return _piece_rows(setup, model.spec.guidance, batch, model.decoder, times, ceilings)


def _piece_rows(
    setup: Setup,
    guidance: float,
    batch: int,
    decoder: str,
    times: Times,
    ceilings: Ceilings | None,
) -> Iterator[WorkRow]:
    passes = batch * (2 if guidance != 1 else 1)
    for piece, work in _pieces(analyze(setup), passes, batch, is_wan=decoder == "wan"):
        yield from _rows(piece, work, times, ceilings)


def recipe_floors(
    recipe: Recipe, size: str, decoder: str, ceilings: Ceilings
) -> tuple[WorkRow, ...]:
    """Work and floors of what a benchmark was run on, without its model and without times.

    Args:
        recipe: Of the benchmark.
        size: Of the transformer.
        decoder: ``wan``, or another that the cost model does not know.
        ceilings: Rates.

    Returns:
        Nothing for a recipe without a window, whose passes are all different.

    Raises:
        UserError: If the cost model does not know the size or the type of numbers.
    """
    if recipe.window_latent_frames is None:
        return ()
    setup = Setup(
        size=size,
        height_px=recipe.height_px,
        width_px=recipe.width_px,
        window_latent_frames=recipe.window_latent_frames,
        sink_latent_frames=recipe.sink_latent_frames,
        block_latent_frames=recipe.block_latent_frames,
        steps=recipe.steps,
        dtype=recipe.dtype,
    )
    untimed = Times({}, {}, None)
    return tuple(_piece_rows(setup, recipe.guidance, recipe.batch_size, decoder, untimed, ceilings))


def at_floors(work: Iterable[WorkRow], rows: Iterable[WorkRow]) -> tuple[WorkRow, ...]:
    """Work with the floors that other rows have for it; what was measured stays."""
    floors = {(row.piece, row.work): row.floor_ms for row in rows}
    return tuple(replace(row, floor_ms=floors.get((row.piece, row.work))) for row in work)


def with_floors(results: Results, model: LongLive, ceilings: Ceilings) -> tuple[WorkRow, ...]:
    """The work of a benchmark with floors at other ceilings; what was measured stays.

    Args:
        results: Of the benchmark.
        model: The one that it measured; needs no weights.
        ceilings: Rates.
    """
    recipe = results.recipe
    if not results.work or recipe.window_latent_frames is None:
        return results.work
    setup = _setup(model, recipe.window_latent_frames, recipe.dtype)
    rows = _rows_of(setup, model, recipe.batch_size, Times({}, {}, None), ceilings)
    return at_floors(results.work, rows)


def _pieces(
    report: CostReport, passes: int, batch: int, *, is_wan: bool
) -> Iterator[tuple[str, Work]]:
    works = {entry.name: entry.work for entry in report.entries}
    text = next(name for name in works if name.startswith(f"{_TEXT},"))
    yield STEP, works[STEP] * passes
    yield CONTEXT, works[CONTEXT] * passes
    yield _RECACHE, works[_RECACHE] * passes
    if is_wan:
        yield DECODE, works[DECODE] * batch
        steps = works[STEP] * (passes * report.setup.steps) + works[CONTEXT] * passes
        yield STEADY_BLOCK, steps + works[DECODE] * batch
    yield _TEXT, works[text]
    yield _TEXT_KEYS, works[_TEXT_KEYS]


def _rows(piece: str, work: Work, times: Times, ceilings: Ceilings | None) -> Iterator[WorkRow]:
    yield _row(piece, ALL, work, ceilings, times.pieces.get(piece))
    layers = times.layers.get(_PASS_KIND.get(piece, ""), {})
    for name, products in _by_part(piece, work).items():
        measured_ms = layers.get(name)
        if name == _BESIDE and piece == STEP:
            measured_ms = times.beside_layers
        yield _row(piece, name, Work(products), ceilings, measured_ms)
    for name in _UNCOUNTED:
        if name in layers:
            yield WorkRow(piece, name, "", 0, 0, None, layers[name])


def _by_part(piece: str, work: Work) -> dict[str, dict[str, Product]]:
    grouped: dict[str, dict[str, Product]] = {}
    for kind, product in work.kinds.items():
        name = _PART_OF.get(kind, kind) if piece in _PASS_KIND else kind
        grouped.setdefault(name, {})[kind] = product
    return grouped


def _row(
    piece: str, name: str, work: Work, ceilings: Ceilings | None, measured_ms: float | None
) -> WorkRow:
    products = work.kinds.values()
    units = {product.unit for product in products}
    floors = [] if ceilings is None else [product_floor_ms(p, ceilings) for p in products]
    return WorkRow(
        piece=piece,
        work=name,
        unit=units.pop() if len(units) == 1 else "",
        flops=work.flops,
        moved_bytes=work.bytes,
        floor_ms=None if ceilings is None else sum(floors),
        measured_ms=measured_ms,
    )
