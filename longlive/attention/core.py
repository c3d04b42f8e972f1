"""The three ways video tokens attend to each other; a layer is handed one and cannot tell which.

A layer computes queries, keys and values, all normed and none rotated, and calls ``attend``. Rotary
positions, the KV cache and the kernel are behind that call, so one transformer serves as causal
student, as bidirectional teacher and in teacher-forced training. A layer is not told its number
either: what it is handed is its own already, so that one compiled layer serves as all of them.
"""

# Shape suffixes: B batch, F latent frames, L tokens of the call, S tokens seen, N heads,
# D head dim.

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from longlive.attention.backends import Attention, masked_attention
from longlive.attention.kv_cache import KVCache, LayerCache, Slots
from longlive.attention.masks import Mask
from longlive.attention.rope import Rotation, rotate


class LayerAttend(Protocol):
    """Self-attention of one layer in one call of the transformer."""

    def __call__(self, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
        """Return what each query gathers, ``[B, L, N, D]``."""
        ...

    def store(self, k_BLND: Tensor, v_BLND: Tensor) -> None:
        """Keep keys and values of a layer whose output nobody wants."""
        ...


class Attend(Protocol):
    """Self-attention of one call of the transformer, layer by layer."""

    def __getitem__(self, layer: int, /) -> LayerAttend: ...


@dataclass(frozen=True, slots=True)
class FullAttention:
    """Every token sees every token: the bidirectional teacher and critic.

    Attributes:
        rotation: Rotary positions of the call's tokens.
        attention: Kernel.
    """

    rotation: Rotation
    attention: Attention

    def __getitem__(self, layer: int) -> "FullAttention":
        return self

    def __call__(self, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
        return self.attention(rotate(q_BLND, self.rotation), rotate(k_BLND, self.rotation), v_BLND)

    def store(self, k_BLND: Tensor, v_BLND: Tensor) -> None:
        """Nothing is kept between calls."""


@dataclass(frozen=True, slots=True)
class MaskedAttention:
    """All blocks of a clip in one pass, each seeing what it would see in a rollout.

    Attributes:
        rotation: Rotary positions of the sequence's tokens.
        mask: Who sees whom, see :func:`longlive.attention.masks.mask_for`.
    """

    rotation: Rotation
    mask: Mask

    def __getitem__(self, layer: int) -> "MaskedAttention":
        return self

    def __call__(self, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
        q_BLND, k_BLND = rotate(q_BLND, self.rotation), rotate(k_BLND, self.rotation)
        return masked_attention(q_BLND, k_BLND, v_BLND, self.mask)

    def store(self, k_BLND: Tensor, v_BLND: Tensor) -> None:
        """Nothing is kept between calls."""


@dataclass(frozen=True, slots=True)
class WindowAttention:
    """One block of a rollout: its keys go into the cache, rotated; its queries see the window.

    Attributes:
        cache: Where keys and values are kept.
        rotation: Rotary positions of the call's tokens.
        write_slots_F: Slot of each stored latent frame, int64, on the device.
        read: Slots the queries see.
        dropped: Leading latent frames of the call that are not stored.
        attention: Kernel.
    """

    cache: KVCache
    rotation: Rotation
    write_slots_F: Tensor
    read: Slots
    dropped: int
    attention: Attention

    def __getitem__(self, layer: int) -> "LayerWindow":
        return LayerWindow(self, self.cache[layer])


@dataclass(frozen=True, slots=True)
class LayerWindow:
    """:class:`WindowAttention` of one layer.

    Attributes:
        call: What all layers share.
        cache: The layer's keys and values.
    """

    call: WindowAttention
    cache: LayerCache

    def __call__(self, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
        seen = self._update(k_BLND, v_BLND)
        return self.gather(rotate(q_BLND, self.call.rotation), seen)

    def attend_with(self, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor, heads: slice) -> Tensor:
        """Store keys and values of all heads of the cache, and attend with some of them.

        Args:
            q_BLND: Queries of those heads.
            k_BLND: New keys of all.
            v_BLND: New values of all.
            heads: Which they are.
        """
        seen = self.cache.of_heads(self._update(k_BLND, v_BLND), heads)
        return self.gather(rotate(q_BLND, self.call.rotation), seen)

    def gather(self, q_BLND: Tensor, seen: tuple[Any, ...]) -> Tensor:
        """Return what queries gather from what the cache has returned.

        Args:
            q_BLND: Queries, rotated.
            seen: What the cache's kernel takes; keys first.
        """
        return self.cache.kernel(self.call.attention)(q_BLND, *seen)

    def store(self, k_BLND: Tensor, v_BLND: Tensor) -> None:
        """Write the call's slots, and read nothing."""
        self._update(k_BLND, v_BLND)

    def _update(self, k_BLND: Tensor, v_BLND: Tensor) -> tuple[Any, ...]:
        k_BLND = rotate(k_BLND, self.call.rotation)
        first = self.call.dropped * self.cache.tokens_per_slot
        return self.cache.update(
            k_BLND[:, first:], v_BLND[:, first:], self.call.write_slots_F, self.call.read
        )
