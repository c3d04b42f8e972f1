"""How weights are updated: gradients of several micro-batches, rates over time, a stop at NaN."""

import math
import time
from collections.abc import Callable, Sequence
from typing import cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from longlive.distillation.parts import PartClock
from longlive.errors import UserError
from longlive.modules.distillation_examples import Example
from longlive.modules.distillation_options import UpdateOptions

LossOf = Callable[[Example, tuple[int, int]], Tensor]
PRECISIONS = ("bf16-mixed", "32-true")


class TrainingTime:
    """How long a run has trained, over all its resumptions, and how much of it is done.

    Args:
        max_steps: Training steps of the run; None for those of the trainer.
        max_seconds: Seconds of the run; None for no such end.
    """

    def __init__(self, max_steps: int | None, max_seconds: float | None) -> None:
        self.max_steps = max_steps
        self.max_seconds = max_seconds
        self.seconds_before = 0.0
        self._started_s: float | None = None

    def start(self) -> bool:
        """Start, once; returns whether this was the first call."""
        if self._started_s is not None:
            return False
        self._started_s = time.monotonic()
        return True

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        now = 0.0 if self._started_s is None else time.monotonic() - self._started_s
        return self.seconds_before + now

    def progress(self, trainer: pl.Trainer) -> float:
        """How much of the training is done, in [0, 1], the same on all processes."""
        last = self.max_steps or max(0, trainer.max_steps)
        by_steps = trainer.global_step / last if last else 0.0
        by_seconds = 0.0
        if self.max_seconds:
            by_seconds = float(trainer.strategy.broadcast(self.seconds)) / self.max_seconds
        return min(1.0, max(by_steps, by_seconds))


def check_trainer(trainer: pl.Trainer, *, is_sharded: bool) -> None:
    """Check that a trainer can run distillation.

    Args:
        trainer: As configured.
        is_sharded: Whether its strategy spreads the networks over the devices.

    Raises:
        UserError: Naming the setting to change.
    """
    precision = str(trainer.precision)
    if precision not in PRECISIONS:
        raise UserError(
            f"distillation keeps its weights in float32: set trainer.precision to one of "
            f"{', '.join(PRECISIONS)}, not {precision}"
        )
    if trainer.world_size > 1 and not is_sharded:
        raise UserError(
            f"distillation does not run on {type(trainer.strategy).__name__}: set trainer.strategy "
            "to lightning.pytorch.strategies.ModelParallelStrategy"
        )


def set_rates(
    optimizers: Sequence[LightningOptimizer], options: UpdateOptions, step: int, progress: float
) -> None:
    """Set the learning rates of student and critic."""
    factor = options.rate_factor(step, progress)
    rates = (options.student_rate, options.critic_rate)
    for optimizer, rate in zip(optimizers, rates, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def update(
    module: pl.LightningModule,
    name: str,
    optimizer: LightningOptimizer,
    loss_of: LossOf,
    examples: Sequence[Example],
    clock: PartClock,
    *,
    gradient_clip: float,
    is_counted: bool,
) -> dict[str, float]:
    """Take one step of an optimizer.

    Args:
        module: Whose strategy runs the backward pass.
        name: What is updated, for messages and numbers.
        optimizer: Its optimizer.
        loss_of: Loss of a micro-batch.
        examples: Micro-batches, whose mean counts.
        clock: Measures the parts.
        gradient_clip: Largest norm of the gradient.
        is_counted: Whether the trainer counts this step; it shall count one per training step.

    Returns:
        Loss and norm, to be logged.

    Raises:
        UserError: If the loss or the gradient is not finite; the weights are as they were.
    """
    optimizer.zero_grad()
    step, parts = module.trainer.global_step, len(examples)
    total = torch.zeros((), device=module.device)
    for index, example in enumerate(examples):
        loss = loss_of(example, (step, module.global_rank * parts + index))
        with clock.part(f"{name}_backward"):
            module.manual_backward(loss / parts)
        total += loss.detach().float() / parts
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(weights, gradient_clip)
    # Of sharded weights it is a sharded number.
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    total = cast(Tensor, module.trainer.strategy.reduce(total, reduce_op="mean"))
    loss_value, norm_value = torch.stack([total, norm.to(total)]).tolist()
    _refuse_nan(module.trainer, {f"{name} loss": loss_value, f"{name} gradient": norm_value})
    with clock.part(f"{name}_step"):
        cast(torch.optim.Optimizer, optimizer if is_counted else optimizer.optimizer).step()
    return {f"train/{name}_loss": loss_value, f"train/{name}_gradient_norm": norm_value}


def trained(*modules: nn.Module | None) -> list[nn.Parameter]:
    """The weights of some modules that are not frozen."""
    found = (module for module in modules if module is not None)
    return [weight for module in found for weight in module.parameters() if weight.requires_grad]


def _refuse_nan(trainer: pl.Trainer, numbers: dict[str, float]) -> None:
    """Stop on all processes at once, before the weights are spoiled."""
    bad = [what for what, value in numbers.items() if not math.isfinite(value)]
    if trainer.strategy.reduce_boolean_decision(bool(bad), all=False):
        what = bad[0] if bad else next(iter(numbers))
        raise UserError(
            f"the {what} is not finite at training step {trainer.global_step}: the weights were "
            "not updated and the last checkpoint is good; lower the learning rate or look at the "
            "data"
        )
