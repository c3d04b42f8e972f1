"""Compares variants of a recipe on one machine in one go.

Machines drift: clocks fall as a GPU warms, neighbors come and go. So all variants are loaded and
warmed up first, and then every repeat runs each of them once, in an order that rotates from repeat
to repeat. What a variant gains is the ratio to the baseline within a repeat, see
:mod:`longlive.benchmark.ablation_report`. Graphs keep memory of their own, so many variants of a
large model do not fit side by side: a matrix can ask for one after the other, whose memory is then
not compared.

Every variant has a transformer and a decoder of its own, since optimizations change them in place;
the text encoder, by far the largest part, is shared by those that leave it alone. The memory of a
variant is what loading and warming it up took, and what a rollout adds.
"""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch

from longlive.benchmark.ablation_matrix import Matrix
from longlive.benchmark.ablation_table import FORMAT, VERSION, AblationResults, AblationRow
from longlive.benchmark.config import BenchmarkConfig
from longlive.benchmark.environment import commit_of_checkout, environment_of, gpu_state
from longlive.benchmark.figures import figures_of
from longlive.benchmark.latency import steady_blocks
from longlive.benchmark.plan import plain_jobs, warm_up_jobs
from longlive.benchmark.provenance import GpuState, StartUp
from longlive.benchmark.rollouts import Job, Runner
from longlive.benchmark.samples import RolloutSample
from longlive.benchmark.session import OBSERVERS
from longlive.errors import UserError
from longlive.metrics.clocks import memory_gauge_of
from longlive.models.text_encoder import UMT5Encoder
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.rehearsal import release_unused

log = logging.getLogger(__name__)

FIGURES = (
    "inter_frame_ms",
    "fps",
    "diffusion_fps",
    "decode_ms",
    "first_frame_cold_ms",
    "switch_added_ms",
    "peak_memory_bytes",
)


@dataclass(frozen=True, slots=True)
class Variant:
    """A recipe, ready to be put on its device.

    Attributes:
        model: Not yet on its device.
        callbacks: As configured; those that only watch are left out.
        device: Where.
        settings: Arguments of the model.
    """

    model: LongLive
    callbacks: Sequence[pl.Callback]
    device: torch.device
    settings: dict[str, Any]


@dataclass(slots=True)
class _Row:
    """One row under way."""

    name: str
    overlays: tuple[str, ...]
    build: Callable[[], Variant]
    variant: Variant | None = None
    runner: Runner | None = None
    held_bytes: int | None = None
    warm_up_s: tuple[float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    callbacks: tuple[str, ...] = ()
    reason: str = ""
    samples: list[RolloutSample] = field(default_factory=list)
    memory_bytes: list[float] = field(default_factory=list)


class Ablation:
    """Runs a matrix.

    Args:
        matrix: What is compared.
        recipe: Configuration files that every row is based on.
        build: Makes the variant with some overlays on top of the recipe; may fail for a row.
        config: Lengths, prompts and seeds; a repeat is one rollout.
        origin: File of the matrix, and the command line.

    Raises:
        UserError: If the figures cannot be measured with these lengths.
    """

    def __init__(
        self,
        matrix: Matrix,
        recipe: Sequence[str],
        build: Callable[[Sequence[str]], Variant],
        config: BenchmarkConfig,
        origin: tuple[str, str] = ("", ""),
    ) -> None:
        self.matrix = matrix
        self.recipe = tuple(recipe)
        self.config = replace(config, benchmark_iterations=matrix.repeats)
        self.origin = origin
        self.rows: list[_Row] = []
        for row in matrix.rows:
            names = tuple(str(path) for path in row.overlays)
            self.rows.append(_Row(row.name, names, lambda names=names: build(names)))  # type: ignore[misc]
        self.order: list[tuple[str, ...]] = []
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._device = torch.device("cpu")
        self._weights_kind = "not loaded"
        self._text_encoder: UMT5Encoder | None = None
        self._before: GpuState | None = None

    def run(self, checkpoint: Callable[[], None] = lambda: None) -> None:
        """Load and warm up every row, then repeat them in turns.

        Args:
            checkpoint: Called after every repeat.

        Raises:
            UserError: If no row can run.
        """
        if self.matrix.interleaved:
            self._take_turns(checkpoint)
        else:
            self._go_through(checkpoint)
        if all(row.reason for row in self.rows):
            raise UserError(f"no row can run here; {self.rows[0].name}: {self.rows[0].reason}")

    def _go_through(self, checkpoint: Callable[[], None]) -> None:
        """One row after the other; none is kept."""
        for row in self.rows:
            if self._attempt(row, self._prepare):
                self._before = self._before or gpu_state(self._device)
                for job in plain_jobs(self.config):
                    if self._attempt(row, partial(_measure, job=job)):
                        self.order.append((row.name,))
                log.info("%s: %d repeats", row.name, len(row.samples))
            row.variant = row.runner = None
            # What was compiled for it would count as a recompilation of the next.
            torch.compiler.reset()
            gc.collect()
            release_unused(self._device)
            checkpoint()

    def _take_turns(self, checkpoint: Callable[[], None]) -> None:
        """All rows at once, each of them in every repeat."""
        for row in self.rows:
            self._attempt(row, self._prepare)
        self._before = gpu_state(self._device)
        for repeat, job in enumerate(plain_jobs(self.config)):
            order = rotated(self.rows, repeat)
            measure = partial(_measure, job=job)
            ran = [row for row in order if self._attempt(row, measure)]
            self.order.append(tuple(row.name for row in ran))
            log.info("repeat %d of %d: %d rows", repeat + 1, self.matrix.repeats, len(ran))
            checkpoint()

    def results(self, *, complete: bool = True) -> AblationResults:
        """What has been measured so far."""
        file, command = self.origin
        environment = environment_of(self._device)
        return AblationResults(
            format=FORMAT,
            version=VERSION,
            complete=complete,
            title=self.matrix.title,
            recipe=self.recipe,
            matrix=file,
            baseline=self.matrix.baseline,
            kind=self.matrix.kind,
            figures=FIGURES,
            rows=tuple(_result(row) for row in self.rows),
            order=tuple(self.order),
            repeats=self.matrix.repeats,
            weights_kind=self._weights_kind,
            environment=replace(
                environment, gpu_before=self._before, gpu_after=gpu_state(self._device)
            ),
            commit=self.config.commit or commit_of_checkout(),
            command=command,
            started_at=self._started_at,
            interleaved=self.matrix.interleaved,
        )

    def _attempt(self, row: _Row, do: Callable[[_Row], None]) -> bool:
        """Do something with a row, or note why that cannot be done here."""
        if row.reason:
            return False
        try:
            do(row)
        # Whatever a missing package, kernel, compiler or memory makes it raise.
        except Exception as error:
            row.reason = reason_of(error)
            row.variant = row.runner = None
            log.warning("%s: %s", row.name, row.reason)
        return not row.reason

    def _prepare(self, row: _Row) -> None:
        row.variant = variant = row.build()
        model, device = variant.model, variant.device
        config = self.config.check(model.block_latent_frames)
        if device.type == "cuda":
            # There are no statistics before it is initialized.
            torch.cuda.init()
        gauge = memory_gauge_of(device)
        before = 0 if gauge is None else gauge.read().allocated
        model.prepare(device)
        callbacks = [
            callback
            for callback in variant.callbacks
            if isinstance(callback, RolloutCallback) and not isinstance(callback, OBSERVERS)
        ]
        given_back = self._share_text_encoder(model, callbacks)
        self._device = device
        if model.parts is not None:
            self._weights_kind = model.parts.kind
        row.settings = variant.settings
        row.callbacks = tuple(f"{type(c).__module__}.{type(c).__qualname__}" for c in callbacks)
        row.runner = Runner(model, callbacks, device, config.sync_cuda, config.batch_size)
        log.info("%s: loaded, warming up", row.name)
        for job in warm_up_jobs(config):
            started_s = time.perf_counter()
            row.runner.run(job)
            row.warm_up_s = (*row.warm_up_s, time.perf_counter() - started_s)
        # What the row before has left behind may go at any time.
        if gauge is not None and self.matrix.interleaved:
            row.held_bytes = gauge.read().allocated - before + given_back

    def _share_text_encoder(self, model: LongLive, callbacks: Sequence[RolloutCallback]) -> int:
        """Take the text encoder of an earlier row, and return the bytes that this gives back."""
        assert model.parts is not None
        mine = model.parts.text_encoder
        untouched = RolloutCallback.configure_text_encoder
        if any(type(callback).configure_text_encoder is not untouched for callback in callbacks):
            return 0
        if self._text_encoder is None or self._text_encoder.config != mine.config:
            self._text_encoder = mine
            return 0
        model.parts = replace(model.parts, text_encoder=self._text_encoder)
        model.text_encoder = self._text_encoder
        return sum(weight.nbytes for weight in mine.parameters())


def rotated(rows: Sequence[_Row], repeat: int) -> list[_Row]:
    """The rows in the order of a repeat: the first one moves on by one each time."""
    start = repeat % len(rows)
    return [*rows[start:], *rows[:start]]


def _measure(row: _Row, job: Job) -> None:
    assert row.runner is not None
    gauge = memory_gauge_of(row.runner.device)
    before = None if gauge is None else gauge.read().allocated
    sample = row.runner.run(job)
    row.samples.append(sample)
    if sample.memory is not None and before is not None and row.held_bytes is not None:
        row.memory_bytes.append(float(sample.memory.peak_bytes - before + row.held_bytes))


def _result(row: _Row) -> AblationRow:
    start_up = StartUp(0.0, row.warm_up_s, None)
    repeats = [figures_of([sample], start_up) for sample in row.samples]
    samples: dict[str, tuple[float, ...]] = {}
    for name in FIGURES:
        values = tuple(f[name].value for f in repeats)
        if values and None not in values:
            samples[name] = tuple(value for value in values if value is not None)
    # A rollout's own peak holds what other rows have left behind.
    samples.pop("peak_memory_bytes", None)
    if row.memory_bytes:
        samples["peak_memory_bytes"] = tuple(row.memory_bytes)
    return AblationRow(
        name=row.name,
        overlays=row.overlays,
        settings=row.settings,
        callbacks=row.callbacks,
        reason=row.reason,
        samples=samples,
        block_periods_ms=tuple(
            tuple(block.period_ms for block in steady_blocks(sample)) for sample in row.samples
        ),
    )


def reason_of(error: BaseException) -> str:
    """What went wrong, in a line: the user's error behind it if there is one, else its first line.

    Args:
        error: As it was caught; a parser wraps what a constructor raises.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    if cause is not None:
        return " ".join(str(cause).split())
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
