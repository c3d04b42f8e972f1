"""A block that gives way: begun again, from the border before it, for a prompt that cannot wait."""

from dataclasses import dataclass

from torch import Tensor

from longlive.rollout.state import RolloutState
from longlive.rollout.transitions import Blend, Mixture


class Preempted(Exception):
    """Ends the denoising of the block at hand between two steps.

    Attributes:
        prompt: The prompt that the block is begun again for.
    """

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt)
        self.prompt = prompt


@dataclass(frozen=True, slots=True)
class BlockBorder:
    """What a block that no prompt begins with has changed when it is given up.

    That is the bookkeeping of the window, a blend that went on, and the slots of the latent frames
    that it has evicted. Those slots are read once more only by a recache of a part: one of the
    whole window writes them before it reads them, and without one the block evicts them again.

    Attributes:
        window: Where the slot window stood.
        mixture: What the cross-attention saw.
        blend: The blend under way, if any.
        slots_F: Slots that the block writes, if they must be kept.
        keys_values: What they held.
    """

    window: tuple[int, int, int, int]
    mixture: Mixture
    blend: Blend | None
    slots_F: Tensor | None = None
    keys_values: tuple[Tensor, ...] | None = None

    @classmethod
    def of(cls, state: RolloutState) -> "BlockBorder":
        """Note where a rollout stands before its next block."""
        slots_F = None
        if state.spec.preempts and state.spec.recached_latent_frames is not None:
            plan = state.plan_block()
            slots_F = state.slots_on_device(plan.write_slots)
        kept = None if slots_F is None else state.cache.rows(slots_F)
        return cls(state.window.mark, state.mixture, state.blend, slots_F, kept)

    def restore(self, state: RolloutState) -> None:
        """Go back to the border; the prompt that is active now is about to be replaced."""
        state.window.go_to(self.window)
        state.mixture, state.blend = self.mixture, self.blend
        if self.slots_F is not None and self.keys_values is not None:
            state.cache.put_rows(self.slots_F, self.keys_values)
