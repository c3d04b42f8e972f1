"""The Triton kernel of :mod:`longlive.kernels.gelu_fp8`; imports Triton."""

# What a kernel is given has no type that Python knows.
# mypy: disable-error-code="no-untyped-def,assignment"

import math

import triton
import triton.language as tl
from torch import Tensor

from longlive.kernels.fp8_write import LARGEST, SMALLEST_SCALE
from longlive.kernels.gelu_fp8 import empty_results

_CHUNK = 1024
_WARPS = 4
_LARGEST = tl.constexpr(LARGEST)
_SMALLEST_SCALE = tl.constexpr(SMALLEST_SCALE)
_SLOPE = tl.constexpr(2 * math.sqrt(2 / math.pi))
_CUBIC = tl.constexpr(0.044715)


def triton_gelu_fp8(x_LI: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``plain_gelu_fp8`` in one launch: a program holds a token."""
    values_LI, scale_L1 = empty_results(x_LI)
    assert x_LI.stride(1) == 1
    if len(x_LI):
        _gelu_fp8[(len(x_LI),)](
            *(x_LI, x_LI.stride(0), values_LI, scale_L1),
            INPUTS=x_LI.shape[1],
            CHUNK=_CHUNK,
            num_warps=_WARPS,
        )
    return values_LI, scale_L1


@triton.jit
def _gelu_fp8(x, stride, values, scales, INPUTS: tl.constexpr, CHUNK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, CHUNK)
    peaks = tl.zeros([CHUNK], tl.float32)
    chunks = ()
    for start in tl.static_range(0, INPUTS, CHUNK):
        is_there = start + columns < INPUTS
        given = tl.load(x + token * stride + start + columns, mask=is_there, other=0.0)
        wide = given.to(tl.float32)
        # (1 + tanh(u)) / 2 is the logistic function of 2 u.
        slope = _SLOPE * (wide + _CUBIC * wide * wide * wide)
        made = wide / (1.0 + tl.exp(-slope))
        peaks = tl.maximum(peaks, tl.abs(made))
        chunks = chunks + (made,)
    scale = tl.maximum(tl.max(peaks, 0) / _LARGEST, _SMALLEST_SCALE)
    for index in tl.static_range((INPUTS + CHUNK - 1) // CHUNK):
        place = index * CHUNK + columns
        scaled = tl.clamp(chunks[index] / scale, -_LARGEST, _LARGEST)
        tl.store(values + token * INPUTS + place, scaled.to(tl.float8e4nv), mask=place < INPUTS)
    tl.store(scales + token, scale)
