"""Keys and values of the video: slots that are allocated once, written in place and never moved.

One slot holds one latent frame of one layer. A pass over a full window reads the buffers as they
lie, without a copy; so does a pass over a window that is still filling, because the filled slots
are a prefix. Nothing here looks at a value on the device, so nothing waits for it.

With gradients enabled the new keys must stay in the graph while the buffer keeps plain values:
then the queries read an out-of-place copy, and what is stored is detached. Gradients therefore end
at the call that computed them.
"""

# Shape suffixes: B batch, F latent frames, P tokens per latent frame, L tokens of the call (F * P),
# S tokens read (slots * P), N heads, D head dim.

import torch
from torch import Tensor

Slots = int | Tensor
"""What to read: the number of leading slots, or an int64 tensor of slots."""


class KVCache:
    """Keys and values of every layer, token-major: ``[B, slots * P, N, D]``.

    Args:
        layers: Transformer layers.
        batch: Videos that are denoised side by side.
        slots: Latent frames the cache has room for.
        tokens_per_slot: Tokens of a latent frame.
        heads: Attention heads.
        head_dim: Width of a head.
        dtype: Type of keys and values.
        device: Where the buffers live.
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
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def slots(self) -> int:
        """Latent frames the cache has room for."""
        return self.k.shape[2]

    def update(
        self, layer: int, k_BLND: Tensor, v_BLND: Tensor, write_slots_F: Tensor, read: Slots
    ) -> tuple[Tensor, Tensor]:
        """Store keys and values, and return all that the queries of this call see.

        Args:
            layer: Index of the layer.
            k_BLND: New keys ``[B, L, N, D]``, whole latent frames.
            v_BLND: New values, same shape.
            write_slots_F: int64 slots on the cache's device, one per latent frame.
            read: Slots to return.

        Returns:
            Keys and values ``[B, S, N, D]``; views of the buffers where ``read`` is a number and no
            gradient is wanted.
        """
        return (
            self._update(self.k[layer], k_BLND, write_slots_F, read),
            self._update(self.v[layer], v_BLND, write_slots_F, read),
        )

    def _update(self, buffer: Tensor, new_BLND: Tensor, slots_F: Tensor, read: Slots) -> Tensor:
        new_BFPND = new_BLND.unflatten(1, (-1, self.tokens_per_slot))
        if torch.is_grad_enabled() and new_BLND.requires_grad:
            seen = buffer.index_copy(1, slots_F, new_BFPND)
            buffer.index_copy_(1, slots_F, new_BFPND.detach())
        else:
            seen = buffer.index_copy_(1, slots_F, new_BFPND)
        seen = seen[:, :read] if isinstance(read, int) else seen.index_select(1, read)
        return seen.flatten(1, 2)
