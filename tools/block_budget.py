"""A steady block against its floor: by piece as it ran, and by kind of work inside the passes.

Used by ``tools/cost_page.py``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from readme_table import model_settings

from longlive.benchmark.budget import budgets, plain_rollouts
from longlive.benchmark.latency import decodes_beside
from longlive.benchmark.results import Results, WorkRow
from longlive.benchmark.samples import CONTEXT, COPY, DECODE, DIFFUSION, OTHER
from longlive.benchmark.work import ALL, at_floors, recipe_floors
from longlive.benchmark.work import CONTEXT as CONTEXT_WORK
from longlive.benchmark.work import DECODE as DECODE_WORK
from longlive.benchmark.work import STEP as STEP_WORK
from longlive.errors import UserError
from longlive.metrics.ceilings import Ceilings

SIDE_BY_SIDE = f"{CONTEXT} and {DECODE}, side by side"
STEPS = "denoising steps"


@dataclass(frozen=True, slots=True)
class Cost:
    """Something that a steady block does.

    Attributes:
        name: In words.
        floor_ms: At best, at the ceilings; None without ceilings or where no work is counted.
        measured_ms: What it took; None where it was not timed.
    """

    name: str
    floor_ms: float | None
    measured_ms: float | None

    @property
    def over_ms(self) -> float | None:
        """What it took over its floor; all of it where no work is counted."""
        return None if self.measured_ms is None else self.measured_ms - (self.floor_ms or 0.0)


@dataclass(frozen=True, slots=True)
class BlockBudget:
    """One steady block, in milliseconds.

    Attributes:
        block: All of it; the mean, for pieces add up to nothing else.
        pieces: In the order in which they happen, from rollouts without instruments; what runs side
            by side is one piece, for apart it would add up to more than the block.
        beside: Each of those, as long as it took beside the others.
        passes: Steps and context update where nothing else has a part of the device, or None.
        kinds: Kinds of work inside the passes of a block, from a rollout with hooks; untimed ones
            too.
        decode: The decoder's, among ``pieces`` or ``beside``.
        ceilings: Rates of the floors; None if there are no floors.
    """

    block: Cost
    pieces: tuple[Cost, ...]
    beside: tuple[Cost, ...]
    passes: Cost | None
    kinds: tuple[Cost, ...]
    decode: Cost
    ceilings: Mapping[str, object] | None


def longest_over(costs: Iterable[Cost], most: int = 3) -> list[Cost]:
    """What took longest over its floor, first to last, of what was timed and is over it."""
    over = [cost for cost in costs if (cost.over_ms or 0.0) > 0]
    return sorted(over, key=lambda cost: -(cost.over_ms or 0.0))[:most]


def block_budget(results: Results, ceilings: Ceilings) -> BlockBudget:
    """Put a steady block beside its floor.

    Args:
        results: Of the benchmark. Where they have no ceilings, ``ceilings`` count, if they are
            those of its machine and type of numbers.
        ceilings: Rates.

    Raises:
        UserError: If no steady block was measured.
    """
    found = next((one for one in budgets(results) if one.name == "steady block"), None)
    if found is None:
        raise UserError(f"{results.recipe.name} has no steady block")
    frames = found.frames / found.blocks
    parts_ms = {part: ms * frames for part, ms in found.parts_ms.items()}
    rates = _rates(results, ceilings)
    work = _with_floors(results, rates)
    wholes = {row.piece: row.floor_ms for row in work if row.work == ALL}
    step = wholes.get(STEP_WORK)
    steps = None if step is None else step * results.recipe.steps
    context, decoding = wholes.get(CONTEXT_WORK), wholes.get(DECODE_WORK)
    is_beside = decodes_beside(plain_rollouts(results))
    decode = Cost(DECODE, decoding, parts_ms.get(DECODE))
    update = Cost(CONTEXT, context, parts_ms.get(CONTEXT))
    pieces = [Cost(STEPS, steps, parts_ms.get(DIFFUSION))]
    beside: list[Cost] = []
    known = {DIFFUSION, DECODE, CONTEXT}
    if is_beside:
        # What running side by side saves is in the last part, and so is what the copy hides behind.
        known |= {COPY, OTHER}
        together_ms = sum(parts_ms.get(part, 0.0) for part in known - {DIFFUSION})
        decode = replace(decode, name=f"{DECODE}, beside the passes")
        beside = [replace(update, name=f"{CONTEXT}, beside the decoder"), decode]
        pieces.append(Cost(SIDE_BY_SIDE, _sum(context, decoding), together_ms))
    else:
        pieces += [decode, update]
    pieces += [Cost(part, None, ms) for part, ms in parts_ms.items() if part not in known]
    return BlockBudget(
        block=Cost("block", _sum(steps, context, decoding), found.total_ms * frames),
        pieces=tuple(pieces),
        beside=tuple(beside),
        passes=_passes(results, parts_ms, _sum(steps, context), is_beside=is_beside),
        kinds=tuple(_kinds(work, results.recipe.steps)),
        decode=decode,
        ceilings=None if rates is None else asdict(rates),
    )


def _rates(results: Results, ceilings: Ceilings) -> Ceilings | None:
    if results.ceilings is not None:
        return Ceilings(**results.ceilings)
    fits = (ceilings.name, ceilings.dtype) == (
        results.environment.device_name,
        results.recipe.dtype,
    )
    return ceilings if fits else None


def _with_floors(results: Results, rates: Ceilings | None) -> tuple[WorkRow, ...]:
    if rates is None or (results.work and results.ceilings is not None):
        return results.work
    model = model_settings(results.recipe.settings)
    size, decoder = str(model.get("size")), str(model.get("decoder", "wan"))
    try:
        rows = recipe_floors(results.recipe, size, decoder, rates)
    except UserError:
        # A size that the cost model does not know has no floors.
        return results.work
    return at_floors(results.work, rows) if results.work else rows


def _passes(
    results: Results, parts_ms: Mapping[str, float], floor_ms: float | None, *, is_beside: bool
) -> Cost | None:
    name = f"{STEPS} and {CONTEXT}"
    if not is_beside:
        return Cost(name, floor_ms, parts_ms.get(DIFFUSION, 0.0) + parts_ms.get(CONTEXT, 0.0))
    figure = results.figures.get("diffusion_ms")
    if figure is None or figure.value is None:
        return None
    return Cost(f"{name}, in rollouts that decode nothing", floor_ms, figure.value)


def _kinds(work: Sequence[WorkRow], steps: int) -> Iterable[Cost]:
    times = {STEP_WORK: steps, CONTEXT_WORK: 1}
    rows = [row for row in work if row.piece in times and row.work != ALL]
    for name in dict.fromkeys(row.work for row in rows):
        of_kind = [row for row in rows if row.work == name]
        timed = [row for row in of_kind if row.measured_ms is not None]
        counted = timed or of_kind
        floors = [times[row.piece] * row.floor_ms for row in counted if row.floor_ms is not None]
        is_part = len(counted) < len(of_kind)
        yield Cost(
            f"{name} ({STEPS} alone)" if is_part else name,
            sum(floors) if floors else None,
            sum(times[row.piece] * (row.measured_ms or 0.0) for row in timed) if timed else None,
        )


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
