"""Attention whose heads are shared by processes, while each has some of the tokens.

Everything in a transformer but the self-attention works on each token alone. So a process is given
a band of rows of every latent frame and computes only their tokens. Before the self-attention the
bands of all processes are exchanged for heads: each process then has all tokens of its own heads,
and keys and values of no others. After it the heads are exchanged for bands again (Ulysses,
arXiv:2309.14509). Both exchanges are one all-to-all each.

The all-to-all is torch's functional one, which ``torch.compile`` traces and CUDA graphs capture.
"""

# Shape suffixes: K tensors that are exchanged together, B batch, F latent frames, C channels, H W
# latent rows and columns, P tokens of a latent frame, L tokens (F * P), N heads, D head dim.

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import _functional_collectives as collectives

from longlive.attention.core import Attend, LayerAttend
from longlive.errors import UserError


@dataclass(frozen=True, slots=True)
class Exchange:
    """Who has which rows and heads, and the way between them.

    Attributes:
        rank: This process.
        rows: Rows of tokens of each process, from the top of the picture.
        columns: Tokens in a row.
        heads: Heads of each process.
        group: Name of the process group.
    """

    rank: int
    rows: tuple[int, ...]
    columns: int
    heads: tuple[int, ...]
    group: str

    @property
    def tokens(self) -> list[int]:
        """Tokens of a latent frame that each process has."""
        return [rows * self.columns for rows in self.rows]

    def heads_for_tokens(self, *tensors_BLND: Tensor) -> tuple[Tensor, ...]:
        """Give all heads of this process's tokens for all tokens of its heads, in their order."""
        x_KBFPND = torch.stack(tensors_BLND).unflatten(2, (-1, self.tokens[self.rank]))
        kinds, batch, frames, _, _, width = x_KBFPND.shape
        shapes = [
            (kinds, batch, frames, tokens, self.heads[self.rank], width) for tokens in self.tokens
        ]
        got = self._swap(x_KBFPND.split(self.heads, 4), shapes)
        return torch.cat(got, 3).flatten(2, 3).unbind(0)

    def tokens_for_heads(self, x_BLND: Tensor) -> Tensor:
        """Give all tokens of this process's heads for all heads of its tokens."""
        x_BFPND = x_BLND.unflatten(1, (-1, sum(self.tokens)))
        batch, frames, _, _, width = x_BFPND.shape
        tokens = self.tokens[self.rank]
        got = self._swap(
            x_BFPND.split(self.tokens, 2),
            [(batch, frames, tokens, heads, width) for heads in self.heads],
        )
        return torch.cat(got, 3).flatten(1, 2)

    def band(self, x_BFCHW: Tensor) -> Tensor:
        """Cut this process's rows out of latents."""
        patch = x_BFCHW.shape[-2] // sum(self.rows)
        return x_BFCHW.split([patch * rows for rows in self.rows], 3)[self.rank]

    def join(self, band_BFCHW: Tensor) -> Tensor:
        """Put the rows of all processes together, in all of them."""
        batch, frames, channels, height, width = band_BFCHW.shape
        patch = height // self.rows[self.rank]
        shapes = [(batch, frames, channels, patch * rows, width) for rows in self.rows]
        return torch.cat(self._swap([band_BFCHW] * len(self.rows), shapes), 3)

    def _swap(self, parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Send a part to each process, and get one of each shape from each."""
        sizes = [torch.Size(shape).numel() for shape in shapes]
        sent = torch.cat([part.reshape(-1) for part in parts])
        given = [part.numel() for part in parts]
        # The operation itself: outside a compiled region its wrapper returns a tensor that waits
        # when it is first used, which a capture need not see.
        got = torch.ops._c10d_functional.all_to_all_single(sent, sizes, given, self.group)
        got = collectives.wait_tensor(got)
        return [part.view(shape) for part, shape in zip(got.split(sizes), shapes, strict=True)]


@dataclass(frozen=True, slots=True)
class ExchangedAttention:
    """Self-attention of one call; keys and values of this process's heads are behind it.

    Attributes:
        attend: Sees all tokens of this process's heads.
        exchange: The way there and back.
    """

    attend: Attend
    exchange: Exchange

    def __getitem__(self, layer: int) -> "ExchangedLayer":
        return ExchangedLayer(self.attend[layer], self.exchange)


@dataclass(frozen=True, slots=True)
class ExchangedLayer:
    """:class:`ExchangedAttention` of one layer.

    Attributes:
        attend: Likewise.
        exchange: Likewise.
    """

    attend: LayerAttend
    exchange: Exchange

    def __call__(self, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
        seen_BLND = self.attend(*self.exchange.heads_for_tokens(q_BLND, k_BLND, v_BLND))
        return self.exchange.tokens_for_heads(seen_BLND)

    def store(self, k_BLND: Tensor, v_BLND: Tensor) -> None:
        """Keep keys and values of this process's heads."""
        self.attend.store(*self.exchange.heads_for_tokens(k_BLND, v_BLND))


def apportion(whole: int, shares: Sequence[int], what: str) -> tuple[int, ...]:
    """Divide a number among processes by their shares; nobody gets nothing.

    Args:
        whole: What is divided.
        shares: Positive numbers.
        what: Its name, in the plural, for the message.

    Raises:
        UserError: If there are more processes than there is to divide.
    """
    if whole < len(shares):
        raise UserError(
            f"{whole} {what} cannot be shared by {len(shares)} processes: set "
            f"tensor_parallel_size to at most {whole}"
        )
    wanted = [whole * share / sum(shares) for share in shares]
    given = [max(1, int(want)) for want in wanted]
    while sum(given) != whole:
        step = 1 if sum(given) < whole else -1
        able = [i for i, has in enumerate(given) if has + step >= 1]
        furthest = max(able, key=lambda i: step * (wanted[i] - given[i]))
        given[furthest] += step
    return tuple(given)
