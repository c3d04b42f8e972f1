"""Milliseconds of a steady step of the VAE's streaming decoder, one row for each way to run it.

    python tools/profile_decoder.py                              # the full size, on a GPU
    python tools/profile_decoder.py --size tiny --device cpu     # to see that it works
    python tools/profile_decoder.py --variants fused+folded --kernels      # where the time goes
    python tools/profile_decoder.py --tiles 32:4 16:4 32:8       # the kernels alone, by tile

A step decodes a block of latents behind others, to frames in [0, 1]. Every variant is timed as it
is and as one CUDA graph. The error is that of the decoder's output against eager float32 on a small
picture: the largest difference over the largest value. The weights are random. Rows are printed
as they come; a variant that fails is a row that says why, and what does not fit into ``--seconds``
is left out. The last line is JSON.
"""

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from profile_pass import milliseconds
from torch import Tensor

from longlive.callbacks.capture_decoder import CapturedDecoder, CaptureDecoder
from longlive.callbacks.compile_decoder import CompileDecoder
from longlive.callbacks.fold_upsampling import FoldUpsampling
from longlive.callbacks.fuse_decoder import FuseDecoder
from longlive.callbacks.graph_recorder import GraphRecorder
from longlive.geometry import SPATIAL_STRIDE
from longlive.kernels.conv_input import Addends, conv_input, conv_input_and_sum
from longlive.kernels.interleave import interleave_frames, interleave_phases
from longlive.kernels.tiles import TILES, Tile, padded_channels
from longlive.models.vae import WanVAE
from longlive.models.vae_layers import use_channels_last
from longlive.models.vae_networks import SIZES
from longlive.rollout.hooks import CallbackHooks
from longlive.weights.synthetic import fill_synthetic

WARM_UP = 3
SMALL = (6, 8)
"""Latent rows and columns of the picture on which errors are measured."""
LEVELS = ((1, 12), (2, 12), (4, 6), (4, 3))
"""Channels in units of the width, and frames for three latents; from full size down by halves."""

Callbacks = Callable[[argparse.Namespace], list[pl.Callback]]


def _compiled(options: argparse.Namespace) -> CompileDecoder:
    return CompileDecoder(mode=options.mode, backend=options.backend, rehearses=False)


VARIANTS: dict[str, Callbacks] = {
    "eager": lambda options: [],
    "channels-last": lambda options: [],
    "folded": lambda options: [FoldUpsampling()],
    "fused": lambda options: [FuseDecoder(rehearses=False)],
    "fused+folded": lambda options: [FuseDecoder(rehearses=False), FoldUpsampling()],
    "compiled": lambda options: [_compiled(options)],
    "compiled+folded": lambda options: [_compiled(options), FoldUpsampling()],
    "fused+folded+compiled": lambda options: [
        FuseDecoder(rehearses=False),
        FoldUpsampling(),
        _compiled(options),
    ],
}


def vae_of(options: argparse.Namespace, variant: str) -> WanVAE:
    """A VAE of random weights, always the same, laid out as the variant wants it."""
    with torch.device("meta"):
        vae = WanVAE(options.size)
    fill_synthetic(vae, dtype=options.dtype, device=options.device)
    vae.eval().requires_grad_(False)
    if variant != "eager":
        use_channels_last(vae)
    return vae


def latents_of(options: argparse.Namespace, rows: int, columns: int) -> Tensor:
    shape = (1, options.latents, 16, rows, columns)
    return torch.randn(shape, dtype=options.dtype, device=options.device)


def decoder_of(vae: WanVAE, callbacks: list[pl.Callback]) -> Any:
    return CallbackHooks(callbacks, vae).configure_decoder(vae.open_stream())


def error_of(vae: WanVAE, callbacks: list[pl.Callback], options: argparse.Namespace) -> float:
    """Largest difference from eager float32 over the largest value, in three small blocks."""
    exact_vae = vae_of(options, "eager").float()
    torch.manual_seed(1)
    pieces = [latents_of(options, *SMALL) for _ in range(3)]
    exact, stream = exact_vae.open_stream(), decoder_of(vae, callbacks)
    difference = largest = 0.0
    for piece in pieces:
        expected = exact.decode_raw(piece.float())
        difference = max(difference, float((stream.decode_raw(piece) - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    return difference / largest


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kernels_of(decode: Callable[[], object], device: torch.device) -> str:
    """A table of the kernels of one step that take longest."""
    activity = torch.profiler.ProfilerActivity
    on_gpu = device.type == "cuda"
    with torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU]) as profile:
        decode()
        synchronize(device)
    key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    table: str = profile.key_averages().table(key, row_limit=25, max_name_column_width=90)
    return table


def time_steps(decoder: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Time the steady step of a decoder that has decoded nothing."""
    device = options.device
    latents = latents_of(options, *(side // SPATIAL_STRIDE for side in options.size_px))
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    for _ in range(WARM_UP):
        decoder.decode(latents)
    synchronize(device)
    row: dict[str, Any] = {"first_s": time.perf_counter() - start}
    if isinstance(decoder, CapturedDecoder) and decoder.graphs.failure:
        raise RuntimeError(f"not captured: {decoder.graphs.failure}")
    start = time.perf_counter()
    times = milliseconds(lambda: decoder.decode(latents), device, options.repeats)
    row["wall_ms"] = 1000 * (time.perf_counter() - start) / options.repeats
    row["step_ms"], row["max_ms"] = statistics.median(times), max(times)
    if device.type == "cuda":
        row["gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    if options.kernels:
        row["kernels"] = kernels_of(lambda: decoder.decode(latents), device)
    return row


@torch.no_grad()
def variant_rows(variant: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of a variant as it is and captured; what is compiled serves both."""
    callbacks, vae = VARIANTS[variant](options), vae_of(options, variant)
    # A graph has the same kernels, and the same error.
    shared = {"error": error_of(vae, callbacks, options)} if options.errors else {}
    yield {**shared, "graph": False, **time_steps(decoder_of(vae, callbacks), options)}
    callbacks.append(CaptureDecoder(rehearses=False))
    yield {**shared, "graph": True, **time_steps(decoder_of(vae, callbacks), options)}


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of each variant, as they are measured."""
    began = time.perf_counter()
    for variant in options.variants:
        if time.perf_counter() - began > options.seconds:
            yield {"variant": variant, "failure": f"left out: {options.seconds:.0f} s are over"}
            continue
        torch._dynamo.reset()
        gc.collect()
        try:
            for row in variant_rows(variant, options):
                yield {"variant": variant, **row}
        # Whatever it is, the other rows are wanted all the same.
        except Exception as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            yield {"variant": variant, "failure": message}


def kernel_calls(options: argparse.Namespace) -> Iterator[tuple[str, int, int, Callable[[], Any]]]:
    """Name, channels, bytes read and written, and a call of each kernel at its sizes in a step."""
    made = {"dtype": options.dtype, "device": options.device}
    width = SIZES[options.size].base_width

    def tensor(*shape: int) -> Tensor:
        last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        return torch.randn(shape, **made).contiguous(memory_format=last)

    for level, (multiplier, frames) in enumerate(LEVELS):
        channels, sides = width * multiplier, [side >> level for side in options.size_px]
        x, residual = tensor(1, channels, frames, *sides), tensor(1, channels, frames, *sides)
        history, gamma = tensor(1, channels, 2, *sides), torch.randn(channels, **made)
        bias = torch.randn(4 * channels, **made)
        large, small = x.nbytes, history.nbytes
        addends = Addends(x, bias_C=gamma)
        call: Callable[[], Any] = partial(conv_input, addends, history, gamma)
        yield "norm", channels, 2 * (large + small), call
        addends = Addends(x, residual, gamma)
        call = partial(conv_input_and_sum, addends, history, gamma)
        yield "sum, norm", channels, 4 * large + 2 * small, call
        if level in (2, 3):
            halves = tensor(1, 2 * channels, frames, *sides)
            call = partial(interleave_frames, halves, bias[: 2 * channels])
            yield "frames", channels, 2 * halves.nbytes, call
        if level < 3:
            phases = tensor(frames, 4 * channels, *(side // 2 + 1 for side in sides))
            yield "phases", channels, 2 * large, partial(interleave_phases, phases, bias)


@torch.no_grad()
def tile_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each kernel, width and tile."""
    for name, channels, moved, call in kernel_calls(options):
        for positions, warps in options.tiles:
            TILES[padded_channels(channels)] = Tile(positions, warps)
            call()
            again: Callable[[], Any] = call
            if options.device.type == "cuda":
                # Else the smaller ones would be as slow as their launch.
                again = GraphRecorder(options.device).record(call).replay
            ms = statistics.median(milliseconds(again, options.device, options.repeats))
            row = {"kernel": name, "channels": channels, "positions": positions, "warps": warps}
            yield {**row, "ms": ms, "tb_per_s": moved / ms / 1e9}


HEADER = ("variant", "step ms", "wall ms", "max ms", "first s", "GiB", "error")


def line_of(row: dict[str, Any]) -> str:
    """One row of either table."""
    if "kernel" in row:
        tile = f"{row['positions']}:{row['warps']}"
        return (
            f"{row['kernel']:<10}{row['channels']:>5}{tile:>8}{row['ms']:>9.3f} ms"
            f"{row['tb_per_s']:>7.2f} TB/s"
        )
    name = f"{row['variant'] + (' graph' if row.get('graph') else ''):<28}"
    if "failure" in row:
        return f"{name} {row['failure']}"
    cells = ("step_ms", "wall_ms", "max_ms", "first_s", "gib")
    line = name + "".join(f"{row.get(cell, math.nan):>10.2f}" for cell in cells)
    line += f"{row.get('error', math.nan):>10.1e}"
    return f"{line}\n{row['kernels']}" if "kernels" in row else line


def _tile(text: str) -> tuple[int, int]:
    positions, _, warps = text.partition(":")
    return int(positions), int(warps)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", default="wan", choices=["wan", "tiny"])
    parser.add_argument("--size-px", type=int, nargs=2, default=[480, 832], help="height, width")
    parser.add_argument("--latents", type=int, default=3, help="latent frames of a step")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--mode", default="default", help="of torch.compile")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--benchmark", action="store_true", help="let cuDNN try its algorithms")
    parser.add_argument(
        "--errors",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure them, which compiles a second size",
    )
    parser.add_argument("--kernels", action="store_true", help="print the kernels of each row")
    parser.add_argument(
        "--tiles", type=_tile, nargs="+", metavar="POSITIONS:WARPS", help="time the kernels alone"
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=240, help="begin no variant after this")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    options = parser.parse_args()
    name = options.device.type
    options.dtype = torch.float32
    if options.device.type == "cuda":
        name = torch.cuda.get_device_name(options.device)
        options.dtype = torch.bfloat16
    torch.backends.cudnn.benchmark = options.benchmark
    # The exact output is in float32, not in the shorter type of the tensor cores.
    torch.backends.cudnn.allow_tf32 = False
    height, width = options.size_px
    print(f"{name}, torch {torch.__version__}, {options.size}, {width}x{height}, {options.dtype},")
    print(f"{options.latents} latents a step, median of {options.repeats}")
    if not options.tiles:
        print(
            f"{HEADER[0]:<28}" + "".join(f"{title:>10}" for title in HEADER[1:-1]) + "       error"
        )
    table = []
    for row in tile_rows(options) if options.tiles else rows(options):
        print(line_of(row), flush=True)
        table.append({key: value for key, value in row.items() if key != "kernels"})
    print(json.dumps({"device": name, "size": options.size, "rows": table}))


if __name__ == "__main__":
    main()
