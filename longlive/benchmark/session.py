"""One benchmark from the weights to its results; what it has is kept whatever ends it."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from longlive.attention.backends import BACKENDS, BackendName, missing_reason
from longlive.benchmark.breakdown import Profiled, profile
from longlive.benchmark.config import BenchmarkConfig
from longlive.benchmark.environment import commit_of_checkout, environment_of, gpu_state
from longlive.benchmark.figures import figures_of
from longlive.benchmark.latency import decodes_beside, decoding_notes, steady_blocks
from longlive.benchmark.plan import (
    arrival_jobs,
    cached_jobs,
    latents_jobs,
    plain_jobs,
    warm_up_jobs,
)
from longlive.benchmark.prompt_text import Embed, RememberedText
from longlive.benchmark.provenance import GpuState, Recipe, StartUp
from longlive.benchmark.results import FORMAT, VERSION, Results, WorkRow
from longlive.benchmark.rollouts import BatchSize, Job, Runner
from longlive.benchmark.samples import CACHED, PLAIN, WARM_UP, RolloutSample
from longlive.benchmark.work import check_ceilings, times_of, work_rows
from longlive.callbacks.frame_writer import FrameWriter
from longlive.callbacks.profiler import LongLiveProfiler
from longlive.callbacks.progress import RolloutProgress
from longlive.metrics.ceilings import load_ceilings
from longlive.metrics.clocks import memory_gauge_of
from longlive.metrics.measure_ceilings import measure_ceilings
from longlive.modules.longlive import DTYPES, LongLive
from longlive.rollout.hooks import RolloutCallback

log = logging.getLogger(__name__)

OBSERVERS = (FrameWriter, LongLiveProfiler, RolloutProgress)
"""Callbacks that only watch, and are left out: the benchmark copies frames to the host itself."""

COMPLETE = "complete"
_WANTED_BLOCKS = 200


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a recipe came from.

    Attributes:
        command: Command line.
        config_files: As they were named.
        settings: The resolved configuration, ready for JSON.
        recipes: Name and overlays of each recipe that was asked for by name.
    """

    command: str = ""
    config_files: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    recipes: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def title(self) -> str:
        """Names of the configuration files, a recipe's own in place of those of its overlays."""
        files = self.config_files
        for name, overlays in self.recipes:
            for start in range(len(files) - len(overlays) + 1):
                if files[start : start + len(overlays)] == overlays:
                    files = (*files[:start], name, *files[start + len(overlays) :])
                    break
        return "+".join(Path(name).stem for name in files)


class Session:
    """Measures one recipe.

    Args:
        model: Not yet on its device.
        callbacks: As configured; those that only watch are left out.
        config: What to run.
        device: Where.
        origin: Where the recipe came from.

    Raises:
        UserError: If the configuration cannot work with the model.
    """

    def __init__(
        self,
        model: LongLive,
        callbacks: Iterable[pl.Callback],
        config: BenchmarkConfig,
        device: torch.device,
        origin: Origin | None = None,
    ) -> None:
        given = list(callbacks)
        self.model = model
        self.config = config.check(model.block_latent_frames)
        self.device = device
        self.origin = origin or Origin()
        rollout = [c for c in given if isinstance(c, RolloutCallback)]
        self.kept = [c for c in rollout if not isinstance(c, OBSERVERS)]
        self.left_out = [c for c in given if c not in self.kept]
        batch = [BatchSize(config.batch_size)] if config.batch_size > 1 else []
        self.runner = Runner(
            model, [*self.kept, *batch], device, config.sync_cuda, config.batch_size
        )
        self.rollouts: list[RolloutSample] = []
        self.profiled: Profiled | None = None
        self.ceilings = None if config.ceilings is None else load_ceilings(config.ceilings)
        check_ceilings(self.ceilings, _dtype_name(model, device))
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._started_s = time.perf_counter()
        self._start_up = StartUp(0.0, (), None)
        self._states: tuple[GpuState | None, GpuState | None] = (None, None)
        # Asked for once: programs are started for it, and samples lie in between.
        self._environment = environment_of(device)
        self._commit = config.commit or commit_of_checkout()

    def run(self, checkpoint: Callable[[], None] = lambda: None) -> None:
        """Measure everything.

        Args:
            checkpoint: Called whenever a rollout is done, outside of all measurements.
        """
        self._prepare()
        config, block = self.config, self.model.block_latent_frames
        for job in warm_up_jobs(config):
            self._run(job, config.warmup_iterations, checkpoint)
        for job in plain_jobs(config):
            self._run(job, config.benchmark_iterations, checkpoint)
        self._states = (self._states[0], gpu_state(self.device))
        if decodes_beside(self._plain):
            for job in latents_jobs(config):
                self._run(job, config.benchmark_iterations, checkpoint)
        remembered = RememberedText(self.model, config.batch_size)
        remembered(config.prompts[0])
        for job in cached_jobs(config, block):
            self._run(job, config.benchmark_iterations, checkpoint, remembered)
        self.runner.period_ms = self._figure("block_period_ms") or 0.0
        arrivals = list(arrival_jobs(config, block))
        for job in arrivals:
            self._run(job, len(arrivals), checkpoint)
        if config.breakdown:
            log.info("two rollouts with instruments, for the breakdown")
            self.profiled = profile(self.model, self.runner.callbacks, config)

    def results(self, ended: str = COMPLETE) -> Results:
        """What has been measured so far.

        Args:
            ended: In words, what ended it.
        """
        rollouts = list(self.rollouts)
        if ended != COMPLETE and self.runner.cut is not None:
            rollouts.append(self.runner.cut)
        figures = figures_of(rollouts, self._start_up)
        work: tuple[WorkRow, ...] = ()
        if self.profiled is not None:
            times = times_of(self.profiled, figures["block_period_ms"].value)
            work = work_rows(self.model, self.config.batch_size, times, self.ceilings)
        return Results(
            format=FORMAT,
            version=VERSION,
            complete=ended == COMPLETE,
            ended=ended,
            started_at=self._started_at,
            elapsed_s=time.perf_counter() - self._started_s,
            commit=self._commit,
            benchmark=_plain(asdict(self.config)),
            recipe=self._recipe(),
            environment=replace(
                self._environment, gpu_before=self._states[0], gpu_after=self._states[1]
            ),
            start_up=self._start_up,
            rollouts=tuple(rollouts),
            figures=figures,
            breakdown=None if self.profiled is None else self.profiled.breakdown,
            work=work,
            ceilings=None if self.ceilings is None else asdict(self.ceilings),
            notes=tuple(self._notes(rollouts)),
        )

    def _prepare(self) -> None:
        started_s = time.perf_counter()
        self.model.prepare(self.device)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        gauge = memory_gauge_of(self.device)
        weights = None if gauge is None else gauge.read().allocated
        self._start_up = StartUp(time.perf_counter() - started_s, (), weights)
        if self.config.measure_ceilings:
            log.info("measuring the ceilings of this machine")
            self.ceilings = measure_ceilings(self.device, self.model.dit.dtype_of_weights)
        self._states = (gpu_state(self.device), None)

    def _run(
        self, job: Job, of: int, checkpoint: Callable[[], None], remembered: Embed | None = None
    ) -> None:
        started_s = time.perf_counter()
        sample = self.runner.run(job, remembered)
        self.rollouts.append(sample)
        if job.kind == WARM_UP:
            self._start_up = _with_warm_up(self._start_up, time.perf_counter() - started_s)
        if job.kind != CACHED or job.iteration + 1 == of:
            seconds = sum(block.period_ms for block in sample.blocks) / 1000
            log.info(
                "%s %d of %d: %d blocks in %.1f s",
                job.kind,
                job.iteration + 1,
                of,
                len(sample.blocks),
                seconds,
            )
        checkpoint()

    @property
    def _plain(self) -> list[RolloutSample]:
        return [rollout for rollout in self.rollouts if rollout.kind == PLAIN]

    def _figure(self, name: str) -> float | None:
        return figures_of(self.rollouts, self._start_up)[name].value

    def _recipe(self) -> Recipe:
        model, parts = self.model, self.model.parts
        return Recipe(
            name=self.origin.title or model.size,
            command=self.origin.command,
            config_files=self.origin.config_files,
            settings=self.origin.settings,
            callbacks=tuple(_class_name(callback) for callback in self.kept),
            left_out=tuple(_class_name(callback) for callback in self.left_out),
            weights_kind="not loaded" if parts is None else parts.kind,
            weights_source=model.weights if parts is None else parts.source,
            dtype=_dtype_name(model, self.device),
            attention=_backend(model, self.device),
            height_px=model.height_px,
            width_px=model.width_px,
            steps=len(model.spec.schedule.sigmas),
            window_latent_frames=model.spec.window_latent_frames,
            sink_latent_frames=model.spec.sink_latent_frames,
            block_latent_frames=model.block_latent_frames,
            guidance=model.spec.guidance,
            batch_size=self.config.batch_size,
        )

    def _notes(self, rollouts: Sequence[RolloutSample]) -> Iterator[str]:
        parts, window = self.model.parts, self.model.spec.window_latent_frames
        if parts is not None and parts.kind == "synthetic":
            yield "synthetic (random) weights: speed and memory are real, the video is noise"
        steady = sum(len(steady_blocks(r)) for r in rollouts if r.kind == PLAIN)
        if steady < _WANTED_BLOCKS:
            yield (
                f"{steady} blocks behind the steady figures: a p99 wants {_WANTED_BLOCKS}; raise "
                "num_output_frames or benchmark_iterations"
            )
        block = self.model.block_latent_frames
        if window is None or window > 4 * block:
            filled = "never" if window is None else f"from block {-(-window // block) - 1} on"
            yield f"steady figures begin at block 3, and the window is full {filled}"
        yield from decoding_notes(rollouts)
        if not self.config.sync_cuda:
            yield "sync_cuda is off: the device may have been busy when a rollout was requested"


def _with_warm_up(start_up: StartUp, seconds: float) -> StartUp:
    return StartUp(start_up.load_s, (*start_up.warm_up_s, seconds), start_up.weights_bytes)


def _dtype_name(model: LongLive, device: torch.device) -> str:
    auto = "bfloat16" if device.type == "cuda" else "float32"
    name = auto if model.dtype_name == "auto" else model.dtype_name
    return str(DTYPES[name]).removeprefix("torch.")


def _backend(model: LongLive, device: torch.device) -> str:
    if model.attention != "auto":
        return model.attention
    half = _dtype_name(model, device) == "bfloat16"
    candidates: list[BackendName | str] = [*BACKENDS] if half else ["sdpa"]
    return next(name for name in candidates if missing_reason(name, device) is None)


def _class_name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
