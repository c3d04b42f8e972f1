"""Where the noise of a rollout comes from."""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns.

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

SeedOf = Callable[[int], int]
"""The seed of each block, by its index."""


class NoiseSource(Protocol):
    """Standard normal noise of one step of one block."""

    def draw(self, block_index: int, step_index: int) -> Tensor:
        """Noise ``[B, F, C, H, W]``. Step 0 starts the block, later steps re-noise it."""
        ...


class SeededNoise:
    """Noise that depends on the seed, the block and the step, and on nothing else.

    The first blocks of a long rollout therefore equal the short one, and a video is the same
    whatever was made before it. It is drawn on the CPU, so that it is the same on every device.

    Args:
        seed: The video's seed; or the seed of each block, where branches of a video differ; or, for
            videos side by side, one each: the noise of each is then what it has alone.
        shape: Shape of a block, ``[B, F, C, H, W]``.
        dtype: Type of the latents.
        device: Where the noise is wanted.
    """

    def __init__(
        self,
        seed: int | SeedOf | tuple[int, ...],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.seed = seed
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self._first: Future[Tensor] | None = None
        if device.type == "cuda":
            # The GPU has nothing to do before it, and the first frame waits for it.
            self.draw_ahead()

    def draw_ahead(self) -> None:
        """Draw the very first noise in a thread, if it is known by now which it is."""
        if isinstance(self.seed, int):
            drawer = ThreadPoolExecutor(1, thread_name_prefix="first noise")
            self._first = drawer.submit(self._on_host, self.seed, self.shape, 0, 0)
            drawer.shutdown(wait=False)

    def draw(self, block_index: int, step_index: int) -> Tensor:
        """Noise of the given shape; the same for the same two numbers, in whatever order."""
        step = block_index, step_index
        if isinstance(self.seed, tuple):
            alone = (1, *self.shape[1:])
            return torch.cat([self._to_device(self._on_host(s, alone, *step)) for s in self.seed])
        if self._first is not None and step == (0, 0):
            return self._to_device(self._first.result())
        of_block = self.seed(block_index) if callable(self.seed) else self.seed
        return self._to_device(self._on_host(of_block, self.shape, *step))

    def _on_host(
        self, seed: int, shape: tuple[int, ...], block_index: int, step_index: int
    ) -> Tensor:
        """The noise of one video, float32."""
        key = f"{seed}/{block_index}/{step_index}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little", signed=True)
        generator = torch.Generator().manual_seed(seed)
        # Pinned, so that the copy does not make the host wait for the device.
        pinned = self.device.type == "cuda"
        return torch.empty(shape, pin_memory=pinned).normal_(generator=generator)

    def _to_device(self, noise: Tensor) -> Tensor:
        return noise.to(self.device, non_blocking=True).to(self.dtype)
