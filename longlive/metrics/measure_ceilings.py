"""Measures the rates of a device on products of the model's own shapes.

Each product runs alone and many times over; the median counts. Tensors are warm where they fit in a
cache, as they are in the model.
"""

# Shape letters: B batch, C channels, T frames, H rows, W columns, L queries, S keys, N heads,
# D head dim.

import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from longlive.attention.backends import resolve_attention
from longlive.metrics.ceilings import Ceilings

_KERNEL = 3
_WARM_UP_RUNS = 5


@dataclass(frozen=True, slots=True)
class Probes:
    """Sizes of the products that are timed.

    Attributes:
        gemm: Rows, inputs and outputs of a linear.
        attention: Queries, keys, heads and head width.
        convolutions: Channels, frames, rows and columns, in and out alike; 3x3x3, channels last.
        copy_bytes: Size of the buffer that is copied.
        runs: Timed runs of each.
    """

    gemm: tuple[int, int, int]
    attention: tuple[int, int, int, int]
    convolutions: tuple[tuple[int, int, int, int], ...]
    copy_bytes: int
    runs: int


FULL = Probes(
    gemm=(4680, 1536, 8960),
    attention=(4680, 18720, 12, 128),
    convolutions=((96, 4, 480, 832), (384, 4, 60, 104)),
    copy_bytes=1 << 30,
    runs=50,
)
"""The 1.3B model at 480x832, window 12; the decoder's finest and coarsest resolution."""

SMALL = Probes(
    gemm=(256, 512, 512),
    attention=(128, 512, 4, 64),
    convolutions=((16, 4, 24, 24),),
    copy_bytes=1 << 25,
    runs=10,
)
"""For a processor without an accelerator: done within a second or two."""


def measure_ceilings(
    device: torch.device, dtype: torch.dtype, probes: Probes | None = None
) -> Ceilings:
    """Time a linear, attention, convolutions and a copy on a device.

    Several convolutions give one rate: their FLOPs over their time. Attention is that of the
    backend ``auto``.

    Args:
        device: Timed by its own events if it is a GPU, else by the clock on the wall.
        dtype: Type of the numbers.
        probes: What to time; ``FULL`` on a GPU and ``SMALL`` elsewhere by default.
    """
    chosen = probes or (FULL if device.type == "cuda" else SMALL)
    with torch.inference_mode(), _fastest_convolutions(device):
        return Ceilings(
            name=device_name(device),
            dtype=str(dtype).removeprefix("torch."),
            gemm_tflops=_gemm_tflops(chosen, device, dtype),
            attention_tflops=_attention_tflops(chosen, device, dtype),
            conv_tflops=_conv_tflops(chosen, device, dtype),
            copy_tb_s=_copy_tb_s(chosen, device),
        )


def device_name(device: torch.device) -> str:
    """What a device is called: the GPU's model, or the processor's architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def median_seconds(run: Callable[[], object], device: torch.device, runs: int) -> float:
    """Median time of a call in seconds, after some calls that do not count.

    On a GPU all calls are queued before any time is read, so that the host is never waited for.
    """
    for _ in range(_WARM_UP_RUNS):
        run()
    if device.type != "cuda":
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        return median(seconds)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
    with torch.cuda.device(device):
        for start_event, end_event in events:
            start_event.record()
            run()
            end_event.record()
        torch.cuda.synchronize(device)
    return median(start.elapsed_time(end) / 1e3 for start, end in events)


def _gemm_tflops(probes: Probes, device: torch.device, dtype: torch.dtype) -> float:
    rows, inputs, outputs = probes.gemm
    x = torch.randn(rows, inputs, device=device, dtype=dtype)
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
    bias = torch.randn(outputs, device=device, dtype=dtype)
    seconds = median_seconds(lambda: F.linear(x, weight, bias), device, probes.runs)
    return 2 * rows * inputs * outputs / seconds / 1e12


def _attention_tflops(probes: Probes, device: torch.device, dtype: torch.dtype) -> float:
    queries, keys, heads, head_dim = probes.attention
    attention = resolve_attention("auto", device, dtype)

    def tokens(count: int) -> Tensor:
        return torch.randn(1, count, heads, head_dim, device=device, dtype=dtype)

    q_BLND, k_BSND, v_BSND = tokens(queries), tokens(keys), tokens(keys)
    seconds = median_seconds(lambda: attention(q_BLND, k_BSND, v_BSND), device, probes.runs)
    return 4 * queries * keys * heads * head_dim / seconds / 1e12


def _conv_tflops(probes: Probes, device: torch.device, dtype: torch.dtype) -> float:
    flops, seconds = 0.0, 0.0
    layout = torch.channels_last_3d
    for channels, frames, height, width in probes.convolutions:
        shape = (1, channels, frames + _KERNEL - 1, height, width)
        x_BCTHW = torch.randn(shape, device=device, dtype=dtype).to(memory_format=layout)
        conv = torch.nn.Conv3d(
            channels, channels, _KERNEL, padding=(0, 1, 1), device=device, dtype=dtype
        ).to(memory_format=layout)  # type: ignore[call-overload]
        seconds += median_seconds(partial(conv, x_BCTHW), device, probes.runs)
        flops += 2 * frames * height * width * channels**2 * _KERNEL**3
    return flops / seconds / 1e12


def _copy_tb_s(probes: Probes, device: torch.device) -> float:
    source = torch.ones(probes.copy_bytes, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), device, probes.runs)
    return 2 * probes.copy_bytes / seconds / 1e12


def _fastest_convolutions(device: torch.device) -> AbstractContextManager[None]:
    """Let cuDNN try its kernels, as the configurations for a GPU do."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=True)
