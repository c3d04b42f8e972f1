"""Where the time goes, from two rollouts with instruments that the figures do not rest on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import lightning.pytorch as pl

from longlive.benchmark.config import PROFILED_BLOCKS, BenchmarkConfig
from longlive.benchmark.host_copy import HostCopy
from longlive.benchmark.latents_only import LatentsOnly
from longlive.benchmark.prompt_text import embed_for
from longlive.benchmark.results import Breakdown, LayerRow, RegionRow
from longlive.benchmark.samples import FIRST_STEADY_BLOCK
from longlive.callbacks.module_regions import uncompiled
from longlive.callbacks.profiler import LongLiveProfiler
from longlive.metrics.region_statistics import RegionStats, statistics
from longlive.metrics.regions import Sample
from longlive.metrics.rollout_profile import LAYER, RolloutProfile
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback, WrapOrder
from longlive.rollout.prompts import PromptTimeline

_BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Profiled:
    """What the instruments said.

    Attributes:
        regions: From the rollout with the profiler.
        layers: From the one with the detailed profiler.
        blocks: Blocks of each.
        layers_without: Names of the callbacks that the detailed one left out.
    """

    regions: RolloutProfile
    layers: RolloutProfile
    blocks: int
    layers_without: tuple[str, ...] = ()

    @property
    def breakdown(self) -> Breakdown:
        """The same as rows."""
        rows = statistics([s for s in self.regions.samples if _counts(s)])
        notes = dict.fromkeys((*self.regions.notes, *self.layers.notes))
        return Breakdown(
            blocks=self.blocks,
            regions=tuple(_region_row(row) for row in rows),
            layers=_layer_rows(self.layers),
            notes=tuple(notes),
            layers_without=self.layers_without,
        )

    def outside_layers_ms(self, name: str) -> float | None:
        """Median of the denoising steps' regions of a name beside the layers, steady blocks."""
        rows = statistics([s for s in self.layers.samples if _counts(s) and LAYER not in s.path])
        found = [
            row.p50_ms
            for row in rows
            if row.path[-1] == name and row.path[-2:-1] and row.path[-2].startswith("step ")
        ]
        return sum(found) / len(found) if found else None


def profile(model: LongLive, callbacks: Sequence[pl.Callback], config: BenchmarkConfig) -> Profiled:
    """Run the two rollouts: one divided into regions, and one into layers.

    Layers can be timed where Python calls them, and not in what is compiled or captured. So the
    detailed rollout is without that, and without decoding, which may share the device.

    Args:
        model: On its device, warm.
        callbacks: Optimizations.
        config: Prompts, and how long a rollout may be.
    """
    block = model.block_latent_frames
    blocks = min(PROFILED_BLOCKS, config.num_output_frames // block)
    timeline = PromptTimeline.single(config.prompts[0])
    if len(config.prompts) > 1:
        # In the middle of the steady blocks, so that there are some on both sides.
        switch = (FIRST_STEADY_BLOCK + blocks) // 2
        timeline = PromptTimeline.switching(config.prompts[:2], [switch * block])

    def run(profiler: LongLiveProfiler, others: Iterable[pl.Callback]) -> RolloutProfile:
        stream = model.stream(
            timeline,
            seed=config.seed,
            latent_frames=blocks * block,
            callbacks=[*others, profiler],
            embed=embed_for(model, config.batch_size),
        )
        for _ in stream:
            pass
        return profiler.profile()

    profiler = LongLiveProfiler()
    regions = run(profiler, [*callbacks, HostCopy(listener=profiler)])
    hidden = [one for one in callbacks if _hides_layers(one)]
    with uncompiled(model):
        shown = [one for one in callbacks if one not in hidden]
        layers = run(LongLiveProfiler(detailed=True, memory=False), [*shown, LatentsOnly()])
    return Profiled(regions, layers, blocks, tuple(type(one).__name__ for one in hidden))


def _hides_layers(callback: pl.Callback) -> bool:
    order = callback.wrap_order if isinstance(callback, RolloutCallback) else None
    return order in (WrapOrder.COMPILE, WrapOrder.CAPTURE)


def _counts(sample: Sample) -> bool:
    """Whether a sample is outside of blocks, or in a steady one."""
    if _BLOCK not in sample.path:
        return True
    return sample.block is not None and sample.block >= FIRST_STEADY_BLOCK


def _region_row(row: RegionStats) -> RegionRow:
    memory = row.memory
    return RegionRow(
        path=row.path,
        count=row.count,
        total_ms=row.total_ms,
        mean_ms=row.mean_ms,
        p50_ms=row.p50_ms,
        p95_ms=row.p95_ms,
        p99_ms=row.p99_ms,
        max_ms=row.max_ms,
        own_ms=row.own_ms,
        share_of_parent=row.share_of_parent,
        peak_bytes=None if memory is None else memory.peak,
        grown_bytes=None if memory is None else memory.grown,
    )


def _layer_rows(profile: RolloutProfile) -> tuple[LayerRow, ...]:
    return tuple(
        LayerRow(layers["kind"], part, layers["passes"], tuple(times_ms))
        for layers in profile.summary(FIRST_STEADY_BLOCK)["layers"]
        for part, times_ms in layers["parts_ms"].items()
    )
