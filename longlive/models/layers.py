"""Pieces of the diffusion transformer: norms, modulation and the two attentions."""

# Shape suffixes: B batch, F latent frames (or 1, for a timestep all share), P tokens per latent
# frame, L tokens, S tokens seen, M tokens of the prompt, E width, N heads, D head dim.

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive.attention.backends import sdpa_attention
from longlive.attention.core import LayerAttend


class RMSNorm(nn.Module):
    """Root-mean-square norm over the whole width, before the split into heads.

    The normed value is rounded to the input's type before the weight multiplies it, as in the
    reference.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Norm the last dimension, ``[..., E]`` to ``[..., E]``, in x's type."""
        normed = F.rms_norm(x, (x.shape[-1],), None, self.eps).to(x.dtype)
        return (normed * self.weight).to(x.dtype)


def timestep_features(timestep: Tensor, width: int) -> Tensor:
    """Sinusoids of the timestep, cosines first, float64 ``[..., width]``.

    Args:
        timestep: Real numbers in [0, 1000], any shape.
        width: Even number of features.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float64, device=timestep.device) / half
    angles = timestep.double().unsqueeze(-1) * torch.exp(-math.log(10000.0) * steps)
    return torch.cat([angles.cos(), angles.sin()], -1)


def modulate(x_BLE: Tensor, shift_BF1E: Tensor, scale_BF1E: Tensor) -> Tensor:
    """``x * (1 + scale) + shift`` with one shift and scale per latent frame."""
    x_BFPE = x_BLE.unflatten(1, (shift_BF1E.shape[1], -1))
    return (x_BFPE * (1 + scale_BF1E) + shift_BF1E).flatten(1, 2)


def gate(x_BLE: Tensor, gate_BF1E: Tensor) -> Tensor:
    """``x * gate`` with one gate per latent frame."""
    return (x_BLE.unflatten(1, (gate_BF1E.shape[1], -1)) * gate_BF1E).flatten(1, 2)


class Projections(nn.Module):
    """Query, key, value and output of an attention, with normed queries and keys."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)
        self.norm_q = RMSNorm(width, eps)
        self.norm_k = RMSNorm(width, eps)

    def queries(self, x_BLE: Tensor) -> Tensor:
        """Normed queries ``[B, L, N, D]``."""
        return self.norm_q(self.q(x_BLE)).unflatten(-1, (self.heads, -1))

    def keys_values(self, x_BSE: Tensor) -> tuple[Tensor, Tensor]:
        """Normed keys and plain values, ``[B, S, N, D]`` each."""
        k_BSND = self.norm_k(self.k(x_BSE)).unflatten(-1, (self.heads, -1))
        return k_BSND, self.v(x_BSE).unflatten(-1, (self.heads, -1))


class SelfAttention(Projections):
    """Video tokens attend to video tokens; how is the business of ``attend``.

    Attributes:
        norm_and_attend: What is between the projections to queries, keys and values and the one of
            the output; :func:`norm_and_attend`, or something equal to it.
    """

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__(width, heads, eps)
        self.norm_and_attend: NormAndAttend = norm_and_attend

    def forward(self, x_BLE: Tensor, attend: LayerAttend) -> Tensor:
        """Return what the tokens gather from each other, ``[B, L, E]``."""
        return self.o(self.norm_and_attend(self, *self.project(x_BLE), attend).flatten(2))

    def project(self, x_BLE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, none of them normed, ``[B, L, E]`` each."""
        return self.q(x_BLE), self.k(x_BLE), self.v(x_BLE)


NormAndAttend = Callable[[SelfAttention, Tensor, Tensor, Tensor, LayerAttend], Tensor]
"""Takes what :func:`norm_and_attend` takes, and returns the same."""


def norm_and_attend(
    attention: SelfAttention, q_BLE: Tensor, k_BLE: Tensor, v_BLE: Tensor, attend: LayerAttend
) -> Tensor:
    """Norm queries and keys, and return what the tokens gather from each other, ``[B, L, N, D]``.

    Args:
        attention: Has the norms.
        q_BLE: Queries, not normed.
        k_BLE: Keys, not normed.
        v_BLE: Values.
        attend: How tokens see each other.
    """
    q_BLE, k_BLE = attention.norm_q(q_BLE), attention.norm_k(k_BLE)
    return attend(*(x.unflatten(-1, (attention.heads, -1)) for x in (q_BLE, k_BLE, v_BLE)))


class CrossAttention(Projections):
    """Video tokens attend to every text position, the padding included, as in the reference."""

    def forward(self, x_BLE: Tensor, k_BMND: Tensor, v_BMND: Tensor) -> Tensor:
        """Return what the tokens gather from the prompt, ``[B, L, E]``."""
        return self.o(sdpa_attention(self.queries(x_BLE), k_BMND, v_BMND).flatten(2))


class DiTLayer(nn.Module):
    """One transformer layer; self-attention and feed-forward are modulated, cross-attention not."""

    def __init__(self, width: int, ffn_width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 6, width) / width**0.5)
        self.norm1 = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.self_attn = SelfAttention(width, heads, eps)
        self.norm3 = nn.LayerNorm(width, eps)
        self.cross_attn = CrossAttention(width, heads, eps)
        self.norm2 = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn_width), nn.GELU(approximate="tanh"), nn.Linear(ffn_width, width)
        )

    def forward(
        self,
        x_BLE: Tensor,
        modulation_BF6E: Tensor,
        text_keys_values: tuple[Tensor, Tensor],
        attend: LayerAttend,
    ) -> Tensor:
        """Return the tokens after this layer, ``[B, L, E]``."""
        shift, scale, gate_1, shift_2, scale_2, gate_2 = self._modulation(modulation_BF6E)
        u_BLE = modulate(self.norm1(x_BLE), shift, scale)
        x_BLE = x_BLE + gate(self.self_attn(u_BLE, attend), gate_1)
        x_BLE = x_BLE + self.cross_attn(self.norm3(x_BLE), *text_keys_values)
        u_BLE = modulate(self.norm2(x_BLE), shift_2, scale_2)
        return x_BLE + gate(self.ffn(u_BLE), gate_2)

    def text_keys_values(self, text_BME: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of an embedded prompt, ``[B, M, N, D]`` each."""
        return self.cross_attn.keys_values(text_BME)

    def store_keys(self, x_BLE: Tensor, modulation_BF6E: Tensor, attend: LayerAttend) -> None:
        """Leave keys and values behind, and compute nothing else."""
        shift, scale, *_ = self._modulation(modulation_BF6E)
        u_BLE = modulate(self.norm1(x_BLE), shift, scale)
        attend.store(*self.self_attn.keys_values(u_BLE))

    def _modulation(self, modulation_BF6E: Tensor) -> tuple[Tensor, ...]:
        return (self.modulation.unsqueeze(0) + modulation_BF6E).chunk(6, dim=2)


class Head(nn.Module):
    """Tokens to velocity patches: modulated norm and a linear."""

    def __init__(self, width: int, out_features: int, eps: float) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 2, width) / width**0.5)
        self.norm = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.head = nn.Linear(width, out_features)

    def forward(self, x_BLE: Tensor, embedding_BFE: Tensor) -> Tensor:
        """Return ``[B, L, out_features]``; ``embedding_BFE`` is the timestep's, F may be 1."""
        shift, scale = (self.modulation.unsqueeze(0) + embedding_BFE.unsqueeze(2)).chunk(2, dim=2)
        return self.head(modulate(self.norm(x_BLE), shift, scale))
