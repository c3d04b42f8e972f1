"""Inputs of the kernels, of sizes that fill no tile; and a program that compares kernels on a CPU.

    TRITON_INTERPRET=1 python tests/kernels/made_inputs.py

Triton decides at import whether kernels are interpreted, so that is a process of its own.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from longlive.kernels.conv_input import plain_conv_input
from longlive.kernels.interleave import plain_interleave_frames, plain_interleave_phases

# That of the operations in float32, and of one rounding to fewer bits.
ROUNDING = {
    torch.float32: 5e-6,
    torch.bfloat16: 5e-6 + 2**-8,
    torch.float16: 5e-6 + 2**-11,
}
CHANNELS = (1, 6, 96)
FLAGS = ("residual", "bias", "history", "gamma", "keeps_sum")
ALL: list[dict[str, bool]] = [
    *(dict(zip(FLAGS, flags, strict=True)) for flags in product([True, False], repeat=5)),
    *({"residual": True, "bias": bias, "pads": False} for bias in (True, False)),
]
USED: list[dict[str, bool]] = [
    {"residual": True, "bias": True, "history": True, "gamma": True, "keeps_sum": True},
    {"bias": True, "gamma": True},
    {"residual": True, "bias": True, "pads": False},
]


def last(*shape: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)


def conv_inputs(
    channels: int,
    dtype: torch.dtype,
    device: str = "cpu",
    sides: tuple[int, int] = (5, 7),
    frames: int = 3,
    *,
    residual: bool = False,
    bias: bool = False,
    history: bool = False,
    gamma: bool = False,
    pads: bool = True,
    keeps_sum: bool = False,
) -> tuple[Any, ...]:
    def of(frames: int) -> Tensor:
        return last(2, channels, frames, *sides, dtype=dtype, device=device)

    x = of(frames)
    # A vector without a length.
    x[0, :, 0, 0, 0] = 0
    return (
        x,
        of(frames) if residual else None,
        torch.randn(channels, device=device).to(dtype) if bias else None,
        of(2) if history else None,
        torch.randn(channels, device=device).to(dtype) if gamma else None,
        pads,
        keeps_sum,
    )


def exactly(plain: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Tensor]:
    """What a plain version makes of the same numbers in float64."""
    wide = [each.double() if isinstance(each, Tensor) else each for each in arguments]
    out = plain(*wide)
    return out if isinstance(out, list) else [out]


def worst(got: list[Tensor] | Tensor, expected: list[Tensor]) -> float:
    """The largest difference, relative to the number where that is more than 1."""
    got = got if isinstance(got, list) else [got]
    assert [one.shape for one in got] == [one.shape for one in expected]
    for one in got:
        layout = torch.channels_last if one.ndim == 4 else torch.channels_last_3d
        assert one.is_contiguous(memory_format=layout)
    pairs = zip(got, expected, strict=True)
    return max(
        float(((mine.double() - theirs).abs() / theirs.abs().clamp_min(1)).max())
        for mine, theirs in pairs
    )


def differences(versions: dict[str, Callable[..., Any]], device: str) -> Iterator[tuple[str, Any]]:
    """Name, type and largest difference from float64 of each case.

    Args:
        versions: To test, by the names of the operations.
        device: Where.
    """
    for dtype, channels in product(ROUNDING, CHANNELS):
        conv_input = versions["conv_input"]
        for case in ALL if (dtype, channels) == (torch.float32, 6) else USED:
            arguments = conv_inputs(channels, dtype, device, **case)
            error = worst(conv_input(*arguments), exactly(plain_conv_input, arguments))
            yield f"conv_input, {channels} channels, {dtype}, {case}", (dtype, error)
        for name, plain, shape in (
            ("interleave_frames", plain_interleave_frames, (2, 2 * channels, 3, 5, 7)),
            ("interleave_phases", plain_interleave_phases, (3, 4 * channels, 6, 4)),
        ):
            for has_bias in (True, False):
                x = last(*shape, dtype=dtype, device=device)
                bias = torch.randn(shape[1], device=device).to(dtype) if has_bias else None
                error = worst(versions[name](x, bias), exactly(plain, (x, bias)))
                yield f"{name}, {channels} channels, {dtype}, bias {has_bias}", (dtype, error)


def check(versions: dict[str, Callable[..., Any]], device: str) -> int:
    """Compare each case with float64; return how many there were."""
    count = 0
    for name, (dtype, error) in differences(versions, device):
        assert error <= ROUNDING[dtype], f"{name}: {error}"
        count += 1
    return count


def kernels() -> dict[str, Callable[..., Any]]:
    from longlive.kernels.conv_input_triton import triton_conv_input
    from longlive.kernels.interleave_triton import (
        triton_interleave_frames,
        triton_interleave_phases,
    )

    return {
        "conv_input": triton_conv_input,
        "interleave_frames": triton_interleave_frames,
        "interleave_phases": triton_interleave_phases,
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    # The interpreter does not round to bfloat16, it cuts off.
    ROUNDING[torch.bfloat16] *= 2
    assert check(kernels(), "cpu") > 50
