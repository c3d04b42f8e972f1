"""The three ways video tokens attend to each other; a layer is handed one and cannot tell which.

A layer computes queries, keys and values, all normed and none rotated, and calls ``attend``. Rotary
positions, the KV cache and the kernel are behind that call, so one transformer serves as causal
student, as bidirectional teacher and in teacher-forced training.
"""

# Shape suffixes: B batch, F latent frames, L tokens of the call, S tokens seen, N heads,
# D head dim.

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from longlive.attention.backends import Attention, masked_attention
from longlive.attention.kv_cache import KVCache, Slots
from longlive.attention.masks import Mask
from longlive.attention.rope import Rotation, rotate


class Attend(Protocol):
    """Self-attention of one call of the transformer."""

    def __call__(self, layer: int, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
        """Return what each query gathers, ``[B, L, N, D]``."""
        ...

    def store(self, layer: int, k_BLND: Tensor, v_BLND: Tensor) -> None:
        """Keep keys and values of a layer whose output nobody wants."""
        ...


@dataclass(frozen=True, slots=True)
class FullAttention:
    """Every token sees every token: the bidirectional teacher and critic.

    Attributes:
        rotation: Rotary positions of the call's tokens.
        attention: Kernel.
    """

    rotation: Rotation
    attention: Attention

    def __call__(self, layer: int, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
        return self.attention(rotate(q_BLND, self.rotation), rotate(k_BLND, self.rotation), v_BLND)

    def store(self, layer: int, k_BLND: Tensor, v_BLND: Tensor) -> None:
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

    def __call__(self, layer: int, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
        q_BLND, k_BLND = rotate(q_BLND, self.rotation), rotate(k_BLND, self.rotation)
        return masked_attention(q_BLND, k_BLND, v_BLND, self.mask)

    def store(self, layer: int, k_BLND: Tensor, v_BLND: Tensor) -> None:
        """Nothing is kept between calls."""


@dataclass(frozen=True, slots=True)
class WindowAttention:
    """One block of a rollout: its keys go into the cache, its queries see the window.

    With absolute positions keys are stored rotated. With window-relative ones they are stored as
    they are and rotated by their place in the window at every call, because that place changes.

    Attributes:
        cache: Where keys and values are kept.
        rotation: Rotary positions of the call's tokens.
        write_slots_F: Slot of each stored latent frame, int64, on the device.
        read: Slots the queries see.
        seen_rotation: Window-relative only: rotary positions of the slots that are read.
        dropped: Leading latent frames of the call that are not stored.
        attention: Kernel.
    """

    cache: KVCache
    rotation: Rotation
    write_slots_F: Tensor
    read: Slots
    seen_rotation: Rotation | None
    dropped: int
    attention: Attention

    def __call__(self, layer: int, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
        k_BSND, v_BSND = self._update(layer, k_BLND, v_BLND)
        if self.seen_rotation is not None:
            k_BSND = rotate(k_BSND, self.seen_rotation)
        return self.attention(rotate(q_BLND, self.rotation), k_BSND, v_BSND)

    def store(self, layer: int, k_BLND: Tensor, v_BLND: Tensor) -> None:
        """Write the call's slots of one layer, and read nothing."""
        self._update(layer, k_BLND, v_BLND)

    def _update(self, layer: int, k_BLND: Tensor, v_BLND: Tensor) -> tuple[Tensor, Tensor]:
        if self.seen_rotation is None:
            k_BLND = rotate(k_BLND, self.rotation)
        first = self.dropped * self.cache.tokens_per_slot
        return self.cache.update(
            layer, k_BLND[:, first:], v_BLND[:, first:], self.write_slots_F, self.read
        )
