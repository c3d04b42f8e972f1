"""Rollouts with numbers that can be checked by hand."""

from dataclasses import replace

from longlive.benchmark.samples import (
    CONTEXT,
    COPY,
    DECODE,
    DIFFUSION,
    OTHER,
    PARTS,
    PLAIN,
    RECACHE,
    TEXT,
    BlockSample,
    Memory,
    RolloutSample,
)

PROMPTS = ["a red circle", "a small square", "a large circle"]
USUAL = {DIFFUSION: 400.0, DECODE: 240.0, COPY: 2.0, CONTEXT: 100.0, OTHER: 8.0}
SWITCH = {**USUAL, TEXT: 60.0, RECACHE: 190.0}
PERIOD_MS = 750.0


def made_block(
    index: int, start_ms: float, parts: dict[str, float] | None = None, *, switches: bool = False
) -> BlockSample:
    """A block of 750 ms, or of other parts; its frames are on the host 1 ms after their copy."""
    chosen = {**dict.fromkeys(PARTS, 0.0), **(parts or (SWITCH if switches else USUAL))}
    before_host = sum(chosen[part] for part in (TEXT, RECACHE, DIFFUSION, DECODE, COPY))
    return BlockSample(
        index=index,
        frames=12 if index else 9,
        latent_frames=3,
        start_ms=start_ms,
        end_ms=start_ms + sum(chosen.values()),
        on_host_ms=start_ms + before_host + 1.0,
        parts_ms=chosen,
        switches=switches,
        memory=Memory(1000 + index, 3000, 2000 + index),
    )


def made_rollout(
    blocks: int = 8, switched: tuple[int, ...] = (), kind: str = PLAIN, **changes: object
) -> RolloutSample:
    """Blocks one after another, from 20 ms after the request; the first has a prompt to encode."""
    made: list[BlockSample] = []
    at_ms = 20.0
    for index in range(blocks):
        parts = {**USUAL, TEXT: 60.0} if index == 0 else None
        made.append(made_block(index, at_ms, parts, switches=index in switched))
        at_ms = made[-1].end_ms
    rollout = RolloutSample(
        kind=kind,
        iteration=0,
        seed=0,
        prompts=("a",),
        initialization_ms=20.0,
        blocks=tuple(made),
        wall_ms=at_ms,
        memory=Memory(1000 + blocks - 1, 3000, 2000 + blocks - 1),
    )
    return replace(rollout, **changes)
