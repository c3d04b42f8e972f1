"""How a video gets from one prompt to the next."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from longlive.errors import UserError

TransitionKind = Literal["switch", "blend", "cut"]
"""``switch``: the window is rebuilt under the new prompt (KV recache). ``blend``: the text
embedding moves over several blocks, and what the window holds is left as it is. ``cut``: the window
is emptied, and a new shot begins."""

MAX_BLEND_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Transition:
    """One way from a prompt to the next.

    Attributes:
        kind: Which way.
        blocks: Blocks that a blend takes; the last of them shows the new prompt alone. 1 for the
            other kinds.

    Raises:
        UserError: If the kind is unknown or the number of blocks does not fit it.
    """

    kind: TransitionKind = "switch"
    blocks: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(TransitionKind):
            kinds = ", ".join(get_args(TransitionKind))
            raise UserError(f"there is no transition {self.kind!r}; choose one of {kinds}")
        longest = MAX_BLEND_BLOCKS if self.kind == "blend" else 1
        if not 1 <= self.blocks <= longest:
            raise UserError(
                f"a {self.kind} over {self.blocks} blocks is not possible; use 1 to {longest}"
            )


SWITCH = Transition()
"""What happens unless something else is asked for."""

Mixture = tuple[tuple[str, float], ...]
"""Prompts and the weights of their text embeddings, which sum to one."""


def only(prompt: str) -> Mixture:
    """A prompt unmixed."""
    return ((prompt, 1.0),)


@dataclass(frozen=True, slots=True)
class Blend:
    """A blend under way.

    Attributes:
        start: What was seen when it began; itself a mixture if a blend was interrupted.
        goal: The prompt it ends with.
        blocks: Blocks it takes.
        done: Blocks that have begun.
    """

    start: Mixture
    goal: str
    blocks: int
    done: int = 0

    def advance(self) -> "Blend":
        """The blend as the next block sees it."""
        return replace(self, done=self.done + 1)

    @property
    def is_over(self) -> bool:
        """Whether the goal alone is seen."""
        return self.done >= self.blocks

    @property
    def mixture(self) -> Mixture:
        """What the block at hand sees: straight from the start to the goal, in equal steps."""
        if self.is_over:
            return only(self.goal)
        share = self.done / self.blocks
        weights = {prompt: (1 - share) * weight for prompt, weight in self.start}
        weights[self.goal] = weights.get(self.goal, 0.0) + share
        return tuple(weights.items())
