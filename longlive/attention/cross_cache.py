"""Keys and values of the prompt: computed once per prompt, read by every call until it changes."""

# Shape suffixes: B batch, M tokens of the prompt, N heads, D head dim.

from torch import Tensor


class CrossCache:
    """Text keys and values of every layer.

    A change of prompt copies into the buffers of the first one, so that a captured graph reads the
    new prompt.
    """

    def __init__(self) -> None:
        self.k_BMND: list[Tensor] = []
        self.v_BMND: list[Tensor] = []

    def store(self, keys_values: list[tuple[Tensor, Tensor]]) -> None:
        """Make a prompt's keys and values the ones that are read.

        Args:
            keys_values: One pair ``[B, M, N, D]`` per layer; they are copied, so that the next
                prompt does not overwrite what the caller may keep.
        """
        if not self.k_BMND or self.k_BMND[0].shape != keys_values[0][0].shape:
            self.k_BMND = [k.clone() for k, _ in keys_values]
            self.v_BMND = [v.clone() for _, v in keys_values]
            return
        for layer, (k, v) in enumerate(keys_values):
            self.k_BMND[layer].copy_(k)
            self.v_BMND[layer].copy_(v)

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.k_BMND[layer], self.v_BMND[layer]

    def __len__(self) -> int:
        return len(self.k_BMND)
