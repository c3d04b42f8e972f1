"""The UMT5 encoder, which turns a prompt's tokens into the rows the video model attends to.

Shape suffixes: B batch, M tokens of the prompt (queries), K the same tokens as keys, E model width,
A attention width (N heads times D head width), N heads, D head width.
"""

import math
from dataclasses import dataclass

import lightning.pytorch as pl
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from longlive.errors import UserError

NORM_EPS = 1e-6
MAX_DISTANCE = 128
"""Tokens apart from which every distance falls into the last bucket of its direction."""


@dataclass(frozen=True, slots=True)
class UMT5Config:
    """Sizes of a UMT5 encoder.

    Attributes:
        vocab: Rows of the token table; at least the tokenizer's vocabulary.
        width: Width of the residual stream, and of a row of the output.
        attention_width: Width of queries, keys and values, all heads together.
        ffn_width: Hidden width of the gated feed-forward.
        heads: Attention heads.
        layers: Transformer layers.
        text_len: Tokens a prompt is padded to; the encoder itself takes any number.
        buckets: Relative-position buckets of a layer, both directions together.
    """

    vocab: int
    width: int
    attention_width: int
    ffn_width: int
    heads: int
    layers: int
    text_len: int
    buckets: int = 32

    def __post_init__(self) -> None:
        if self.attention_width % self.heads:
            raise UserError(
                f"attention_width {self.attention_width} does not divide into {self.heads} heads"
            )
        if self.buckets % 4 or not 4 <= self.buckets < MAX_DISTANCE:
            raise UserError(
                f"buckets must be a multiple of 4 below {MAX_DISTANCE}, got {self.buckets}"
            )


TEXT_ENCODER_SIZES: dict[str, UMT5Config] = {
    "umt5-xxl": UMT5Config(
        vocab=256_384,
        width=4096,
        attention_width=4096,
        ffn_width=10_240,
        heads=64,
        layers=24,
        text_len=512,
    ),
    # 64 rows hold the 30 words of the shapes world, the 3 special tokens, and room for more words.
    "tiny": UMT5Config(
        vocab=64, width=64, attention_width=64, ffn_width=128, heads=4, layers=2, text_len=16
    ),
}


def text_encoder_config(size: str) -> UMT5Config:
    """Look up a named size.

    Raises:
        UserError: If there is no such size.
    """
    if size not in TEXT_ENCODER_SIZES:
        known = ", ".join(TEXT_ENCODER_SIZES)
        raise UserError(f"no text encoder is called {size!r}; choose one of {known}")
    return TEXT_ENCODER_SIZES[size]


def relative_buckets(tokens: int, buckets: int, device: torch.device | None = None) -> Tensor:
    """Bucket of every pair of positions, by how far and on which side the key is.

    In each direction the first half of the buckets holds one distance each; the other half grows
    by equal ratios up to ``MAX_DISTANCE``. The limits are integers, so no logarithm is rounded.

    Args:
        tokens: Positions M.
        buckets: Buckets of both directions together; the upper half is for keys after the query.
        device: Where the result is wanted.

    Returns:
        ``[M, K]`` int64; row = query, column = key.
    """
    per_side = buckets // 2
    exact = per_side // 2
    growth = (MAX_DISTANCE / exact) ** (1 / (per_side - exact))
    # The small term keeps a limit that is a whole number (16, 32, 64) from being rounded up.
    limits = [math.ceil(exact * growth**step - 1e-9) for step in range(1, per_side - exact)]

    position_M = torch.arange(tokens, device=device)
    offset_MK = position_M[None, :] - position_M[:, None]
    distance_MK = offset_MK.abs()
    # Compared one by one: the host would wait while a tensor of limits is copied to the device.
    far_MK = exact + torch.stack([distance_MK >= limit for limit in limits]).sum(0)
    bucket_MK = torch.where(distance_MK < exact, distance_MK, far_MK)
    return bucket_MK + per_side * (offset_MK > 0)


class T5Norm(nn.Module):
    """RMS norm with float32 statistics and no shift.

    With a half-precision weight the normalized rows are rounded to the weight's type before they
    are scaled; otherwise everything stays in float32.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BME: Tensor) -> Tensor:
        mean_square = x_BME.float().pow(2).mean(dim=-1, keepdim=True)
        x_BME = x_BME * torch.rsqrt(mean_square + NORM_EPS)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            x_BME = x_BME.to(self.weight.dtype)
        return self.weight * x_BME


class RelativePositionTable(nn.Module):
    """One attention bias per bucket and head."""

    def __init__(self, buckets: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(buckets, heads)

    def forward(self, bucket_MK: Tensor) -> Tensor:
        """Return the bias ``[1, N, M, K]``."""
        return rearrange(self.embedding(bucket_MK), "M K N -> 1 N M K")


class UMT5Attention(nn.Module):
    """Self-attention with an additive position bias and no 1/sqrt(D) scale."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(config.width, config.attention_width, bias=False)
        self.k = nn.Linear(config.width, config.attention_width, bias=False)
        self.v = nn.Linear(config.width, config.attention_width, bias=False)
        self.o = nn.Linear(config.attention_width, config.width, bias=False)

    def forward(self, x_BME: Tensor, bias_BNMK: Tensor) -> Tensor:
        q_BNMD, k_BNKD, v_BNKD = (
            rearrange(linear(x_BME), "B M (N D) -> B N M D", N=self.heads)
            for linear in (self.q, self.k, self.v)
        )
        logits_BNMK = q_BNMD @ k_BNKD.transpose(-1, -2) + bias_BNMK
        weights_BNMK = F.softmax(logits_BNMK.float(), dim=-1).to(logits_BNMK.dtype)
        return self.o(rearrange(weights_BNMK @ v_BNKD, "B N M D -> B M (N D)"))


class UMT5FeedForward(nn.Module):
    """Gated feed-forward: ``fc2(fc1(x) * gelu(gate(x)))``."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(config.width, config.ffn_width, bias=False), nn.GELU(approximate="tanh")
        )
        self.fc1 = nn.Linear(config.width, config.ffn_width, bias=False)
        self.fc2 = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x_BME: Tensor) -> Tensor:
        return self.fc2(self.fc1(x_BME) * self.gate(x_BME))


class UMT5Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and with a residual."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.norm1 = T5Norm(config.width)
        self.attn = UMT5Attention(config)
        self.norm2 = T5Norm(config.width)
        self.ffn = UMT5FeedForward(config)
        self.pos_embedding = RelativePositionTable(config.buckets, config.heads)

    def forward(self, x_BME: Tensor, bucket_MK: Tensor, is_padding_B11K: Tensor) -> Tensor:
        # Overwritten, not added: what a padding key would have got plays no part.
        lowest = torch.finfo(x_BME.dtype).min
        bias_BNMK = self.pos_embedding(bucket_MK).masked_fill(is_padding_B11K, lowest)
        x_BME = _finite(x_BME + self.attn(self.norm1(x_BME), bias_BNMK))
        return _finite(x_BME + self.ffn(self.norm2(x_BME)))


def _finite(x_BME: Tensor) -> Tensor:
    """Keep the residual stream off infinity in float16, whose range these weights can leave."""
    if x_BME.dtype is not torch.float16:
        return x_BME
    limit = torch.finfo(torch.float16).max - 1000
    return x_BME.clamp(-limit, limit)


class UMT5Encoder(pl.LightningModule):
    """Encodes prompts (umT5: mT5 with a position table in every layer, arXiv:2304.09151).

    Its state dict has the names of ``models_t5_umt5-xxl-enc-bf16.pth``. Built under
    ``torch.device("meta")`` it costs nothing, and ``load_strict`` of ``longlive.weights`` fills it.

    Args:
        size: A name in ``TEXT_ENCODER_SIZES``, or a configuration.

    Raises:
        UserError: If there is no size of that name.
    """

    def __init__(self, size: str | UMT5Config = "umt5-xxl") -> None:
        super().__init__()
        config = text_encoder_config(size) if isinstance(size, str) else size
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab, config.width)
        # Called blocks because the published weights are.
        self.blocks = nn.ModuleList(UMT5Layer(config) for _ in range(config.layers))
        self.norm = T5Norm(config.width)

    def forward(self, ids_BM: Tensor, mask_BM: Tensor, trim: bool = True) -> Tensor:
        """Encode a batch of tokenized prompts.

        Args:
            ids_BM: Token ids ``[B, M]``, int64.
            mask_BM: ``[B, M]``, one for a prompt's tokens and zero for the padding, which follows.
            trim: Leave out the positions that are padding in every prompt. Equal up to rounding
                and much cheaper, because most prompts use a fraction of the positions; it makes
                the host wait for the device once.

        Returns:
            ``[B, M, E]`` in the weights' type; rows from a prompt's length on are exactly zero.
        """
        tokens = ids_BM.shape[1]
        real_BM = mask_BM.bool()
        if trim:
            longest = max(1, int(real_BM.sum(dim=1).max()))
            ids_BM, real_BM = ids_BM[:, :longest], real_BM[:, :longest]
        text_BME = self.encode(ids_BM, real_BM).masked_fill(~real_BM[:, :, None], 0)
        return F.pad(text_BME, (0, 0, 0, tokens - text_BME.shape[1]))

    def encode(self, ids_BM: Tensor, mask_BM: Tensor) -> Tensor:
        """Run the layers at every position, padding included.

        Returns:
            ``[B, M, E]``; rows of padding hold numbers without meaning.
        """
        is_padding_B11K = ~mask_BM.bool()[:, None, None, :]
        bucket_MK = relative_buckets(ids_BM.shape[1], self.config.buckets, ids_BM.device)
        x_BME = self.token_embedding(ids_BM)
        for layer in self.blocks:
            x_BME = layer(x_BME, bucket_MK, is_padding_B11K)
        return self.norm(x_BME)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw weights to train from.

        Fan-in scaling, as T5 has it: the query carries the 1/sqrt(D) that attention leaves out, so
        that logits start near one.

        Args:
            generator: Source of the random numbers, on the weights' device.
        """
        config = self.config
        head_width = config.attention_width // config.heads

        def draw(weight: Tensor, std: float) -> None:
            weight.normal_(std=std, generator=generator)

        draw(self.token_embedding.weight, 1.0)
        self.norm.weight.fill_(1.0)
        for layer in self.blocks:
            assert isinstance(layer, UMT5Layer)
            draw(layer.attn.q.weight, (config.width * head_width) ** -0.5)
            draw(layer.attn.k.weight, config.width**-0.5)
            draw(layer.attn.v.weight, config.width**-0.5)
            draw(layer.attn.o.weight, config.attention_width**-0.5)
            draw(layer.ffn.gate.get_parameter("0.weight"), config.width**-0.5)
            draw(layer.ffn.fc1.weight, config.width**-0.5)
            draw(layer.ffn.fc2.weight, config.ffn_width**-0.5)
            draw(layer.pos_embedding.embedding.weight, config.width**-0.5)
            layer.norm1.weight.fill_(1.0)
            layer.norm2.weight.fill_(1.0)
