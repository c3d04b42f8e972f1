"""Keys and values of the video: slots that are allocated once, written in place and never moved.

One slot holds one latent frame of one layer. A pass over a full window reads the buffers as they
lie, without a copy; so does a pass over a window that is still filling, because the filled slots
are a prefix. Nothing here looks at a value on the device, so nothing waits for it.

Keys are stored rotated. With window-relative positions the sink follows the window: its keys are
turned in time once a block, while those of all other frames stay as they are.

With gradients enabled the new keys must stay in the graph while the buffer keeps plain values:
then the queries read an out-of-place copy, and what is stored is detached. Gradients therefore end
at the call that computed them.
"""

# Shape suffixes: B batch, F latent frames, P tokens per latent frame, L tokens of the call (F * P),
# S tokens read (slots * P), N heads, D head dim.

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from longlive.attention.rope import rotate, turn

KVLayout = Literal["token-major", "head-major"]
"""What lies together in memory: all heads of a token, or all tokens of a head."""

_IN_MEMORY: dict[KVLayout, tuple[int, ...]] = {
    "token-major": (0, 1, 2, 3, 4, 5),
    "head-major": (0, 1, 4, 2, 3, 5),
}

Slots = int | Tensor
"""What to read: the number of leading slots, or an int64 tensor of slots."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's part of the cache: views of the whole buffers.

    Attributes:
        k: Keys ``[B, slots, P, N, D]``.
        v: Values, same shape.
    """

    k: Tensor
    v: Tensor

    @property
    def tokens_per_slot(self) -> int:
        """Tokens of a latent frame."""
        return self.k.shape[2]

    def update(
        self, k_BLND: Tensor, v_BLND: Tensor, write_slots_F: Tensor, read: Slots
    ) -> tuple[Any, ...]:
        """Store keys and values, and return all that the queries of this call see.

        Args:
            k_BLND: New keys ``[B, L, N, D]``, whole latent frames.
            v_BLND: New values, same shape.
            write_slots_F: int64 slots on the cache's device, one per latent frame.
            read: Slots to return.

        Returns:
            Keys and values ``[B, S, N, D]``; views of the buffers where ``read`` is a number and no
            gradient is wanted. A cache that keeps them in another form returns what its own
            :meth:`kernel` takes.
        """
        return (
            _update(self.k, k_BLND, write_slots_F, read),
            _update(self.v, v_BLND, write_slots_F, read),
        )

    def read(self, slots: Slots) -> tuple[Any, ...]:
        """Return what :meth:`update` returns, and store nothing."""
        return _seen(self.k, slots), _seen(self.v, slots)

    def of_heads(self, seen: tuple[Any, ...], heads: slice) -> tuple[Any, ...]:
        """Cut what :meth:`update` returns down to some heads."""
        return tuple(x_BSND[:, :, heads] for x_BSND in seen)

    def kernel(self, attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return the kernel that takes queries and then what :meth:`update` returns.

        Args:
            attention: That of the backend, which takes plain keys and values.
        """
        return attention


class Sink(NamedTuple):
    """Where in time the keys of the leading slots are.

    Attributes:
        position: Rotary position of the first one.
        written: Where it was when they were stored.
        keys: What was stored there, once they have been turned; they are always turned from these,
            so that what each rounding loses does not add up.
    """

    position: int = 0
    written: int = 0
    keys: Tensor | None = None


class KVCache:
    """Keys and values of every layer, ``[B, slots * P, N, D]``.

    They are allocated token-major. Another layout changes strides and no shape, so whoever reads or
    writes them goes by the strides.

    Indexed by the layer. A layer is handed its own part and never learns its number, so that one
    compiled layer serves them all.

    Args:
        layers: Transformer layers.
        batch: Videos that are denoised side by side.
        slots: Latent frames the cache has room for.
        tokens_per_slot: Tokens of a latent frame.
        heads: Attention heads.
        head_dim: Width of a head.
        dtype: Type of keys and values.
        device: Where the buffers live.

    Attributes:
        sink: Where the leading slots are; of interest to window-relative positions alone.
    """

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        slots: int,
        tokens_per_slot: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (layers, batch, slots, tokens_per_slot, heads, head_dim)
        self.tokens_per_slot = tokens_per_slot
        self.sink = Sink()
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self._layers = [LayerCache(k, v) for k, v in zip(self.k, self.v, strict=True)]

    def __getitem__(self, layer: int) -> LayerCache:
        return self._layers[layer]

    def lay_out(self, layout: KVLayout) -> None:
        """Allocate the buffers anew in a layout, empty. No rollout has them yet.

        Args:
            layout: What lies together.
        """
        order = _IN_MEMORY[layout]
        back = [order.index(dim) for dim in range(len(order))]
        shape = [self.k.shape[dim] for dim in order]
        dtype, device = self.k.dtype, self.k.device
        # The old ones go first: both at once may not fit.
        del self.k, self.v, self._layers
        self.k = torch.zeros(shape, dtype=dtype, device=device).permute(back)
        self.v = torch.zeros(shape, dtype=dtype, device=device).permute(back)
        self._layers = [LayerCache(k, v) for k, v in zip(self.k, self.v, strict=True)]

    def clear(self) -> None:
        """Make the buffers what they were when they were allocated."""
        self.k.zero_()
        self.v.zero_()
        self.sink = Sink()

    def note_sink(self, position: int) -> None:
        """Be told that the leading slots are about to be stored, at a rotary position."""
        self.sink = Sink(position, position)

    @torch.no_grad()
    def turn_sink(self, slots: int, position: int) -> None:
        """Turn the keys of the leading ``slots`` so that the first is at a rotary position."""
        _, written, keys = self.sink
        if self.sink.position == position:
            return
        if keys is None:
            keys = self._sink_keys(slots)
        self._put_sink(keys, position - written)
        self.sink = Sink(position, written, keys)

    def _sink_keys(self, slots: int) -> Tensor:
        return self.k[:, :, :slots].clone()

    def _put_sink(self, keys: Tensor, latent_frames: int) -> None:
        by = turn(latent_frames, keys.shape[-1], keys.dtype, keys.device)
        # Layer by layer, since what is turned is wide for a moment.
        for buffer, of_layer in zip(self.k, keys, strict=True):
            buffer[:, : of_layer.shape[1]].copy_(rotate(of_layer, by))

    @property
    def slots(self) -> int:
        """Latent frames the cache has room for."""
        return self.k.shape[2]

    def snapshot(self, slots: int) -> tuple[Any, ...]:
        """Copy the leading ``slots``."""
        return self.k[:, :, :slots].clone(), self.v[:, :, :slots].clone(), self.sink

    def restore(self, kept: tuple[Any, ...]) -> None:
        """Put back what :meth:`snapshot` returned, in place; other slots keep what they hold."""
        *rows, self.sink = kept
        for buffer, values in zip((self.k, self.v), rows, strict=True):
            buffer[:, :, : values.shape[2]].copy_(values)

    def rows(self, slots_F: Tensor) -> tuple[Tensor, ...]:
        """Copy some slots, int64 on the cache's device."""
        return self.k.index_select(2, slots_F), self.v.index_select(2, slots_F)

    def put_rows(self, slots_F: Tensor, kept: tuple[Tensor, ...]) -> None:
        """Put back what :meth:`rows` returned for the same slots."""
        for buffer, values in zip((self.k, self.v), kept, strict=True):
            buffer.index_copy_(2, slots_F, values)

    def part(self, slots_F: Tensor, heads: slice) -> tuple[Tensor, ...]:
        """Copy some heads of some slots, with all that it takes to read them, in one type."""
        return tuple(rows[..., heads, :] for rows in self.rows(slots_F))

    @property
    def part_dtype(self) -> torch.dtype:
        """Type of what :meth:`part` returns."""
        return self.k.dtype

    def part_shapes(self, slots: int) -> list[tuple[int, ...]]:
        """Shapes of what :meth:`part` returns of all heads that are here."""
        layers, batch, _, *of_slot = self.k.shape
        return [(layers, batch, slots, *of_slot)] * 2

    def put_part(self, slots_F: Tensor, given: tuple[Tensor, ...]) -> None:
        """Store what :meth:`part` of another cache returned, whose heads are all that are here."""
        self.put_rows(slots_F, given)


def _update(buffer: Tensor, new_BLND: Tensor, slots_F: Tensor, read: Slots) -> Tensor:
    new_BFPND = new_BLND.unflatten(1, (-1, buffer.shape[2]))
    if torch.is_grad_enabled() and new_BLND.requires_grad:
        seen = buffer.index_copy(1, slots_F, new_BFPND)
        buffer.index_copy_(1, slots_F, new_BFPND.detach())
    else:
        seen = buffer.index_copy_(1, slots_F, new_BFPND)
    return _seen(seen, read)


def _seen(buffer: Tensor, read: Slots) -> Tensor:
    seen = buffer.narrow(1, 0, read) if isinstance(read, int) else buffer.index_select(1, read)
    return seen.flatten(1, 2)
