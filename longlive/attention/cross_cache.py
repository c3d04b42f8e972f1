"""Keys and values of the prompt: computed once per prompt, read by every call until it changes."""

# Shape suffixes: B batch, M tokens of the prompt, N heads, D head dim.

import torch
from torch import Tensor


class CrossCache:
    """Text keys and values of every layer.

    A change of prompt copies into the same buffers, so that a captured graph reads the new prompt.
    """

    def __init__(self) -> None:
        self.k_BMND: list[Tensor] = []
        self.v_BMND: list[Tensor] = []

    @classmethod
    def allocate(
        cls, shape_BMND: tuple[int, ...], *, layers: int, dtype: torch.dtype, device: torch.device
    ) -> "CrossCache":
        """Allocate the buffers before there is a prompt."""
        cache = cls()
        shape = (layers, *shape_BMND)
        cache.k_BMND = list(torch.zeros(shape, dtype=dtype, device=device))
        cache.v_BMND = list(torch.zeros(shape, dtype=dtype, device=device))
        return cache

    def store(self, keys_values: list[tuple[Tensor, Tensor]]) -> None:
        """Make a prompt's keys and values the ones that are read.

        Where a gradient is wanted they get buffers of their own, since earlier calls still need the
        ones before them.

        Args:
            keys_values: One pair ``[B, M, N, D]`` per layer; they are copied, so that the next
                prompt does not overwrite what the caller may keep.
        """
        first = keys_values[0][0]
        keeps_graph = torch.is_grad_enabled() and first.requires_grad
        if keeps_graph or not self.k_BMND or self.k_BMND[0].shape != first.shape:
            self.k_BMND = [k.clone() for k, _ in keys_values]
            self.v_BMND = [v.clone() for _, v in keys_values]
            return
        keys, values = zip(*keys_values, strict=True)
        # A few launches for all layers.
        torch._foreach_copy_([*self.k_BMND, *self.v_BMND], [*keys, *values])

    def snapshot(self) -> list[tuple[Tensor, Tensor]]:
        """Copy what is read, for :meth:`store`."""
        pairs = zip(self.k_BMND, self.v_BMND, strict=True)
        return [(k.clone(), v.clone()) for k, v in pairs]

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.k_BMND[layer], self.v_BMND[layer]

    def __len__(self) -> int:
        return len(self.k_BMND)
