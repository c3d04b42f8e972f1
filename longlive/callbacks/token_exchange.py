"""Attention whose heads are shared by processes, while each has some of the tokens.

Everything in a transformer but the self-attention works on each token alone. So a process is given
a band of rows of every latent frame and computes only their tokens. Before the self-attention the
bands of all processes are exchanged for heads: each process then has all tokens of its own heads,
and keys and values of no others. After it the heads are exchanged for bands again (Ulysses,
arXiv:2309.14509). Both exchanges are one all-to-all each.

A process may keep keys and values of all heads, so that it can do without the others: what it is
given of them is not cut by heads then.

The all-to-all is torch's functional one, which ``torch.compile`` traces and CUDA graphs capture.
"""

# Shape suffixes: K tensors that are exchanged together, B batch, F latent frames, C channels, H W
# latent rows and columns, P tokens of a latent frame, L tokens (F * P), N heads, D head dim.

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import _functional_collectives as collectives

from longlive.attention.core import LayerWindow, WindowAttention
from longlive.attention.kv_cache import KVCache
from longlive.errors import UserError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Exchange:
    """Who has which rows and heads, and the way between them.

    Attributes:
        rank: This process.
        rows: Rows of tokens of each process, from the top of the picture.
        columns: Tokens in a row.
        heads: Heads of each process, whose queries it has.
        keeps_all: Whether a process keeps keys and values of all heads, and not of its own only.
        group: Name of the process group.
    """

    rank: int
    rows: tuple[int, ...]
    columns: int
    heads: tuple[int, ...]
    keeps_all: tuple[bool, ...]
    group: str

    @property
    def tokens(self) -> list[int]:
        """Tokens of a latent frame that each process has."""
        return [rows * self.columns for rows in self.rows]

    def own(self, process: int) -> slice:
        """Heads whose queries a process has."""
        first = sum(self.heads[:process])
        return slice(first, first + self.heads[process])

    def kept(self, process: int) -> slice:
        """Heads whose keys and values a process keeps."""
        return slice(0, sum(self.heads)) if self.keeps_all[process] else self.own(process)

    def queries_keys_values(
        self, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor
    ) -> tuple[Tensor, ...]:
        """Give all heads of this process's tokens for all tokens of the heads that it has."""
        return self._all_tokens((q_BLND, self.own), (k_BLND, self.kept), (v_BLND, self.kept))

    def keys_values(self, k_BLND: Tensor, v_BLND: Tensor) -> tuple[Tensor, ...]:
        """The same without queries."""
        return self._all_tokens((k_BLND, self.kept), (v_BLND, self.kept))

    def tokens_for_heads(self, x_BLND: Tensor) -> Tensor:
        """Give all tokens of this process's heads for all heads of its tokens."""
        x_BFPND = x_BLND.unflatten(1, (-1, sum(self.tokens)))
        batch, frames, _, _, width = x_BFPND.shape
        tokens = self.tokens[self.rank]
        got = self._swap(
            [[part] for part in x_BFPND.split(self.tokens, 2)],
            [[(batch, frames, tokens, heads, width)] for heads in self.heads],
            x_BLND,
        )
        return torch.cat([part for [part] in got], 3).flatten(1, 2)

    def band(self, x_BFCHW: Tensor) -> Tensor:
        """Cut this process's rows out of latents."""
        patch = x_BFCHW.shape[-2] // sum(self.rows)
        return x_BFCHW.split([patch * rows for rows in self.rows], 3)[self.rank]

    def join(self, band_BFCHW: Tensor) -> Tensor:
        """Put the rows of all processes together, in all of them."""
        batch, frames, channels, height, width = band_BFCHW.shape
        patch = height // self.rows[self.rank]
        shapes = [[(batch, frames, channels, patch * rows, width)] for rows in self.rows]
        got = self._swap([[band_BFCHW]] * len(self.rows), shapes, band_BFCHW)
        return torch.cat([part for [part] in got], 3)

    def keys_to_first(self, cache: KVCache, slots_F: Tensor) -> None:
        """Copy what the second process has in some slots to the first one, of its heads.

        Args:
            cache: Of this process; the second one keeps all heads.
            slots_F: int64 slots on its device.
        """
        shapes = cache.part_shapes(len(slots_F))
        part = cache.part(slots_F, self.own(0)) if self.rank == 1 else ()
        got = self._to_first(part, shapes, cache.k.new_empty(0, dtype=cache.part_dtype))
        if self.rank == 0:
            cache.put_part(slots_F, tuple(got))

    def velocity_to_first(self, velocity_BFCHW: Tensor | None, like_BFCHW: Tensor) -> Tensor:
        """Return the velocity that all processes but the first one have computed.

        Args:
            velocity_BFCHW: None in the first process.
            like_BFCHW: Of the same shape and type.
        """
        assert velocity_BFCHW is None or velocity_BFCHW.dtype == like_BFCHW.dtype
        part = (velocity_BFCHW,) if velocity_BFCHW is not None and self.rank == 1 else ()
        got = self._to_first(part, [tuple(like_BFCHW.shape)], like_BFCHW)
        if velocity_BFCHW is None:
            return got[0]
        return velocity_BFCHW

    def _to_first(
        self, part: Sequence[Tensor], shapes: Sequence[Shape], like: Tensor
    ) -> list[Tensor]:
        """Send tensors from the second process to the first one; the others take part."""
        sent: list[Sequence[Tensor]] = [[] for _ in self.rows]
        wanted: list[Sequence[Shape]] = [[] for _ in self.rows]
        if self.rank == 0:
            wanted[1] = shapes
        elif self.rank == 1:
            sent[0] = part
        return self._swap(sent, wanted, like)[1]

    def _all_tokens(self, *given: tuple[Tensor, Callable[[int], slice]]) -> tuple[Tensor, ...]:
        """Send each process its heads of tensors ``[B, L, N, D]``; all tokens of those here."""
        own_tokens = self.tokens[self.rank]
        cut = [(x_BLND.unflatten(1, (-1, own_tokens)), heads) for x_BLND, heads in given]
        batch, frames, _, _, width = cut[0][0].shape
        parts = [
            [x_BFPND[:, :, :, heads(process)] for x_BFPND, heads in cut]
            for process in range(len(self.rows))
        ]
        kept = [heads(self.rank) for _, heads in cut]
        shapes = [
            [(batch, frames, tokens, here.stop - here.start, width) for here in kept]
            for tokens in self.tokens
        ]
        got = self._swap(parts, shapes, given[0][0])
        return tuple(torch.cat(pieces, 2).flatten(1, 2) for pieces in zip(*got, strict=True))

    def _swap(
        self,
        parts: Sequence[Sequence[Tensor]],
        shapes: Sequence[Sequence[Shape]],
        like: Tensor,
    ) -> list[list[Tensor]]:
        """Send some tensors to each process, and get some of known shapes from each.

        Args:
            parts: For each process.
            shapes: Of each process.
            like: A tensor of their type.
        """
        sizes = [[torch.Size(shape).numel() for shape in some] for some in shapes]
        flat = [part.reshape(-1) for some in parts for part in some]
        sent = torch.cat(flat) if flat else like.new_empty(0)
        given = [sum(part.numel() for part in some) for some in parts]
        taken = [sum(some) for some in sizes]
        # The operation itself: outside a compiled region its wrapper returns a tensor that waits
        # when it is first used, which a capture need not see.
        got = torch.ops._c10d_functional.all_to_all_single(sent, taken, given, self.group)
        got = collectives.wait_tensor(got)
        return [
            [part.view(shape) for part, shape in zip(whole.split(some), wanted, strict=True)]
            if wanted
            else []
            for whole, some, wanted in zip(got.split(taken), sizes, shapes, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class ExchangedAttention:
    """Self-attention of one call; keys and values that this process keeps are behind it.

    Attributes:
        attend: Sees all tokens of those heads.
        exchange: The way there and back.
    """

    attend: WindowAttention
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

    attend: LayerWindow
    exchange: Exchange

    def __call__(self, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
        exchange = self.exchange
        q_BLND, k_BLND, v_BLND = exchange.queries_keys_values(q_BLND, k_BLND, v_BLND)
        if exchange.keeps_all[exchange.rank]:
            own = exchange.own(exchange.rank)
            return exchange.tokens_for_heads(self.attend.attend_with(q_BLND, k_BLND, v_BLND, own))
        return exchange.tokens_for_heads(self.attend(q_BLND, k_BLND, v_BLND))

    def store(self, k_BLND: Tensor, v_BLND: Tensor) -> None:
        """Keep keys and values."""
        self.attend.store(*self.exchange.keys_values(k_BLND, v_BLND))


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
