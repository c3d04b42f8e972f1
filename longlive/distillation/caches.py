"""The KV cache in training: what a layer may store, and which gradients go through it.

A block of a rollout is denoised in several calls, of which one keeps its graph, and its keys are
stored once more by the context update. Three things differ from inference.

*Replay.* With activation checkpointing a layer runs again in the backward pass, when the slots that
it wrote hold newer keys. It must then read its own keys from the graph, and store nothing. All
other slots it reads must still hold what they held; a cache with room for the window and a whole
chunk guarantees that.

*Cut.* Stored keys carry no history: gradients end at the call that computed them.

*Leak.* In the reference they do carry one. The gradient step writes its keys into the cache with
their history; the context update then overwrites their values without touching the history. A later
block therefore reads clean keys and sends its gradient into the projections of the gradient step.
Here the history is a second tensor beside the values, whose own values never count.
"""

# Shape suffixes: B batch, F latent frames, P tokens per latent frame, L tokens of the call,
# S tokens read, N heads, D head dim.

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from longlive.attention.kv_cache import KVCache, LayerCache, Slots
from longlive.attention.rope import rotate, turn


@dataclass(slots=True)
class _Shared:
    """What the layers of a training cache have in common."""

    leaks: bool
    is_replaying: bool = False


@dataclass(frozen=True, slots=True)
class TrainingLayerCache(LayerCache):
    """One layer's part of a :class:`TrainingCache`."""

    shared: _Shared
    histories: dict[str, Tensor] = field(default_factory=dict)

    def update(
        self, k_BLND: Tensor, v_BLND: Tensor, write_slots_F: Tensor, read: Slots
    ) -> tuple[Any, ...]:
        """Store keys and values, and return all that the queries of this call see."""
        if not torch.is_grad_enabled():
            # Not the other way round: super() does not work in a class with slots.
            return LayerCache.update(self, k_BLND, v_BLND, write_slots_F, read)
        return (
            self._see("k", self.k, k_BLND, write_slots_F, read),
            self._see("v", self.v, v_BLND, write_slots_F, read),
        )

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Store nothing while the context is open: a layer runs again for its backward pass."""
        self.shared.is_replaying = True
        try:
            yield
        finally:
            self.shared.is_replaying = False

    # Compiled, the backward pass would compute what was seen again from the buffer, which later
    # blocks have overwritten by then; no error tells.
    @torch.compiler.disable
    def _see(
        self, name: str, buffer: Tensor, new_BLND: Tensor, slots_F: Tensor, read: Slots
    ) -> Tensor:
        new_BFPND = new_BLND.unflatten(1, (-1, self.tokens_per_slot))
        if self.shared.leaks:
            # The same operations in a replay, which is compared with the first run.
            history = self.histories.get(name, torch.zeros_like(buffer))
            seen = _WithHistory.apply(buffer, history).index_copy(1, slots_F, new_BFPND)
            history = history.index_copy(1, slots_F, new_BFPND)
        else:
            seen = buffer.index_copy(1, slots_F, new_BFPND)
        if not self.shared.is_replaying:
            buffer.index_copy_(1, slots_F, new_BFPND.detach())
            if self.shared.leaks:
                self.histories[name] = history
        seen = seen.narrow(1, 0, read) if isinstance(read, int) else seen.index_select(1, read)
        return seen.flatten(1, 2)


class TrainingCache(KVCache):
    """A KV cache for rollouts with gradients, around the buffers of a plain one.

    Args:
        cache: Whose buffers to use.
        leaks: Whether stored keys carry the history of the gradient step.
    """

    def __init__(self, cache: KVCache, *, leaks: bool) -> None:
        self.tokens_per_slot = cache.tokens_per_slot
        self.sink = cache.sink
        self.k, self.v = cache.k, cache.v
        self._shared = _Shared(leaks)
        self._training_layers = [
            TrainingLayerCache(k, v, self._shared) for k, v in zip(self.k, self.v, strict=True)
        ]

    def __getitem__(self, layer: int) -> TrainingLayerCache:
        return self._training_layers[layer]

    def clear(self) -> None:
        """Zero the buffers; histories stay, and so does where the sink's have been turned to."""
        position = self.sink.position
        super().clear()
        self.note_sink(position)

    def turn_sink(self, slots: int, position: int) -> None:
        """Turn the keys of the leading ``slots``, and what flows into their histories."""
        before = self.sink.position
        super().turn_sink(slots, position)
        by = turn(position - before, self.k.shape[-1], self.k.dtype, self.k.device)
        for layer in self._training_layers:
            if position != before and (history := layer.histories.get("k")) is not None:
                with torch.enable_grad():
                    parts = rotate(history[:, :slots], by), history[:, slots:]
                    layer.histories["k"] = torch.cat(parts, 1)

    def forget_histories(self) -> None:
        """Cut the graph: what is stored from now on has no history."""
        for layer in self._training_layers:
            layer.histories.clear()


class _WithHistory(torch.autograd.Function):
    """The values of one tensor with the history of another."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, history: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]
