"""Where the time of a frame goes: the parts of blocks of one sort, spread over their frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from longlive.benchmark.latency import INITIALIZATION, steady_blocks
from longlive.benchmark.results import Results
from longlive.benchmark.samples import PARTS, PLAIN, BlockSample, RolloutSample

BUDGET_PARTS = (INITIALIZATION, *PARTS)
"""Keys of ``Budget.parts_ms``, in the order in which they happen; the first in block 0 alone."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Blocks of one sort, with the mean time of their parts.

    Attributes:
        name: Which blocks, in words.
        blocks: How many there are.
        frames: Frames in all of them.
        parts_ms: Milliseconds of each part per frame: its sum over the blocks / ``frames``.
    """

    name: str
    blocks: int
    frames: int
    parts_ms: dict[str, float]

    @property
    def total_ms(self) -> float:
        """Milliseconds per frame."""
        return sum(self.parts_ms.values())


def plain_rollouts(results: Results) -> list[RolloutSample]:
    """The free-running rollouts that have at least one block."""
    return [rollout for rollout in results.rollouts if rollout.kind == PLAIN and rollout.blocks]


def budgets(results: Results) -> list[Budget]:
    """Budgets of first, steady and switching blocks, of those that were measured.

    The first block's has the initialization in it.
    """
    rollouts = plain_rollouts(results)
    switching = [block for rollout in rollouts for block in rollout.blocks if block.switches]
    steady = [block for rollout in rollouts for block in steady_blocks(rollout)]
    first = [rollout for rollout in rollouts if rollout.blocks[0].index == 0]
    waits_ms = sum(rollout.initialization_ms for rollout in first)
    found = (
        budget("first block", [rollout.blocks[0] for rollout in first], waits_ms),
        budget("steady block", steady),
        budget("block with a prompt switch", switching),
    )
    return [one for one in found if one.blocks]


def budgets_by_place(results: Results) -> Iterator[tuple[int, Budget]]:
    """Budget of each place in the video, over the plain rollouts, without the initialization."""
    places: dict[int, list[BlockSample]] = {}
    for rollout in plain_rollouts(results):
        for block in rollout.blocks:
            places.setdefault(block.index, []).append(block)
    for index in sorted(places):
        yield index, budget(f"block {index}", places[index])


def budget(name: str, blocks: Sequence[BlockSample], waits_ms: float = 0.0) -> Budget:
    """Spread the parts of some blocks over their frames.

    Args:
        name: Which blocks.
        blocks: May be none.
        waits_ms: Initialization of all of them.
    """
    frames = sum(block.frames for block in blocks)
    sums = dict.fromkeys(BUDGET_PARTS, 0.0)
    sums[INITIALIZATION] = waits_ms
    for block in blocks:
        for part, ms in block.parts_ms.items():
            sums[part] = sums.get(part, 0.0) + ms
    per_frame = {part: ms / frames for part, ms in sums.items() if ms} if frames else {}
    return Budget(name, len(blocks), frames, per_frame)
