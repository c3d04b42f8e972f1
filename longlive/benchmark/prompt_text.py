"""Prompts whose text encoding is at hand, and prompts whose is not."""

# Shape suffixes: B batch, M tokens of the prompt, E text width.

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

from torch import Tensor

from longlive.modules.longlive import LongLive

Embed = Callable[[str], Tensor]


@runtime_checkable
class ForgetsPrompts(Protocol):
    """A model or a callback with a prompt cache of its own."""

    def forget_prompts(self) -> None:
        """Empty the cache."""
        ...


def forget_prompts(owners: Iterable[object]) -> None:
    """Empty the prompt caches among some objects: the next prompt is a cold one."""
    for owner in owners:
        if isinstance(owner, ForgetsPrompts):
            owner.forget_prompts()


def embed_for(model: LongLive, batch: int) -> Embed | None:
    """How a rollout encodes a prompt: as the model does; side by side in a batch.

    Returns:
        ``prompt -> [B, M, E]``, or None to leave it to the model.
    """
    if batch == 1:
        return None
    return lambda prompt: model.encode([prompt]).expand(batch, -1, -1)


class RememberedText:
    """Keeps the text encoder's output for every prompt, as a prompt cache would.

    What the transformer computes of it, text keys and values, is computed each time.

    Args:
        model: Encodes what is not known yet.
        batch: Videos side by side.
    """

    def __init__(self, model: LongLive, batch: int) -> None:
        self._embed: Embed = embed_for(model, batch) or (lambda prompt: model.encode([prompt]))
        self._known: dict[str, Tensor] = {}

    def __call__(self, prompt: str) -> Tensor:
        """The encoding ``[B, M, E]`` of a prompt."""
        if prompt not in self._known:
            self._known[prompt] = self._embed(prompt)
        return self._known[prompt]
