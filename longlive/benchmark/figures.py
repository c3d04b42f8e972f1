"""All figures of a benchmark, from its samples."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from longlive.benchmark import latency
from longlive.benchmark.definitions import DEFINITIONS
from longlive.benchmark.distribution import distribution_of, median
from longlive.benchmark.latency import Split
from longlive.benchmark.provenance import StartUp
from longlive.benchmark.results import Figure
from longlive.benchmark.samples import (
    ARRIVAL,
    CACHED,
    DECODE,
    LATENTS,
    PLAIN,
    BlockSample,
    Memory,
    RolloutSample,
)

Figures = dict[str, Figure]

_NO_BLOCKS = "no steady block was measured"
_NOT_ALONE = "no steady block was measured in which nothing was decoded beside the transformer"


@dataclass(frozen=True, slots=True)
class _Rollouts:
    """The rollouts of a benchmark by kind."""

    plain: list[RolloutSample]
    cached: list[RolloutSample]
    arrival: list[RolloutSample]
    latents: list[RolloutSample]

    @property
    def steady(self) -> list[list[BlockSample]]:
        """Steady blocks of each plain rollout that has some."""
        return _steady_of(self.plain)

    @property
    def undisturbed(self) -> list[RolloutSample]:
        """Rollouts in which the transformer has the device to itself."""
        if self.latents or latency.decodes_beside(self.plain):
            return self.latents
        return self.plain


def figures_of(rollouts: Sequence[RolloutSample], start_up: StartUp) -> Figures:
    """Every figure of ``definitions.DEFINITIONS``; those that could not be measured say why.

    Args:
        rollouts: Of all kinds; those that were cut short count with the blocks that they have.
        start_up: Loading and warming up.
    """
    kinds = (PLAIN, CACHED, ARRIVAL, LATENTS)
    grouped = _Rollouts(*([r for r in rollouts if r.kind == kind] for kind in kinds))
    found = {
        **_steady(grouped),
        **_jitter(grouped),
        **_first_frames(grouped),
        **_switches(grouped),
        **_memory(grouped, start_up),
        **_start_up(grouped, start_up),
        **_literature(grouped),
    }
    return {name: found[name] for name in DEFINITIONS}


def _steady_of(rollouts: Sequence[RolloutSample]) -> list[list[BlockSample]]:
    found = (latency.steady_blocks(rollout) for rollout in rollouts)
    return [blocks for blocks in found if blocks]


def _steady(rollouts: _Rollouts) -> Figures:
    steady, alone = rollouts.steady, _steady_of(rollouts.undisturbed)
    blocks = [block for one in steady for block in one]
    parts = latency.mean_parts([block.parts_ms for block in blocks]) if blocks else {}
    per_frame = [
        {name: ms / block.frames for name, ms in block.parts_ms.items()} for block in blocks
    ]
    return {
        "inter_frame_ms": _spread(
            "inter_frame_ms",
            map(latency.inter_frame_ms, steady),
            components=latency.mean_parts(per_frame) if per_frame else {},
        ),
        "block_period_ms": _spread("block_period_ms", map(_periods, steady), components=parts),
        "diffusion_ms": _spread(
            "diffusion_ms", ([b.diffusion_ms for b in one] for one in alone), _NOT_ALONE
        ),
        "decode_ms": _spread("decode_ms", ([b.parts_ms[DECODE] for b in one] for one in steady)),
        "fps": _rate("fps", steady, latency.fps),
        "diffusion_fps": _rate("diffusion_fps", alone, latency.diffusion_fps, _NOT_ALONE),
        "rollout_fps": _single(
            "rollout_fps",
            latency.rollout_fps(rollouts.plain),
            "the wall clock was not read: set benchmark.sync_cuda",
            [f for f in (latency.rollout_fps([r]) for r in rollouts.plain) if f is not None],
        ),
        "wall_agreement": _spread(
            "wall_agreement", (latency.wall_agreement([r]) for r in rollouts.plain)
        ),
    }


def _jitter(rollouts: _Rollouts) -> Figures:
    periods = [_periods(blocks) for blocks in rollouts.steady]
    every = distribution_of([ms for one in periods for ms in one])
    p99, worst = (every.p99, every.max) if every else (0.0, 0.0)
    playouts = [latency.playout_of(r) for r in rollouts.plain if len(r.blocks) > 1]
    alone = [found for found in map(distribution_of, periods) if found]
    return {
        "jitter_p99": _single(
            "jitter_p99",
            p99 / every.p50 if every else None,
            _NO_BLOCKS,
            [d.p99 / d.p50 for d in alone],
        ),
        "jitter_max": _single(
            "jitter_max",
            worst / every.p50 if every else None,
            _NO_BLOCKS,
            [d.max / d.p50 for d in alone],
        ),
        "host_gap_ms": _spread("host_gap_ms", map(latency.host_gaps_ms, rollouts.plain)),
        "paced_gap_ms": _spread("paced_gap_ms", ([*p.gaps_ms] for p in playouts), at_mean=True),
        "stalls": _spread("stalls", ([float(p.stalls)] for p in playouts), at_mean=True),
        "stalled_ms": _spread("stalled_ms", ([p.stalled_ms] for p in playouts), at_mean=True),
    }


def _first_frames(rollouts: _Rollouts) -> Figures:
    def split(name: str, kind: Sequence[RolloutSample]) -> Figure:
        found = [s for s in map(latency.first_frame, kind) if s is not None]
        return _totals(name, [[one] for one in found], "no first frame of this kind was measured")

    return {
        "first_frame_cold_ms": split("first_frame_cold_ms", rollouts.plain),
        "first_frame_cached_ms": split("first_frame_cached_ms", rollouts.cached),
    }


def _switches(rollouts: _Rollouts) -> Figures:
    unplanned = "no prompt switch at a block border: give two prompts, arrival block_border or both"
    unasked = "no prompt at a random moment: give two prompts, arrival random or both"
    borders = [latency.switches_from_border(rollout) for rollout in rollouts.plain]
    return {
        "switch_border_ms": _totals("switch_border_ms", borders, unplanned),
        "switch_added_ms": _spread(
            "switch_added_ms", map(latency.switches_added_ms, rollouts.plain), unplanned
        ),
        "prompt_to_pixel_ms": _spread(
            "prompt_to_pixel_ms",
            ([change.prompt_to_pixel_ms for change in r.changes] for r in rollouts.arrival),
            unasked,
        ),
    }


def _memory(rollouts: _Rollouts, start_up: StartUp) -> Figures:
    read = [rollout.memory for rollout in rollouts.plain if rollout.memory is not None]
    unknown = "the system does not tell"

    def highest(name: str, value: Callable[[Memory], int]) -> Figure:
        values = [float(value(memory)) for memory in read]
        return _single(name, max(values, default=None), unknown, values)

    weights = start_up.weights_bytes
    return {
        "peak_memory_bytes": highest("peak_memory_bytes", lambda m: m.peak_bytes),
        "reserved_memory_bytes": highest("reserved_memory_bytes", lambda m: m.reserved_bytes),
        "weights_memory_bytes": _single(
            "weights_memory_bytes", None if weights is None else float(weights), unknown
        ),
    }


def _start_up(rollouts: _Rollouts, start_up: StartUp) -> Figures:
    walls = [r.wall_ms for r in rollouts.plain if r.wall_ms is not None]
    first = next(iter(start_up.warm_up_s), None)
    compiled = None if first is None or not walls else max(0.0, first - median(walls) / 1000)
    warm_up = sum(start_up.warm_up_s) if start_up.warm_up_s else None
    cold = "no warm-up rollout and a whole plain one to compare with"
    return {
        "load_s": _single("load_s", start_up.load_s, ""),
        "warm_up_s": _single("warm_up_s", warm_up, "no warm-up was asked for"),
        "compile_s": _single("compile_s", compiled, cold),
    }


def _literature(rollouts: _Rollouts) -> Figures:
    alone = rollouts.undisturbed
    whole = [[*rollout.blocks] for rollout in alone if rollout.blocks]
    return {
        "literature_ms_per_latent_frame": _spread(
            "literature_ms_per_latent_frame", map(latency.per_latent_frame_ms, rollouts.steady)
        ),
        "literature_diffusion_ms_per_latent_frame": _spread(
            "literature_diffusion_ms_per_latent_frame",
            map(latency.diffusion_per_latent_frame_ms, _steady_of(alone)),
            _NOT_ALONE,
        ),
        "literature_diffusion_fps": _rate(
            "literature_diffusion_fps", whole, latency.diffusion_fps, _NOT_ALONE
        ),
        "literature_first_block_latent_ms": _spread(
            "literature_first_block_latent_ms",
            (latency.first_latents_ms([rollout]) for rollout in alone),
            _NOT_ALONE,
        ),
    }


def _periods(blocks: Sequence[BlockSample]) -> list[float]:
    return [block.period_ms for block in blocks]


def _spread(
    name: str,
    iterations: Iterable[Sequence[float]],
    reason: str = _NO_BLOCKS,
    *,
    components: dict[str, float] | None = None,
    at_mean: bool = False,
) -> Figure:
    """A figure of samples of several iterations: their median, or their mean."""
    groups = [values for values in iterations if values]
    every = distribution_of([value for values in groups for value in values])
    if every is None:
        return _single(name, None, reason)
    centers = [sum(v) / len(v) if at_mean else median(v) for v in groups]
    return Figure(
        value=every.mean if at_mean else every.p50,
        unit=DEFINITIONS[name].unit,
        definition=name,
        distribution=every,
        iterations=tuple(centers),
        components=components or {},
    )


def _totals(name: str, iterations: Sequence[Sequence[Split]], reason: str) -> Figure:
    """A figure of times with parts."""
    every = [split for splits in iterations for split in splits]
    parts = latency.mean_parts([split.parts_ms for split in every]) if every else {}
    totals = ([split.total_ms for split in splits] for splits in iterations)
    return _spread(name, totals, reason, components=parts)


def _rate(
    name: str,
    iterations: Sequence[Sequence[BlockSample]],
    rate: Callable[[Sequence[BlockSample]], float],
    reason: str = _NO_BLOCKS,
) -> Figure:
    """Frames over time: of all blocks together, and of each iteration."""
    every = [block for blocks in iterations for block in blocks]
    alone = [rate(blocks) for blocks in iterations]
    return _single(name, rate(every) if every else None, reason, alone)


def _single(
    name: str, value: float | None, reason: str, iterations: Sequence[float] = ()
) -> Figure:
    """A figure that is one number."""
    return Figure(
        value=value,
        unit=DEFINITIONS[name].unit,
        definition=name,
        iterations=tuple(iterations),
        reason="" if value is not None else reason,
    )
