"""Runs one rollout of each kind and returns its samples; ``RolloutStream`` is what is driven."""

import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import cast

import lightning.pytorch as pl
import torch

from longlive.benchmark.latents_only import LatentsOnly
from longlive.benchmark.prompt_text import Embed, embed_for, forget_prompts
from longlive.benchmark.samples import (
    ARRIVAL,
    LATENTS,
    BlockSample,
    Memory,
    PromptChange,
    RolloutSample,
)
from longlive.benchmark.timing import BlockTimer
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.state import RolloutSpec
from longlive.rollout.stream import Block, RolloutStream


class BatchSize(RolloutCallback):
    """Denoises several videos side by side. Numerics: those of the batch's kernels.

    Args:
        batch: How many.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def configure_rollout(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, spec: RolloutSpec
    ) -> RolloutSpec:
        return replace(spec, batch=self.batch)


@dataclass(frozen=True, slots=True)
class Job:
    """One rollout to run.

    Attributes:
        kind: One of ``samples.KINDS``.
        iteration: Its place among those of its kind.
        seed: Of its noise.
        prompts: What it shows, and when.
        latent_frames: Its length.
        arrivals: Prompts at random moments.
    """

    kind: str
    iteration: int
    seed: int
    prompts: PromptTimeline
    latent_frames: int
    arrivals: tuple["Arrival", ...] = ()


@dataclass(frozen=True, slots=True)
class Arrival:
    """A prompt to ask for while a block is under way.

    Attributes:
        block: Which block.
        share: Where in its expected period, in [0, 1).
        prompt: What to ask for.
    """

    block: int
    share: float
    prompt: str


@dataclass(slots=True)
class _Asked:
    """An arrival that was asked for, and when."""

    arrival: Arrival
    at_ns: int


@dataclass(slots=True)
class Runner:
    """Runs rollouts of a model, one after another.

    Attributes:
        model: On its device.
        callbacks: Optimizations; they run in every rollout.
        device: Where.
        sync_cuda: Whether the device is idle at both ends of a rollout.
        batch: Videos side by side.
        period_ms: Expected period of a block, for prompts at random moments.
        cut: Samples of a rollout that did not come to its end, once there is one.
    """

    model: LongLive
    callbacks: Sequence[pl.Callback]
    device: torch.device
    sync_cuda: bool = True
    batch: int = 1
    period_ms: float = 0.0
    cut: RolloutSample | None = None
    _asked: list[_Asked] = field(default_factory=list)

    def run(self, job: Job, remembered: Embed | None = None) -> RolloutSample:
        """Run a rollout to its end.

        Args:
            job: What to run.
            remembered: Knows the text encoder's output; without it every prompt is encoded anew,
                and prompt caches of the model and of callbacks are emptied before.

        Raises:
            BaseException: Whatever ends it before; ``cut`` then has what was measured.
        """
        if remembered is None:
            forget_prompts((self.model, *self.callbacks))
        timer = BlockTimer(self.device)
        alone = [LatentsOnly()] if job.kind == LATENTS else []
        self._asked = []
        self._wait_for_device()
        request_ns = timer.request()
        try:
            stream = self.model.stream(
                job.prompts,
                seed=job.seed,
                latent_frames=job.latent_frames,
                callbacks=[*self.callbacks, *alone, timer, timer.host_copy],
                embed=remembered or embed_for(self.model, self.batch),
            )
            # Closed here, so that a rollout that is left early leaves nothing running.
            with closing(cast(Generator[Block, None, None], iter(stream))) as blocks:
                if job.kind == ARRIVAL:
                    self._drive_in_step(stream, blocks, timer, job.arrivals)
                else:
                    for _ in blocks:
                        pass
            self._wait_for_device()
            wall_ms = (time.perf_counter_ns() - request_ns) / 1e6
        except BaseException:
            # A device that failed cannot be asked for its times.
            with suppress(RuntimeError):
                self.cut = self._sample(job, timer, request_ns, None)
            raise
        is_timed = self.sync_cuda or self.device.type != "cuda"
        return self._sample(job, timer, request_ns, wall_ms if is_timed else None)

    def _drive_in_step(
        self,
        stream: RolloutStream,
        blocks: Iterable[Block],
        timer: BlockTimer,
        arrivals: Iterable[Arrival],
    ) -> None:
        """Ask for a block once the frames of the one before are on the host."""
        due = {arrival.block: arrival for arrival in arrivals}
        for block in blocks:
            timer.host_copy.wait()
            if arrival := due.get(block.index + 1):
                delay_s = arrival.share * self.period_ms / 1000
                asking = threading.Timer(delay_s, self._ask, (stream, arrival))
                asking.daemon = True
                asking.start()

    def _ask(self, stream: RolloutStream, arrival: Arrival) -> None:
        self._asked.append(_Asked(arrival, time.perf_counter_ns()))
        stream.change_prompt(arrival.prompt)

    def _wait_for_device(self) -> None:
        if self.sync_cuda and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _sample(
        self, job: Job, timer: BlockTimer, request_ns: int, wall_ms: float | None
    ) -> RolloutSample:
        initialization_ms, blocks = timer.finish()
        whole = len(blocks) * self.model.block_latent_frames == job.latent_frames
        asked = [(a.arrival, (a.at_ns - request_ns) / 1e6) for a in self._asked]
        prompts = (*job.prompts.prompts, *(arrival.prompt for arrival, _ in asked))
        return RolloutSample(
            kind=job.kind,
            iteration=job.iteration,
            seed=job.seed,
            prompts=prompts,
            initialization_ms=initialization_ms,
            blocks=blocks,
            changes=changes_of(asked, blocks),
            wall_ms=wall_ms if whole else None,
            memory=_memory_of(blocks),
            is_whole=whole,
        )


def changes_of(
    asked: Sequence[tuple[Arrival, float]], blocks: Sequence[BlockSample]
) -> tuple[PromptChange, ...]:
    """Match prompts with the blocks at which they became active.

    Args:
        asked: Each arrival with its moment in ms, in order.
        blocks: Of the rollout; those with a switch are taken in order.

    Returns:
        Those that became active.
    """
    acted = iter([block for block in blocks if block.switches])
    changes = []
    for arrival, at_ms in asked:
        block = next((b for b in acted if b.index >= arrival.block), None)
        if block is not None:
            shown_ms = block.arrivals[0].on_host_ms
            changes.append(PromptChange(arrival.block, arrival.share, at_ms, block.index, shown_ms))
    return tuple(changes)


def _memory_of(blocks: Sequence[BlockSample]) -> Memory | None:
    known = [block.memory for block in blocks if block.memory is not None]
    if not known:
        return None
    return Memory(
        allocated_bytes=known[-1].allocated_bytes,
        reserved_bytes=max(memory.reserved_bytes for memory in known),
        peak_bytes=max(memory.peak_bytes for memory in known),
    )
