"""Which rollouts a benchmark consists of."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, cycle, islice

from longlive.benchmark.config import BLOCKS_PER_ARRIVAL, BenchmarkConfig
from longlive.benchmark.rollouts import Arrival, Job
from longlive.benchmark.samples import ARRIVAL, CACHED, FIRST_STEADY_BLOCK, LATENTS, PLAIN, WARM_UP
from longlive.rollout.prompts import PromptTimeline


def warm_up_jobs(config: BenchmarkConfig) -> Iterator[Job]:
    """Rollouts that count nowhere; they do all that plain ones do."""
    for index in range(config.warmup_iterations):
        yield Job(WARM_UP, index, config.seed, config.timeline(), config.num_output_frames)


def plain_jobs(config: BenchmarkConfig) -> Iterator[Job]:
    """Rollouts for steady latency, cold first frames and switches at block borders."""
    for index in range(config.benchmark_iterations):
        seed = config.seed + index
        yield Job(PLAIN, index, seed, config.timeline(), config.num_output_frames)


def cached_jobs(config: BenchmarkConfig, block_latent_frames: int) -> Iterator[Job]:
    """Rollouts of one block, for first frames of a cached prompt."""
    prompt = PromptTimeline.single(config.prompts[0])
    for index in range(config.benchmark_iterations):
        yield Job(CACHED, index, config.seed + index, prompt, block_latent_frames)


def latents_jobs(config: BenchmarkConfig) -> Iterator[Job]:
    """The plain rollouts again, for the time of the transformer alone."""
    for job in plain_jobs(config):
        yield replace(job, kind=LATENTS)


def arrival_jobs(config: BenchmarkConfig, block_latent_frames: int) -> Iterator[Job]:
    """Rollouts with prompts at random moments, as many as the changes take.

    From block 3 on a prompt arrives inside every third block, at a moment that is drawn uniformly:
    the one before has then become active and been shown.
    """
    if not config.has_arrivals:
        return
    drawn = random.Random(config.arrival_seed)
    later = [*config.prompts[1:], config.prompts[0]]
    room = config.num_output_frames // block_latent_frames - FIRST_STEADY_BLOCK
    left = config.arrival_changes
    for index in count():
        changes = min(left, room // BLOCKS_PER_ARRIVAL)
        if changes == 0:
            return
        left -= changes
        arrivals = tuple(
            Arrival(FIRST_STEADY_BLOCK + BLOCKS_PER_ARRIVAL * i, drawn.random(), prompt)
            for i, prompt in enumerate(islice(cycle(later), changes))
        )
        blocks = FIRST_STEADY_BLOCK + BLOCKS_PER_ARRIVAL * changes
        yield Job(
            ARRIVAL,
            index,
            config.seed + index,
            PromptTimeline.single(config.prompts[0]),
            blocks * block_latent_frames,
            arrivals,
        )
