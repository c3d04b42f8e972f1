"""Writes rollouts to files: an MP4 with chapters and a JSON file beside it, whatever ends them."""

# Shape suffixes: B batch, F latent frames, T frames, C channels, H W rows and columns.

import errno
import logging
import os
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import lightning.pytorch as pl
from torch import Tensor

from longlive.callbacks.rollout_files import NobodyListens, OutputListener, RolloutFiles
from longlive.errors import UserError
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.job import RolloutJob, job_of
from longlive.rollout.state import RolloutState
from longlive.video.atomic import cannot_write
from longlive.video.naming import output_name

log = logging.getLogger(__name__)

_VIDEO_SUFFIXES = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}


class FrameWriter(RolloutCallback):
    """Writes each video while it is made, and beside it how it was made.

    A rollout that is stopped, interrupted or fails leaves a playable video of what it had made. The
    host waits for the device or the encoder only where it is more than two blocks ahead of them.

    A file that an earlier run left under the same name is replaced once the new one is whole;
    within one run every video gets a name of its own.

    Args:
        output: A folder, for files named after the video's index, prompt and seed; or a name that
            ends in ``.mp4``, which the video of index 0 gets, and others with their index appended.
        png: Also write each frame as a PNG file, into a folder beside the MP4.
        latents: Also write the clean latents, into a ``.safetensors`` file beside the MP4.
        crf: Quality of x264, lower is better; 18 is hard to tell from the original by eye.

    Attributes:
        written: The MP4 files of the rollouts that have ended, in that order.
        listener: Is told how the frames of later rollouts get to the files.

    Raises:
        UserError: If ``output`` or ``crf`` cannot work. Whether files can be written there is found
            out when a rollout starts, before its first block is computed.
    """

    def __init__(
        self,
        output: str | Path = "outputs",
        png: bool = False,
        latents: bool = False,
        crf: int = 18,
    ) -> None:
        self.output = Path(output).expanduser()
        suffix = self.output.suffix
        if suffix != ".mp4" and suffix.lower() in _VIDEO_SUFFIXES:
            raise UserError(f"videos are written as .mp4, not {suffix}: rename {output}")
        if not 0 <= crf <= 51:
            raise UserError(f"crf goes from 0 (lossless) to 51 (worst), got {crf}")
        self.is_named = suffix == ".mp4"
        self.png = png
        self.latents = latents
        self.crf = crf
        self.written: list[Path] = []
        self.listener: OutputListener = NobodyListens()
        self._names: set[Path] = set()
        # A rollout that nobody goes on with ends only when its generator is collected.
        self._open: dict[int, RolloutFiles] = {}

    def on_rollout_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        if not state.spec.is_shown:
            return
        if self.is_named and self.output.is_dir():
            raise UserError(f"cannot write {self.output}: it is a folder; choose another name")
        _make_writable(self.output.parent if self.is_named else self.output)
        job = job_of(pl_module)
        self._open[id(state)] = RolloutFiles(state.spec, state.device, job, self.listener)

    def on_prompt_switch(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        files = self._open.get(id(state))
        if files is None:
            return
        files.switch_prompt(state.block_start, state.prompt)
        if not files.recordings:
            paths = self._paths(files.job, state.prompt, state.spec.batch)
            files.open(paths, crf=self.crf, png=self.png, latents=self.latents)

    def on_latents_ready(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        x0_BFCHW: Tensor,
    ) -> None:
        if self.latents and state.spec.is_shown:
            self._open[id(state)].send_latents(x0_BFCHW)

    def on_frames_ready(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        frames_BTCHW: Tensor,
    ) -> None:
        self._open[id(state)].send_frames(frames_BTCHW)

    def on_rollout_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        files = self._open.pop(id(state), None)
        if files is not None:
            self._end(files, _failure())

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        # An exception outside the loop does not end it: the traceback keeps its generator alive.
        while self._open:
            self._end(self._open.popitem()[1], exception)

    def _end(self, files: RolloutFiles, failure: BaseException | None) -> None:
        errors = files.end(failure)
        for path in files.kept:
            self.written.append(path)
            log.info("%s: %s", path, files.summary)
        if failure is None and errors:
            raise errors[0]
        for error in errors:
            if error is not failure:
                log.warning("%s", error)

    def _paths(self, job: RolloutJob, prompt: str, batch: int) -> list[Path]:
        """Choose an MP4 for each video of a batch."""
        for stem in self._stems(job, prompt):
            suffixes = [f"-b{i}" for i in range(batch)] if batch > 1 else [""]
            paths = [stem.with_name(f"{stem.name}{suffix}.mp4") for suffix in suffixes]
            if self._names.isdisjoint(paths):
                self._names.update(paths)
                return paths
        raise AssertionError("there is always another number")

    def _stems(self, job: RolloutJob, prompt: str) -> Iterator[Path]:
        """Names to choose from, the best first."""
        if self.is_named:
            stem = self.output.with_suffix("")
            return (
                stem.with_name(f"{stem.name}-{i:04d}" if i else stem.name) for i in count(job.index)
            )
        name = output_name(job.index, prompt, job.seed)
        return (self.output / (name if i == 1 else f"{name}-{i}") for i in count(1))


def _failure() -> BaseException | None:
    """What the rollout is being left for, if not its regular end: hooks run on the way out.

    Closing it is no failure, but may have been done because of one, outside the loop.
    """
    error = sys.exception()
    while isinstance(error, GeneratorExit):
        error = error.__context__
    return error


def _make_writable(folder: Path) -> None:
    """Make a folder, and check that files can be made in it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder, or a file that ends in .mp4")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise cannot_write(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
