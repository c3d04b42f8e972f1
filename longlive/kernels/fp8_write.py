"""Keys and values into an FP8 KV cache: shifted, scaled, rounded to e4m3, put into their slots.

What is stored of a number is ``(number - shift) / scale``. The shift is the mean over tokens of
each channel of a head, so that a channel that is large in every token costs the others nothing
(smooth K, arXiv:2410.02367). Neither has to be undone token by token: softmax does not change when
every key is shifted alike, and a shift of every value is one of every output. So both must stay
what they are for as long as something that was stored with them is read. A call that sees only what
it stores (the passes of the first block, and a recache of all slots) is free to find them anew, and
does; all others use what they find.

A scale belongs to a head. e4m3 is a floating-point format, whose rounding does not care how large a
number is until it leaves the range, and queries and keys of this model are normed. A scale for each
token would have to multiply every score.

Values are stored channel-major, with the tokens of a channel beside each other: Hopper multiplies
eight-bit numbers only where what is summed over lies together, and that is tokens there. Of each
sixteen tokens the values lie in another order (:func:`value_places`): that in which a thread of a
tensor core is given the scores is not the one in which it has to hand in the weights, and by this
they become the same.
"""

# Shape suffixes: B batch, L tokens of the call, N heads, D head dim, F stored latent frames,
# T tokens the cache has room for, K two kinds: keys and values.

from collections.abc import Sequence

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of e4m3."""
SMALLEST_SCALE = 1e-12
"""Zeros would be divided by zero."""
HEADROOM = 4.0
# Later keys may be larger than those the scale was found from. That costs two of the sixteen powers
# of two that e4m3 spans.


def value_places(places: Tensor) -> Tensor:
    """Where along a channel the values of tokens lie: of each sixteen, pairs in another order.

    Pairs 0 1 2 3 4 5 6 7 go to 0 2 4 6 1 3 5 7.

    Args:
        places: Where their keys lie, int64 of any shape.
    """
    return places - places % 16 + (places & 6) * 2 + (places & 8) // 4 + (places & 1)


def rounded(x: Tensor) -> Tensor:
    """Round to e4m3, what is too large to the largest: by itself the cast makes it no number."""
    return x.clamp(-LARGEST, LARGEST).to(E4M3)


def plain_fp8_write(
    new_BLND: Sequence[Tensor],
    k_cache_BNTD: Tensor,
    v_cache_BNDT: Tensor,
    shift_KBND: Tensor,
    scale_KBN: Tensor,
    slots_F: Tensor,
    slots_read: int,
) -> None:
    """Store keys and values.

    Args:
        new_BLND: New keys, rotated, and new values, of whole latent frames.
        k_cache_BNTD: Keys of the video, e4m3.
        v_cache_BNDT: Values of the video, e4m3.
        shift_KBND: What is subtracted, float32.
        scale_KBN: What is divided by, float32.
        slots_F: int64 slots, one for each latent frame.
        slots_read: Leading slots that the call sees; as many as it stores if it sees nothing else,
            and then shift and scale are found anew.
    """
    find_scales(new_BLND, shift_KBND, scale_KBN, len(slots_F), slots_read)
    if not len(slots_F):
        return
    tokens = new_BLND[0].shape[1] // len(slots_F)
    places_L = (slots_F[:, None] * tokens + torch.arange(tokens, device=slots_F.device)).flatten()
    caches = (
        (k_cache_BNTD, (0, 2, 1, 3), places_L),
        (v_cache_BNDT, (0, 2, 3, 1), value_places(places_L)),
    )
    for kind, (x_BLND, (cache, axes, where_L)) in enumerate(zip(new_BLND, caches, strict=True)):
        shift_BLND, scale_BLND = shift_KBND[kind, :, None], scale_KBN[kind, :, None, :, None]
        values = rounded((x_BLND.float() - shift_BLND) / scale_BLND).permute(axes)
        # As bytes, since not every device copies this type by an index.
        values, stored = values.contiguous().view(torch.uint8), cache.view(torch.uint8)
        stored.index_copy_(axes.index(1), where_L, values)


def sees_only_itself(slots_written: int, slots_read: int) -> bool:
    """Whether a call sees nothing but what it stores, and may therefore find its own scales."""
    return 0 < slots_read == slots_written


def find_scales(
    new_BLND: Sequence[Tensor],
    shift_KBND: Tensor,
    scale_KBN: Tensor,
    slots_written: int,
    slots_read: int,
) -> None:
    """Find shift and scale of a call that sees only what it stores; of another leave them."""
    if not sees_only_itself(slots_written, slots_read):
        return
    for kind, x_BLND in enumerate(new_BLND):
        shift_BND = x_BLND.float().mean(1)
        peak_BN = (x_BLND - shift_BND[:, None]).abs().amax((1, 3))
        shift_KBND[kind].copy_(shift_BND)
        scale_KBN[kind].copy_((peak_BN * (HEADROOM / LARGEST)).clamp_min(SMALLEST_SCALE))


@torch.library.custom_op(
    "longlive::fp8_write",
    mutates_args=("k_cache_BNTD", "v_cache_BNDT", "shift_KBND", "scale_KBN"),
)
def fp8_write(
    new_BLND: Sequence[Tensor],
    k_cache_BNTD: Tensor,
    v_cache_BNDT: Tensor,
    shift_KBND: Tensor,
    scale_KBN: Tensor,
    slots_F: Tensor,
    slots_read: int,
    emulates: bool,
) -> None:
    """The same as one operation; ``emulates`` is without a kernel, on any device."""
    cache = k_cache_BNTD, v_cache_BNDT, shift_KBND, scale_KBN
    plain_fp8_write(new_BLND, *cache, slots_F, slots_read)


@fp8_write.register_kernel("cuda")
def _(
    new_BLND: Sequence[Tensor],
    k_cache_BNTD: Tensor,
    v_cache_BNDT: Tensor,
    shift_KBND: Tensor,
    scale_KBN: Tensor,
    slots_F: Tensor,
    slots_read: int,
    emulates: bool,
) -> None:
    cache = k_cache_BNTD, v_cache_BNDT, shift_KBND, scale_KBN
    if emulates:
        plain_fp8_write(new_BLND, *cache, slots_F, slots_read)
        return
    from longlive.kernels.fp8_write_triton import triton_fp8_write

    triton_fp8_write(new_BLND, *cache, slots_F, slots_read)


@fp8_write.register_fake
def _(
    new_BLND: Sequence[Tensor],
    k_cache_BNTD: Tensor,
    v_cache_BNDT: Tensor,
    shift_KBND: Tensor,
    scale_KBN: Tensor,
    slots_F: Tensor,
    slots_read: int,
    emulates: bool,
) -> None:
    return None
