"""The folder of results while a run fills it: records, videos, reference rollouts."""

import logging
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from longlive.evaluation.measuring import MeasureOptions, Seen, measure
from longlive.evaluation.records import Record, RecordStore
from longlive.evaluation.side_by_side import Made
from longlive.video.atomic import write_bytes
from longlive.video.mp4 import Mp4Writer

log = logging.getLogger(__name__)

REFERENCE = "reference"
VIDEOS = "videos"


class Measuring:
    """Measures videos and writes their records, here or in processes of their own.

    Args:
        store: Where records go.
        options: What to measure.
        workers: Processes; 0 measures at once, in this one.
    """

    def __init__(self, store: RecordStore, options: MeasureOptions, workers: int) -> None:
        self._store = store
        self._options = options
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._running: set[Future[None]] = set()

    def submit(self, record: Record, seen: Seen) -> None:
        """Measure a video and complete its record.

        Raises:
            UserError: If an earlier record could not be written.
        """
        if self._workers == 0:
            measure_into(self._store, record, seen, self._options)
            return
        if self._pool is None:
            # Not forked: the parent holds a GPU and threads.
            self._pool = ProcessPoolExecutor(self._workers, mp_context=get_context("spawn"))
        # Frames wait in memory, so the rollouts do not run ahead of the judges for long.
        while len(self._running) >= 3 * self._workers:
            self._settle()
        job = self._pool.submit(_in_worker, self._store, record, seen, self._options)
        self._running.add(job)

    def finish(self) -> None:
        """Wait for all records.

        Raises:
            UserError: If one could not be written.
        """
        try:
            while self._running:
                self._settle()
        finally:
            self.close()

    def close(self) -> None:
        """Stop the processes; what they had not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._running = set()

    def _settle(self) -> None:
        done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
        for job in done:
            job.result()


def measure_into(store: RecordStore, record: Record, seen: Seen, options: MeasureOptions) -> Record:
    """Measure a video and write its record; return the record."""
    found = measure(seen, options)
    done = replace(record, values=found.values, series=found.series, skipped=found.skipped)
    store.write(done)
    return done


def _in_worker(store: RecordStore, record: Record, seen: Seen, options: MeasureOptions) -> None:
    # The processes share the cores.
    torch.set_num_threads(1)
    measure_into(store, record, seen, options)


class ReferenceStore:
    """Frames and latents of the reference's rollouts, which the other variants are compared with.

    Args:
        folder: Of the results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / REFERENCE

    def has(self, key: str, fingerprint: str) -> bool:
        """Whether a rollout is there."""
        return self._path(key, fingerprint).is_file()

    def write(self, key: str, fingerprint: str, made: Made) -> None:
        """Keep a rollout.

        Raises:
            UserError: If it cannot be written.
        """
        from safetensors.torch import save

        tensors = {"frames": made.frames_TCHW, "latents": made.latents_FCHW}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_bytes(self._path(key, fingerprint), save(contiguous))

    def read(self, key: str, fingerprint: str) -> tuple[Tensor, Tensor]:
        """Frames ``[T, 3, H, W]``, ``uint8``, and latents ``[F, C, H, W]``."""
        from safetensors.torch import load_file

        tensors = load_file(self._path(key, fingerprint))
        return tensors["frames"], tensors["latents"]

    def _path(self, key: str, fingerprint: str) -> Path:
        # Of another weight file or setting, another rollout.
        return self.folder / f"{key}-{fingerprint[:12]}.safetensors"


def save_video(path: Path, frames_TCHW: Tensor, title: str) -> None:
    """Write a video whole, or leave what was there.

    Raises:
        UserError: If it cannot be written.
    """
    with Mp4Writer(path, title=title) as writer:
        writer.append(frames_TCHW)
