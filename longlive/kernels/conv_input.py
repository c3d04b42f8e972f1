"""What a temporal convolution of the streaming VAE is given, written in one pass.

Such a convolution sees its frames behind the last two of the call before. Step by step that takes
a bias, a sum with the shortcut, a norm, SiLU and a concatenation, each of which reads and writes
everything. Here every number is read once and written once to where the convolution will read it;
a sum that a later shortcut needs is written on the way.

Shapes: B batch, C channels, T frames, S = 2 + T frames with the two before them, H rows, W columns.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

HISTORY = 2
"""Frames before its own that a convolution sees."""
LEAST_LENGTH = 1e-12
"""What the length of a vector is taken to be at least."""


class Addends(NamedTuple):
    """A sum that has not been computed yet.

    Attributes:
        x_BCTHW: What a convolution without its bias returned, or anything else.
        residual_BCTHW: The shortcut beside it.
        bias_C: The bias, or the sum of those of both.
    """

    x_BCTHW: Tensor
    residual_BCTHW: Tensor | None = None
    bias_C: Tensor | None = None

    def total(self) -> Tensor:
        """Compute the sum, in float32 and rounded once; ``[B, C, T, H, W]``, channels-last."""
        if self.is_total:
            return self.x_BCTHW.contiguous(memory_format=torch.channels_last_3d)
        return _call(self, None, None, pads=False)[0]

    @property
    def is_total(self) -> bool:
        """Whether there is nothing to add."""
        return self.residual_BCTHW is None and self.bias_C is None


def conv_input(
    addends: Addends, history_BCTHW: Tensor | None, gamma_C: Tensor | None = None
) -> Tensor:
    """Return SiLU(norm(sum)) behind its history.

    The vector of channels at each position is scaled to root mean square ``gamma``, as
    ``ChannelNorm`` does. All is computed in float32 and rounded once.

    Args:
        addends: Of the sum.
        history_BCTHW: ``[B, C, 2, H, W]``; zeros if None.
        gamma_C: Of the norm; without it the sum itself is what is returned.

    Returns:
        ``[B, C, S, H, W]``, channels-last. Its last two frames are the next call's history.
    """
    padded_BCSHW: Tensor = _call(addends, history_BCTHW, gamma_C, pads=True, keeps_sum=False)[0]
    return padded_BCSHW


def conv_input_and_sum(
    addends: Addends, history_BCTHW: Tensor | None, gamma_C: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what :func:`conv_input` does, and the sum ``[B, C, T, H, W]``."""
    if addends.is_total:
        return conv_input(addends, history_BCTHW, gamma_C), addends.total()
    padded_BCSHW, sum_BCTHW = _call(addends, history_BCTHW, gamma_C, pads=True, keeps_sum=True)
    return padded_BCSHW, sum_BCTHW


def plain_conv_input(
    x_BCTHW: Tensor,
    residual_BCTHW: Tensor | None,
    bias_C: Tensor | None,
    history_BCTHW: Tensor | None,
    gamma_C: Tensor | None,
    pads: bool,
    keeps_sum: bool,
) -> list[Tensor]:
    """Compute what the kernel does, in steps: the result, and behind it the sum if it is kept.

    Args:
        x_BCTHW: The first addend.
        residual_BCTHW: The second one.
        bias_C: The third one.
        history_BCTHW: Of :func:`conv_input`.
        gamma_C: Likewise.
        pads: Whether the result begins with the history, or zeros.
        keeps_sum: Whether the sum is wanted, too.
    """
    sum_BCTHW = _wide_sum(x_BCTHW, residual_BCTHW, bias_C)
    value_BCTHW = sum_BCTHW
    if gamma_C is not None:
        length = torch.linalg.vector_norm(sum_BCTHW, dim=1, keepdim=True).clamp_min(LEAST_LENGTH)
        scale_C111 = (gamma_C.to(sum_BCTHW.dtype) * len(gamma_C) ** 0.5).view(-1, 1, 1, 1)
        value_BCTHW = F.silu(sum_BCTHW / length * scale_C111)
    results = empty_results(x_BCTHW, pads=pads, keeps_sum=keeps_sum)
    if pads:
        start_BCTHW = results[0][:, :, :HISTORY]
        start_BCTHW.zero_() if history_BCTHW is None else start_BCTHW.copy_(history_BCTHW)
    results[0][:, :, -x_BCTHW.shape[2] :].copy_(value_BCTHW)
    if keeps_sum:
        results[1].copy_(sum_BCTHW)
    return results


def empty_results(x_BCTHW: Tensor, *, pads: bool, keeps_sum: bool) -> list[Tensor]:
    """What :func:`plain_conv_input` returns, before it is written."""
    batch, channels, frames, height, width = x_BCTHW.shape
    lengths = [HISTORY + frames if pads else frames, *([frames] if keeps_sum else [])]
    return [
        torch.empty(
            (batch, channels, length, height, width),
            dtype=x_BCTHW.dtype,
            device=x_BCTHW.device,
            memory_format=torch.channels_last_3d,
        )
        for length in lengths
    ]


def _wide_sum(x_BCTHW: Tensor, residual_BCTHW: Tensor | None, bias_C: Tensor | None) -> Tensor:
    wide = torch.promote_types(x_BCTHW.dtype, torch.float32)
    sum_BCTHW = x_BCTHW.to(wide)
    if residual_BCTHW is not None:
        sum_BCTHW = sum_BCTHW + residual_BCTHW
    if bias_C is not None:
        sum_BCTHW = sum_BCTHW + bias_C.to(wide).view(-1, 1, 1, 1)
    return sum_BCTHW


def _call(
    addends: Addends,
    history_BCTHW: Tensor | None,
    gamma_C: Tensor | None,
    *,
    pads: bool,
    keeps_sum: bool = False,
) -> list[Tensor]:
    def laid_out(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.contiguous(memory_format=torch.channels_last_3d)

    x_BCTHW, residual_BCTHW, bias_C = addends
    results: list[Tensor] = _operation(
        laid_out(x_BCTHW),
        laid_out(residual_BCTHW),
        bias_C,
        laid_out(history_BCTHW),
        gamma_C,
        pads,
        keeps_sum,
    )
    return results


_operation = torch.library.custom_op("longlive::conv_input", plain_conv_input, mutates_args=())


@_operation.register_fake
def _(
    x_BCTHW: Tensor,
    residual_BCTHW: Tensor | None,
    bias_C: Tensor | None,
    history_BCTHW: Tensor | None,
    gamma_C: Tensor | None,
    pads: bool,
    keeps_sum: bool,
) -> list[Tensor]:
    return empty_results(x_BCTHW, pads=pads, keeps_sum=keeps_sum)


@_operation.register_kernel("cuda")
def _(
    x_BCTHW: Tensor,
    residual_BCTHW: Tensor | None,
    bias_C: Tensor | None,
    history_BCTHW: Tensor | None,
    gamma_C: Tensor | None,
    pads: bool,
    keeps_sum: bool,
) -> list[Tensor]:
    from longlive.kernels.conv_input_triton import triton_conv_input

    return triton_conv_input(
        x_BCTHW, residual_BCTHW, bias_C, history_BCTHW, gamma_C, pads, keeps_sum
    )
