"""How far a training is, and the learning rate that follows from it."""

import math
import time
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

_STEPS_A_READING = 10
"""Between two readings of the clock that all processes agree on, which they have to wait for."""


class TrainingClock:
    """How much of a training is done, the same in every process.

    Args:
        max_steps: Training steps after which it is over; None for no such end.
        max_seconds: Seconds from the first step after which it is over, for a machine that is lent
            by the minute; None for no such end.

    Attributes:
        progress: In [0, 1]; stays 0 if there is no end.
    """

    def __init__(self, max_steps: int | None = None, max_seconds: float | None = None) -> None:
        self.max_steps = max_steps
        self.max_seconds = max_seconds
        self.progress = 0.0
        self._started: float | None = None
        self._seconds = 0.0
        self._earlier_s = 0.0

    @property
    def has_end(self) -> bool:
        """Whether there is a progress to speak of."""
        return bool(self.max_steps or self.max_seconds)

    def state_dict(self) -> dict[str, float]:
        """What a resumed training goes on from."""
        return {"seconds": self._seconds, "progress": self.progress}

    def load_state_dict(self, kept: dict[str, float]) -> None:
        """Go on from where ``state_dict`` was called."""
        self._earlier_s = self._seconds = kept["seconds"]
        self.progress = kept["progress"]

    def advance(self, step: int) -> float:
        """Note that ``step`` steps are done, and return the progress.

        Step 0 is asked for while the optimizer is made, before anything is trained. Several
        processes call this at the same steps: they take the time of the first one, or their weights
        would be trained at different rates and drift apart.
        """
        if step > 0 and self.max_seconds:
            self._read(step)
        by_steps = step / self.max_steps if self.max_steps else 0.0
        by_seconds = self._seconds / self.max_seconds if self.max_seconds else 0.0
        self.progress = min(1.0, max(by_steps, by_seconds))
        return self.progress

    def _read(self, step: int) -> None:
        now = time.monotonic()
        if self._started is None:
            self._started = now
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if several and step % _STEPS_A_READING:
            return
        reading = [self._earlier_s + now - self._started]
        if several:
            dist.broadcast_object_list(reading, src=0)
        self._seconds = reading[0]


def warmup_cosine(step: int, warmup_steps: int, progress: float) -> float:
    """Return the factor on the learning rate: a linear rise, then half a cosine down to zero.

    Args:
        step: Training steps so far.
        warmup_steps: Steps of the rise.
        progress: How much of the training is done, in [0, 1].
    """
    rise = min(1.0, (step + 1) / max(1, warmup_steps))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class TimedTraining(pl.LightningModule):
    """A module that is trained by AdamW at a rate that follows how far its training is.

    The rate is that of :func:`warmup_cosine`, stepped every step. Weight decay is off: weights in
    front of a norm have no scale that it could act on. A resumed training goes on with the time of
    the one before.

    Args:
        learning_rate: At the top of the schedule.
        betas: Of AdamW.
        warmup_steps: Training steps over which the rate rises.
        max_steps: Training steps after which it has fallen to zero; None keeps it up.
        max_seconds: The same in seconds of training.
    """

    def __init__(
        self,
        learning_rate: float,
        betas: tuple[float, float],
        warmup_steps: int,
        max_steps: int | None,
        max_seconds: float | None,
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.betas = betas
        self.warmup_steps = warmup_steps
        self.clock = TrainingClock(max_steps, max_seconds)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        def factor(step: int) -> float:
            return warmup_cosine(step, self.warmup_steps, self.clock.advance(step))

        rate, betas = self.learning_rate, self.betas
        optimizer = AdamW(self.parameters(), lr=rate, betas=betas, weight_decay=0.0)
        schedule = LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["clock"] = self.clock.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "clock" in checkpoint:
            self.clock.load_state_dict(checkpoint["clock"])
