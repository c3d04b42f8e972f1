"""Checkpoints of training that are whole or not there, one more where the run is told to stop."""

import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from longlive.errors import UserError
from longlive.video.atomic import cannot_write, make_parent, part_path

log = logging.getLogger(__name__)

LAST = "last.ckpt"


class SafeCheckpoint(Checkpoint):
    """Saves everything that a resumed run needs, every so often and at the end.

    A checkpoint is written beside its place and then renamed, so that a full disk or a lost machine
    leaves the one before it. ``last.ckpt`` is a link to the newest. After SIGTERM the training step
    at hand is finished and saved.

    Args:
        folder: Where checkpoints go.
        every: Training steps between two of them.
        keep: How many of the newest stay.

    Raises:
        UserError: If one cannot be written; the others are as they were.
    """

    def __init__(self, folder: Path, every: int = 500, keep: int = 2) -> None:
        if every < 1 or keep < 1:
            raise UserError(f"every and keep must be at least 1, got {every} and {keep}")
        self.folder = Path(folder)
        self.every = every
        self.keep = keep
        self._saved_step = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # A sharded strategy writes by itself.
        if not isinstance(trainer.strategy, pl.strategies.ModelParallelStrategy):
            trainer.strategy.checkpoint_io = DirectCheckpointIO()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        stops = trainer.strategy.reduce_boolean_decision(trainer.received_sigterm, all=False)
        if stops or trainer.global_step % self.every == 0:
            self.save(trainer)
        if stops:
            self._say_where()
            trainer.should_stop = True

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        # The signal came while or after this step's checkpoint was written, and Lightning saw it
        # first. On several processes they may not be at the same step.
        if isinstance(exception, SIGTERMException) and trainer.world_size == 1:
            self.save(trainer)
            self._say_where()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Save a checkpoint of this training step, once.

        Raises:
            UserError: If it cannot be written.
        """
        step = trainer.global_step
        if step == self._saved_step:
            return
        path = self.folder / f"step-{step:07d}.ckpt"
        make_parent(path)
        part = part_path(path)
        try:
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                _remove(path)
                part.replace(path)
                self._point_at(path)
        except OSError as error:
            _remove(part)
            kept = self._others()
            note = f"{kept[-1]} is kept" if kept else ""
            raise cannot_write(path, error, note) from error
        trainer.strategy.barrier("checkpoint")
        self._saved_step = step
        if trainer.is_global_zero:
            for old in self._others()[: -self.keep]:
                _remove(old)

    def _say_where(self) -> None:
        log.info("told to stop: saved %s; go on with --ckpt_path", self.folder / LAST)

    def _others(self) -> list[Path]:
        """All checkpoints, the newest last; an earlier run may have left one of a later step."""
        return sorted(self.folder.glob("step-*.ckpt"), key=lambda path: path.stat().st_mtime_ns)

    def _point_at(self, path: Path) -> None:
        link = part_path(self.folder / LAST)
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        os.replace(link, self.folder / LAST)


class DirectCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint straight into its file.

    Lightning's own writes it into memory first, then into the folder for temporary files, and
    copies it from there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        try:
            with Path(path).open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:
            # What torch makes of an error of the file system while it closes its archive.
            cause = error.__context__
            raise (cause if isinstance(cause, OSError) else OSError(str(error))) from error


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
