"""What a benchmark runs: lengths, repeats, prompts, seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from longlive.benchmark.samples import FIRST_STEADY_BLOCK
from longlive.errors import UserError
from longlive.rollout.prompts import PromptTimeline

Arrival = Literal["block_border", "random", "both", "none"]

FEWEST_STEADY_BLOCKS = 2
BLOCKS_PER_ARRIVAL = 3
PROFILED_BLOCKS = 10
"""Blocks of a rollout with instruments, at most."""

PROMPTS = (
    "a large red circle bounces over night",
    "a small blue star spins over snow",
    "a large green square bounces over night",
)
"""Words that the embedded model knows; to others they are as good as any."""


# No slots: the parser of the command line reads a default by vars().
@dataclass(frozen=True)
class BenchmarkConfig:
    """Lengths and repeats of a benchmark.

    Attributes:
        num_output_frames: Length of a rollout in latent frames, whole blocks (120 are 477 frames).
        batch_size: Videos denoised side by side; latencies and rates are those of one of them.
        warmup_iterations: Rollouts before any that count.
        benchmark_iterations: Rollouts that count.
        sync_cuda: Whether the device is idle when a rollout is requested, and waited for after its
            last block, which the wall clock needs. Never in between, in any case.
        prompts: The first one, and those that the video is switched to.
        switch_latent_frames: Where the planned switches are due; equal shares by default.
        arrival: How prompts arrive: ``block_border`` as planned, ``random`` at random moments
            inside blocks, ``both`` in rollouts of their own, ``none`` only the first prompt.
        arrival_changes: Prompts that arrive at random moments, over all their rollouts.
        arrival_seed: Of those moments.
        seed: Of the noise of the first rollout; later ones count up.
        breakdown: Whether two more rollouts, with instruments, divide the time into regions and
            layers.
        ceilings: File with rates of the device, for floors.
        measure_ceilings: Measure them instead, before the rollouts.
        commit: The commit, where it cannot be told from a checkout.
    """

    num_output_frames: int = 120
    batch_size: int = 1
    warmup_iterations: int = 2
    benchmark_iterations: int = 10
    sync_cuda: bool = True
    prompts: list[str] = field(default_factory=lambda: list(PROMPTS))
    switch_latent_frames: list[int] | None = None
    arrival: Arrival = "both"
    arrival_changes: int = 20
    arrival_seed: int = 0
    seed: int = 0
    breakdown: bool = True
    ceilings: Path | None = None
    measure_ceilings: bool = False
    commit: str | None = None

    @property
    def plans_switches(self) -> bool:
        """Whether plain rollouts switch prompts at block borders."""
        return self.arrival in ("block_border", "both") and len(self.prompts) > 1

    @property
    def has_arrivals(self) -> bool:
        """Whether there are rollouts with prompts at random moments."""
        wanted = self.arrival in ("random", "both") and len(self.prompts) > 1
        return wanted and self.arrival_changes > 0

    def timeline(self) -> PromptTimeline:
        """Prompts of a plain rollout.

        Raises:
            UserError: If they do not fit its length.
        """
        if not self.plans_switches:
            return PromptTimeline.single(self.prompts[0])
        if self.switch_latent_frames is None:
            return PromptTimeline.spread(self.prompts, self.num_output_frames)
        return PromptTimeline.switching(self.prompts, self.switch_latent_frames)

    def check(self, block_latent_frames: int) -> "BenchmarkConfig":
        """Return the configuration if every figure it asks for can be measured.

        Args:
            block_latent_frames: Of the model.

        Raises:
            UserError: Naming the setting to change.
        """
        self._check_counts()
        if self.num_output_frames % block_latent_frames:
            raise UserError(
                f"benchmark.num_output_frames must be whole blocks of {block_latent_frames} latent "
                f"frames, got {self.num_output_frames}"
            )
        blocks = self.num_output_frames // block_latent_frames
        _check_blocks(
            blocks, FIRST_STEADY_BLOCK + FEWEST_STEADY_BLOCKS, block_latent_frames, "steady latency"
        )
        timeline = self.timeline()
        plan = timeline.plan(self.num_output_frames, block_latent_frames)
        switched = [start // block_latent_frames for start, _ in plan[1:]]
        self._check_switches(switched, blocks)
        if self.has_arrivals:
            _check_blocks(
                blocks,
                FIRST_STEADY_BLOCK + BLOCKS_PER_ARRIVAL,
                block_latent_frames,
                "a prompt at a random moment",
                " or benchmark.arrival to block_border",
            )
        return self

    def _check_counts(self) -> None:
        for name, least in {
            "benchmark_iterations": 1,
            "warmup_iterations": 0,
            "num_output_frames": 1,
            "batch_size": 1,
            "arrival_changes": 0,
        }.items():
            if getattr(self, name) < least:
                raise UserError(
                    f"benchmark.{name} must be at least {least}, got {getattr(self, name)}"
                )
        if not self.prompts:
            raise UserError("benchmark.prompts is empty: give at least one prompt")
        if len(set(self.prompts)) < len(self.prompts):
            raise UserError("benchmark.prompts has one twice, which is no switch: leave it out")
        if self.switch_latent_frames is not None and not self.plans_switches:
            raise UserError(
                "benchmark.switch_latent_frames needs two prompts or more and benchmark.arrival "
                "block_border or both"
            )
        if self.ceilings is not None and self.measure_ceilings:
            raise UserError("give benchmark.ceilings or benchmark.measure_ceilings, not both")

    def _check_switches(self, switched: Sequence[int], blocks: int) -> None:
        steady = set(range(FIRST_STEADY_BLOCK, blocks)) - set(switched)
        steady -= {block - 1 for block in switched}
        if len(steady) < FEWEST_STEADY_BLOCKS:
            raise UserError(
                f"{len(switched)} prompt switches leave {len(steady)} steady block(s) of {blocks}, "
                f"and steady latency needs {FEWEST_STEADY_BLOCKS}: raise "
                "benchmark.num_output_frames, or give fewer prompts"
            )
        if switched and not any(block >= FIRST_STEADY_BLOCK for block in switched):
            raise UserError(
                "what a prompt switch adds is measured from block "
                f"{FIRST_STEADY_BLOCK} on, and the last switch is at block {switched[-1]}: raise "
                "benchmark.num_output_frames or benchmark.switch_latent_frames"
            )


def _check_blocks(have: int, need: int, block: int, what: str, otherwise: str = "") -> None:
    if have < need:
        raise UserError(
            f"{what} needs {need} blocks, and benchmark.num_output_frames {have * block} are "
            f"{have}: set it to at least {need * block}{otherwise}"
        )
