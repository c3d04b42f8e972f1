"""FP8 caches, what to store in them, and attention in float64."""

from typing import NamedTuple

import torch
from torch import Tensor

from longlive.kernels.fp8_write import E4M3, plain_fp8_write, value_places


class Cache(NamedTuple):
    """What the operations share.

    Attributes:
        k: Keys ``[B, N, T, D]``.
        v: Values ``[B, N, D, T]``.
        shift: What was subtracted.
        scale: What was divided by.
    """

    k: Tensor
    v: Tensor
    shift: Tensor
    scale: Tensor

    def restored(self, length: int) -> list[Tensor]:
        """Keys and values ``[B, S, N, D]`` of the leading tokens, in float64."""
        places = value_places(torch.arange(length, device=self.v.device))
        parts = (self.k[:, :, :length], self.v.transpose(2, 3).float()[:, :, places])
        return [
            (part.double() * scale[..., None, None] + shift[:, :, None].double())
            .transpose(1, 2)
            .contiguous()
            for part, shift, scale in zip(parts, self.shift, self.scale.double(), strict=True)
        ]


def cache_of(
    room: int = 128, batch: int = 2, heads: int = 3, head_dim: int = 32, device: str = "cpu"
) -> Cache:
    of_heads = (batch, heads)
    return Cache(
        torch.zeros(*of_heads, room, head_dim, dtype=torch.uint8, device=device).view(E4M3),
        torch.zeros(*of_heads, head_dim, room, dtype=torch.uint8, device=device).view(E4M3),
        torch.zeros(2, *of_heads, head_dim, device=device),
        torch.ones(2, *of_heads, device=device),
    )


def numbers(tokens: int, batch: int = 2, heads: int = 3, head_dim: int = 32) -> list[Tensor]:
    """Keys and values of some tokens, whose channels have means of their own."""
    shape = (batch, tokens, heads, head_dim)
    return [torch.randn(shape) + 2 * torch.randn(batch, 1, heads, head_dim) for _ in range(2)]


def slots(*given: int) -> Tensor:
    return torch.tensor(given, dtype=torch.int64)


def exact(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
    q, k, v = (x.double().transpose(1, 2) for x in (q_BLND, k_BSND, v_BSND))
    weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
    return (weights @ v).transpose(1, 2)


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def filled(tokens: int = 20, frames: int = 5) -> tuple[Cache, list[Tensor]]:
    """A cache whose slots were written by one call, and what they should hold."""
    new, cache = numbers(frames * tokens), cache_of()
    plain_fp8_write(new, *cache, slots(*range(frames)), frames)
    return cache, new
