"""The latency metrics: small functions from samples of rollouts to numbers.

What they mean is said in :mod:`longlive.benchmark.definitions`; these are the formulas. All times
are in ms.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from longlive.benchmark.distribution import median
from longlive.benchmark.playout import Playout, play
from longlive.benchmark.samples import (
    COPY,
    DECODE,
    DIFFUSION,
    FIRST_STEADY_BLOCK,
    LATENTS,
    OTHER,
    PLAIN,
    RECACHE,
    TEXT,
    BlockSample,
    RolloutSample,
)

INITIALIZATION = "initialization"
_LEAST_SAVED = 0.01  # of a period; two clocks of one moment differ by less


@dataclass(frozen=True, slots=True)
class Split:
    """A time and what it consists of.

    Attributes:
        total_ms: The whole.
        parts_ms: Its parts, which add up to it; ``other`` is what none of them covers.
    """

    total_ms: float
    parts_ms: dict[str, float]


def steady_blocks(rollout: RolloutSample) -> list[BlockSample]:
    """Blocks 3 and later, without those that begin with a prompt switch or come before one.

    The block before a switch is short of its context update, if the switch is known in time.
    """
    following = [*(block.switches for block in rollout.blocks[1:]), False]
    return [
        block
        for block, is_before_switch in zip(rollout.blocks, following, strict=True)
        if block.index >= FIRST_STEADY_BLOCK and not block.switches and not is_before_switch
    ]


def decoding_notes(rollouts: Sequence[RolloutSample]) -> Iterator[str]:
    """What to know about times that a decoder beside the transformer has a part in."""
    if not decodes_beside([rollout for rollout in rollouts if rollout.kind == PLAIN]):
        return
    alone = any(rollout.kind == LATENTS for rollout in rollouts)
    source = (
        "are from rollouts that decode nothing" if alone else "are missing: none decoded nothing"
    )
    yield (
        "the decoder runs beside the transformer, and each has a part of the device: parts of a "
        f"block add up to more than it, by what this saves. The figures of diffusion {source}"
    )


def decodes_beside(rollouts: Iterable[RolloutSample]) -> bool:
    """Whether parts of steady blocks run side by side: they last longer than the blocks."""
    blocks = [block for rollout in rollouts for block in steady_blocks(rollout)]
    saved_ms = -sum(block.parts_ms[OTHER] for block in blocks)
    return saved_ms > _LEAST_SAVED * sum(block.period_ms for block in blocks)


def inter_frame_ms(blocks: Iterable[BlockSample]) -> list[float]:
    """Period of each block over its frames."""
    return [block.period_ms / block.frames for block in blocks]


def mean_parts(splits: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each part, for parts that occur."""
    names = dict.fromkeys(name for parts in splits for name in parts)
    means = {name: sum(p.get(name, 0.0) for p in splits) / len(splits) for name in names}
    return {name: ms for name, ms in means.items() if ms != 0}


def fps(blocks: Sequence[BlockSample]) -> float:
    """Frames over the sum of the periods, VAE and copy to host included."""
    return _rate(sum(b.frames for b in blocks), sum(b.period_ms for b in blocks))


def diffusion_fps(blocks: Sequence[BlockSample]) -> float:
    """Frames over the time of the transformer alone."""
    return _rate(sum(b.frames for b in blocks), sum(b.diffusion_ms for b in blocks))


def rollout_fps(rollouts: Sequence[RolloutSample]) -> float | None:
    """Frames over the wall clock of whole rollouts; None if it was not read."""
    timed = [(r, r.wall_ms) for r in rollouts if r.wall_ms is not None and r.is_whole]
    if not timed:
        return None
    frames = sum(block.frames for rollout, _ in timed for block in rollout.blocks)
    return _rate(frames, sum(wall_ms for _, wall_ms in timed))


def wall_agreement(rollouts: Sequence[RolloutSample]) -> list[float]:
    """Wall clock of each rollout over the sum of its initialization and its block periods."""
    return [
        rollout.wall_ms / (rollout.initialization_ms + sum(b.period_ms for b in rollout.blocks))
        for rollout in rollouts
        if rollout.wall_ms is not None and rollout.is_whole
    ]


def host_gaps_ms(rollout: RolloutSample) -> list[float]:
    """Time between the arrivals of neighboring steady blocks at the host."""
    arrived = {block.index: block.on_host_ms for block in rollout.blocks}
    return [
        block.on_host_ms - arrived[block.index - 1]
        for block in steady_blocks(rollout)
        if block.index - 1 in arrived
    ]


def playout_of(rollout: RolloutSample) -> Playout:
    """What a viewer at the video's frame rate saw; the frames of a piece arrive together."""
    pieces = [piece for block in rollout.blocks for piece in block.arrivals]
    return play([piece.on_host_ms for piece in pieces for _ in range(piece.frames)])


def first_frame(rollout: RolloutSample) -> Split | None:
    """From the request to the first frames on the host; None if there were none."""
    if not rollout.blocks or rollout.blocks[0].index != 0:
        return None
    first = rollout.blocks[0]
    parts = {INITIALIZATION: rollout.initialization_ms, **_until_first_frames(first)}
    return _split(first.arrivals[0].on_host_ms, parts)


def switches_from_border(rollout: RolloutSample) -> list[Split]:
    """From the block border before each switch to its first frames on the host."""
    return [
        _split(block.arrivals[0].on_host_ms - _border_ms(block), _until_first_frames(block))
        for block in rollout.blocks
        if block.switches
    ]


def switches_added_ms(rollout: RolloutSample) -> list[float]:
    """What each switch adds to the periods of its block and of the block before it.

    Both are compared with the median steady period of the same rollout. Where the block before is
    none to compare (the window was filling, or it had a switch itself), its own block alone counts.
    """
    steady = steady_blocks(rollout)
    if not steady:
        return []
    usual_ms = median([block.period_ms for block in steady])
    added = []
    for before, block in pairwise(rollout.blocks):
        if not block.switches or block.index < FIRST_STEADY_BLOCK:
            continue
        alike = before.index >= FIRST_STEADY_BLOCK and not before.switches
        added.append(block.period_ms - usual_ms + (before.period_ms - usual_ms if alike else 0.0))
    return added


def jitter(periods_ms: Sequence[float], percentile_ms: float) -> float:
    """A percentile over the median."""
    return percentile_ms / median(periods_ms)


def per_latent_frame_ms(blocks: Iterable[BlockSample]) -> list[float]:
    """Older literature: period of a block over its latent frames."""
    return [block.period_ms / block.latent_frames for block in blocks]


def diffusion_per_latent_frame_ms(blocks: Iterable[BlockSample]) -> list[float]:
    """Older literature: time of the transformer over the latent frames of the block."""
    return [block.diffusion_ms / block.latent_frames for block in blocks]


def first_latents_ms(rollouts: Iterable[RolloutSample]) -> list[float]:
    """Older literature: denoising of block 0 over its latent frames."""
    firsts = [rollout.blocks[0] for rollout in rollouts if rollout.blocks]
    return [block.parts_ms[DIFFUSION] / block.latent_frames for block in firsts]


def _until_first_frames(block: BlockSample) -> dict[str, float]:
    first = block.arrivals[0]
    before = {part: block.parts_ms[part] for part in (TEXT, RECACHE, DIFFUSION)}
    if block.first_diffusion_ms is not None:
        before[DIFFUSION] = block.first_diffusion_ms
    return {**before, DECODE: first.decode_ms, COPY: first.copy_ms}


def _border_ms(block: BlockSample) -> float:
    return block.start_ms if block.border_ms is None else block.border_ms


def _split(total_ms: float, parts_ms: dict[str, float]) -> Split:
    return Split(total_ms, {**parts_ms, OTHER: total_ms - sum(parts_ms.values())})


def _rate(frames: int, ms: float) -> float:
    return 1000 * frames / ms
