"""One line that says how far a training run is, and how long it will take."""

import time
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SHOWN = ("train/student_loss", "train/critic_loss", "train/flow_loss")


class TrainingProgress(pl.Callback):
    """Shows training steps, losses and the time left, on a terminal and on the first process only.

    Where a run ends by time, the time left is that; else it follows from the steps so far.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._started = (0.0, 0.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        if not trainer.is_global_zero:
            return
        console = Console(stderr=True)
        self._started = (time.monotonic(), self._share(trainer))
        if not console.is_terminal:
            return
        columns = ("{task.fields[steps]}", "{task.fields[losses]}", "{task.fields[left]}")
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            *(TextColumn(column) for column in columns),
            console=console,
        )
        self._task = self._progress.add_task("training", total=1.0, steps="", losses="", left="")
        self._progress.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._progress is None or self._task is None:
            return
        metrics = trainer.callback_metrics
        losses = [
            f"{key.rpartition('/')[2]} {float(metrics[key]):.4f}"
            for key in _SHOWN
            if key in metrics
        ]
        self._progress.update(
            self._task,
            completed=self._share(trainer),
            steps=f"step {trainer.global_step}",
            losses="  ".join(losses),
            left=self.left(trainer),
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def left(self, trainer: pl.Trainer) -> str:
        """How long the run will still take, in words; empty where nothing tells."""
        started, share_then = self._started
        share = self._share(trainer)
        if share <= share_then:
            return ""
        seconds = (time.monotonic() - started) * (1 - share) / (share - share_then)
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours}:{minutes:02d} h left" if hours else f"{round(seconds)} s left"

    def _share(self, trainer: pl.Trainer) -> float:
        """How much of the run is done: what the module says, else by its steps."""
        said = trainer.callback_metrics.get("train/progress")
        if said is not None:
            return float(said)
        return trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
