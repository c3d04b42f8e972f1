"""The prompts of a video that several processes make: the first one's, at the same block in all."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import lightning.pytorch as pl
import torch.distributed as dist

from longlive.errors import UserError
from longlive.rollout.prompts import Prompts
from longlive.rollout.transitions import Transition

# The others wait while the first one compiles, or waits for a viewer who has paused.
_PATIENCE = timedelta(days=1)


class SharedPrompts:
    """Follows the prompts of the first process of a group, block by block.

    Args:
        prompts: Those of this process; only the first one's count.
        group: Passes objects between hosts, without waiting for a device.
    """

    def __init__(self, prompts: Prompts, group: dist.ProcessGroup) -> None:
        self._prompts = prompts
        self._group = group
        self._told: list[Any] = [prompts.prompt, prompts.transition]

    @property
    def prompt(self) -> str:
        """The active prompt."""
        return str(self._told[0])

    @property
    def transition(self) -> Transition:
        """How the active prompt began."""
        return cast(Transition, self._told[1])

    def advance(self, block_start_latent_frame: int) -> str | None:
        """Move to a block, in all processes; return the prompt that becomes active, if any."""
        return self._share(lambda: self._prompts.advance(block_start_latent_frame))

    def expects(self, block_start_latent_frame: int) -> Transition | None:
        """How a prompt will begin with that block, in all processes, if one is known."""
        message: list[Any] = [None]
        if self._group.rank() == 0:
            message = [self._prompts.expects(block_start_latent_frame)]
        dist.broadcast_object_list(message, group=self._group, group_src=0)
        return cast(Transition | None, message[0])

    def preempt(self) -> str | None:
        """Let a prompt begin with the block at hand, in all processes; return it, if any."""
        return self._share(self._prompts.preempt)

    def request(self, prompt: str) -> None:
        """Ask for a prompt from the next block on, in the first process.

        Raises:
            UserError: In another process, or if the prompt is blank.
        """
        if self._group.rank() != 0:
            raise UserError("this process follows another one: ask for prompts in the first")
        self._prompts.request(prompt)

    def _share(self, ask: Callable[[], str | None]) -> str | None:
        """Ask in the first process, and follow its answer in all."""
        message: list[Any] = [None]
        if self._group.rank() == 0:
            prompt = ask()
            message = [(prompt, self._prompts.prompt, self._prompts.transition)]
        dist.broadcast_object_list(message, group=self._group, group_src=0)
        changed: str | None
        changed, *self._told = message[0]
        return changed


def control_group(trainer: pl.Trainer | None) -> dist.ProcessGroup:
    """Make a group of the processes of one video whose messages pass by the devices.

    All processes of the run call it, since all take part in making each group.
    """
    ranks = [list(range(dist.get_world_size()))]
    if trainer is not None:
        assert isinstance(trainer.strategy, pl.strategies.ModelParallelStrategy)
        ranks = trainer.strategy.device_mesh.mesh.tolist()
    made = [dist.new_group(one, backend="gloo", timeout=_PATIENCE) for one in ranks]
    return next(g for g, one in zip(made, ranks, strict=True) if dist.get_rank() in one)
