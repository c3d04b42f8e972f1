"""Keys and values of the video in FP8: half the memory, and a kernel that reads them as they lie.

It stands where a :class:`longlive.attention.kv_cache.KVCache` does. Slots, ring and sink are those
of the window, and so is the rule that buffers are allocated once and written in place. What is
stored and why is in :mod:`longlive.kernels.fp8_write`. A sink that is turned is rounded twice.
"""

# Shape suffixes: B batch, F latent frames, P tokens per latent frame, L tokens of the call,
# N heads, D head dim, T tokens the cache has room for, K two kinds: keys and values.

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longlive.attention.backends import Attention
from longlive.attention.kv_cache import KVCache, KVLayout, LayerCache, Sink, Slots
from longlive.attention.rope import rotate, turn
from longlive.errors import UserError
from longlive.kernels.fp8_attention import fp8_attention
from longlive.kernels.fp8_write import E4M3, fp8_write, rounded, value_places

_PADDING = 128
"""Of which the room for tokens is a multiple, so that a kernel's last tile lies within it."""


@dataclass(frozen=True, slots=True)
class Fp8LayerCache(LayerCache):
    """One layer's part of the cache: views of the whole buffers.

    Attributes:
        k: Keys ``[B, N, T, D]``, e4m3.
        v: Values ``[B, N, D, T]``, e4m3; of each sixteen tokens in an order of their own.
        shift: What was subtracted from keys and values, ``[2, B, N, D]``.
        scale: What they were divided by, ``[2, B, N]``.
        tokens: Of a latent frame.
        emulates: Whether it is done without kernels, on any device.
    """

    shift: Tensor
    scale: Tensor
    tokens: int
    emulates: bool

    @property
    def tokens_per_slot(self) -> int:
        """Tokens of a latent frame."""
        return self.tokens

    def update(
        self, k_BLND: Tensor, v_BLND: Tensor, write_slots_F: Tensor, read: Slots
    ) -> tuple[Any, ...]:
        """Store keys and values, and return what :meth:`kernel` takes after the queries.

        Args:
            k_BLND: New keys ``[B, L, N, D]``, rotated, whole latent frames.
            v_BLND: New values, same shape.
            write_slots_F: int64 slots on the cache's device, one per latent frame.
            read: Leading slots that the queries see.
        """
        buffers = self.k, self.v, self.shift, self.scale
        fp8_write([k_BLND, v_BLND], *buffers, write_slots_F, _leading(read), self.emulates)
        return self.read(read)

    def read(self, slots: Slots) -> tuple[Any, ...]:
        """Return what :meth:`update` returns, and store nothing."""
        return self.k, self.v, self.shift, self.scale, _leading(slots) * self.tokens, self.emulates

    def of_heads(self, seen: tuple[Any, ...], heads: slice) -> tuple[Any, ...]:
        """Cut what :meth:`update` returns down to some heads."""
        k, v, shift, scale, *others = seen
        cut = k[:, heads], v[:, heads], shift[:, :, heads], scale[:, :, heads]
        # Shift and scale are small, and keys and values of one video lie together as they are;
        # those of several videos are copied.
        return *(x.contiguous() for x in cut), *others

    def kernel(self, attention: Attention) -> Any:
        """The one that reads FP8, whichever was chosen for a cache of plain numbers."""
        return fp8_attention


class Fp8Cache(KVCache):
    """Keys and values of every layer, in e4m3.

    Args:
        shape: Layers, batch, slots, tokens of a latent frame, heads, width of a head.
        device: Where the buffers live.
        emulates: Whether it is done without kernels, on any device.
    """

    def __init__(
        self, shape: tuple[int, ...], device: torch.device, *, emulates: bool = False
    ) -> None:
        layers, batch, slots, tokens, heads, head_dim = shape
        room = -(-slots * tokens // _PADDING) * _PADDING
        self.tokens_per_slot = tokens
        self._slots = slots
        self.sink = Sink()
        # As bytes: not every device fills this type with zeros, and a zero is one.
        of_heads = (layers, batch, heads)
        self._k_bytes = torch.zeros(*of_heads, room, head_dim, dtype=torch.uint8, device=device)
        self._v_bytes = torch.zeros(*of_heads, head_dim, room, dtype=torch.uint8, device=device)
        self.k, self.v = self._k_bytes.view(E4M3), self._v_bytes.view(E4M3)
        self.shift = torch.zeros(layers, 2, batch, heads, head_dim, device=device)
        self.scale = torch.ones(layers, 2, batch, heads, device=device)
        buffers = self.k, self.v, self.shift, self.scale
        self._layers = [
            Fp8LayerCache(*layer, tokens, emulates) for layer in zip(*buffers, strict=True)
        ]

    def lay_out(self, layout: KVLayout) -> None:
        """Stay as it is: the tokens of a head lie together.

        Raises:
            UserError: If it was to be another way.
        """
        if layout != "head-major":
            raise UserError(
                f"an FP8 KV cache is head-major and cannot be {layout}: leave LayOutCache out"
            )

    def clear(self) -> None:
        """Make the buffers what they were when they were allocated."""
        self._k_bytes.zero_()
        self._v_bytes.zero_()
        self.shift.zero_()
        self.scale.fill_(1)
        self.sink = Sink()

    def _sink_keys(self, slots: int) -> Tensor:
        return self._k_bytes[..., : slots * self.tokens_per_slot, :].clone()

    def _put_sink(self, keys: Tensor, latent_frames: int) -> None:
        by = turn(latent_frames, keys.shape[-1], torch.float32, keys.device)
        layers = zip(self._k_bytes, keys, self.shift, self.scale, strict=True)
        for bytes_BNTD, kept_BNTD, shift_KBND, scale_KBN in layers:
            shift_BN1D, scale_BN11 = shift_KBND[0, :, :, None], scale_KBN[0, :, :, None, None]
            turned_BNTD = rotate(kept_BNTD.view(E4M3).float() * scale_BN11 + shift_BN1D, by)
            stored_BNTD = rounded((turned_BNTD - shift_BN1D) / scale_BN11)
            bytes_BNTD[:, :, : kept_BNTD.shape[2]].copy_(stored_BNTD.view(torch.uint8))

    @property
    def slots(self) -> int:
        """Latent frames the cache has room for."""
        return self._slots

    def snapshot(self, slots: int) -> tuple[Any, ...]:
        """Copy the leading ``slots``, and what tells the size of their numbers."""
        leading = torch.arange(slots, device=self.k.device)
        return *self.rows(leading), self.shift.clone(), self.scale.clone(), self.sink

    def restore(self, kept: tuple[Any, ...]) -> None:
        """Put back what :meth:`snapshot` returned, in place; other slots keep what they hold."""
        k_bytes, v_bytes, shift, scale, self.sink = kept
        slots = k_bytes.shape[3] // self.tokens_per_slot
        self.put_rows(torch.arange(slots, device=self.k.device), (k_bytes, v_bytes))
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    def rows(self, slots_F: Tensor) -> tuple[Tensor, ...]:
        """Copy some slots, int64 on the cache's device."""
        places = self._places(slots_F)
        k_bytes = self._k_bytes.index_select(3, places)
        return k_bytes, self._v_bytes.index_select(4, value_places(places))

    def put_rows(self, slots_F: Tensor, kept: tuple[Tensor, ...]) -> None:
        """Put back what :meth:`rows` returned for the same slots."""
        places = self._places(slots_F)
        self._k_bytes.index_copy_(3, places, kept[0])
        self._v_bytes.index_copy_(4, value_places(places), kept[1])

    def part(self, slots_F: Tensor, heads: slice) -> tuple[Tensor, ...]:
        """Copy some heads of some slots, with all that it takes to read them, as bytes."""
        rows = (rows[:, :, heads] for rows in self.rows(slots_F))
        numbers = self.shift[..., heads, :], self.scale[..., heads]
        return *rows, *(number.contiguous().view(torch.uint8) for number in numbers)

    @property
    def part_dtype(self) -> torch.dtype:
        """Type of what :meth:`part` returns."""
        return torch.uint8

    def part_shapes(self, slots: int) -> list[tuple[int, ...]]:
        """Shapes of what :meth:`part` returns of all heads that are here."""
        *of_heads, _, head_dim = self.k.shape
        tokens = slots * self.tokens_per_slot
        numbers = ((*x.shape[:-1], x.shape[-1] * x.itemsize) for x in (self.shift, self.scale))
        return [(*of_heads, tokens, head_dim), (*of_heads, head_dim, tokens), *numbers]

    def put_part(self, slots_F: Tensor, given: tuple[Tensor, ...]) -> None:
        """Store what :meth:`part` of another cache returned, whose heads are all that are here."""
        self.put_rows(slots_F, given[:2])
        for kept, new in zip((self.shift, self.scale), given[2:], strict=True):
            kept.view(torch.uint8).copy_(new)

    def _places(self, slots_F: Tensor) -> Tensor:
        tokens_P = torch.arange(self.tokens_per_slot, device=slots_F.device)
        return (slots_F[:, None] * self.tokens_per_slot + tokens_P).flatten()


def _leading(slots: Slots) -> int:
    if not isinstance(slots, int | torch.SymInt):
        raise UserError(
            "an FP8 KV cache is read from its first slot on: leave cached_latent_frames out"
        )
    return slots
