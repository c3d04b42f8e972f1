"""A linear layer that multiplies in eight bits: FP8 (e4m3) or int8, plain torch operations.

Weights are divided by a scale and rounded once, activations in every call by a scale of their own
values at that moment, so nothing has to be calibrated. With ``row`` a scale belongs to an output
row of the weight and to a token of the activation, with ``tensor`` to all of it:

    x W^T  =  (x / s_x) (W / s_w)^T  *  s_x s_w        s = largest magnitude / largest value

The product in brackets is one call of ``torch._scaled_mm`` or ``torch._int_mm``. These are the
kernels that torchao calls too; without its tensor subclass a layer is traced, compiled and captured
like any other, no global setting of the compiler changes and nothing has to be installed. What is
around the product is left to ``torch.compile``, which joins it to the operation before; eager, it
costs more than the product saves. The scale of a whole activation is a reduction that has to end
before the first value can be rounded: one kernel more than with a scale for each token.

Scales of the weights are found in float32. FP8 products are added up in the tensor cores with some
14 bits (fast accumulation) and come out in bfloat16, which is far below the error of eight bits.
"""

# Shape suffixes: M tokens of the whole batch, I inputs, O outputs.

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["fp8", "int8"]
Granularity = Literal["row", "tensor"]

MULTIPLE = 16
"""Of which the kernels want inputs and outputs to be."""
# All zeros would be divided by zero.
_SMALLEST_SCALE = 1e-12


class EightBits(NamedTuple):
    """A number format.

    Attributes:
        dtype: Its type.
        largest: Its largest magnitude; int8 is used symmetrically.
    """

    dtype: torch.dtype
    largest: float


FORMATS: dict[Kind, EightBits] = {
    "fp8": EightBits(torch.float8_e4m3fn, 448.0),
    "int8": EightBits(torch.int8, 127.0),
}


def quantize(x: Tensor, kind: Kind, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """Round to eight bits, to the nearest value.

    Args:
        x: Rows, ``[rows, I]``.
        kind: Format.
        granularity: One scale for each row, or one for all.

    Returns:
        Values of the format, as ``x``; and the scales that give ``x`` back when they multiply
        them, float32 ``[rows, 1]`` or ``[]``.
    """
    dtype, largest = FORMATS[kind]
    wide = x.float()
    size = wide.abs()
    peak = size.amax(-1, keepdim=True) if granularity == "row" else size.amax()
    # Above `largest` by rounding at most, where the cast gives `largest`: nothing to clamp.
    scale = (peak / largest).clamp_min(_SMALLEST_SCALE)
    scaled = wide / scale
    return (scaled.round() if kind == "int8" else scaled).to(dtype), scale


class QuantizedLinear(nn.Module):
    """Takes the place of an ``nn.Linear`` for inference.

    Args:
        linear: Its weight is rounded now and not kept; inputs and outputs are multiples of 16.
        kind: Format of weights and activations.
        granularity: What shares a scale.
        emulates: Multiply the rounded values in float32, on any device. The same up to the
            rounding of sums, and no faster.
    """

    scale: Tensor

    def __init__(
        self,
        linear: nn.Linear,
        kind: Kind,
        granularity: Granularity = "row",
        emulates: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind: Kind = kind
        self.granularity: Granularity = granularity
        self.emulates = emulates
        values, scale = quantize(linear.weight.detach(), kind, granularity)
        # A parameter, since captured graphs ask a model's parameters whether it is still the same.
        self.weight = nn.Parameter(values, requires_grad=False)
        # [1, O], as it multiplies the output.
        self.register_buffer("scale", scale.t().contiguous())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Multiply ``[..., I]`` to ``[..., O]``, in x's type."""
        x_MI = x.reshape(-1, self.in_features).contiguous()
        y_MO = self.multiply(*quantize(x_MI, self.kind, self.granularity))
        return y_MO.to(x.dtype).unflatten(0, x.shape[:-1])

    def multiply(self, values_MI: Tensor, scale: Tensor) -> Tensor:
        """Multiply what :func:`quantize` returned, to ``[M, O]`` of some floating-point type."""
        if self.emulates:
            return self._emulated(values_MI, scale)
        return self._fp8(values_MI, scale) if self.kind == "fp8" else self._int8(values_MI, scale)

    @property
    def settings(self) -> tuple[Kind, Granularity, bool]:
        """Format, what shares a scale, and whether it is emulated."""
        return self.kind, self.granularity, self.emulates

    def extra_repr(self) -> str:
        how = ", emulated" if self.emulates else ""
        return f"{self.in_features}, {self.out_features}, {self.kind} by {self.granularity}{how}"

    def _fp8(self, values_MI: Tensor, scale: Tensor) -> Tensor:
        return torch._scaled_mm(
            values_MI,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale,
            bias=None if self.bias is None else self.bias.to(torch.bfloat16),
            # The only type of results that scales by row have on every GPU with FP8.
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

    def _int8(self, values_MI: Tensor, scale: Tensor) -> Tensor:
        sums_MO = torch._int_mm(values_MI, self.weight.t())
        y_MO = sums_MO.float() * scale * self.scale
        return y_MO if self.bias is None else y_MO + self.bias.float()

    def _emulated(self, values_MI: Tensor, scale: Tensor) -> Tensor:
        weight_OI = self.weight.float() * self.scale.t()
        bias = None if self.bias is None else self.bias.float()
        return F.linear(values_MI.float() * scale, weight_OI, bias)
