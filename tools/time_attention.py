"""Milliseconds, TFLOP/s and error of each attention kernel, at the sizes of the full model.

    python tools/time_attention.py                          # one GPU, less than a minute
    python tools/time_attention.py --queries 4680 --keys 14040
    python tools/time_attention.py --device cpu --queries 40 --keys 48 --frame 8 --heads 2

One row for each number of queries and keys and each kernel: those of ``longlive.attention`` that
can be had here, and the FP8 one with each of its tiles, over a cache that was written before. Keys
by default are those of the windows 9 and 12, queries those of a block and of a recache. The error
is the relative L2 distance from float64, of 64 queries, over random normal numbers. ``max`` is the
slowest of the calls, and ``write`` the storing of three latent frames in FP8. A kernel that fails
is a row that says why. The last line is JSON.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from profile_pass import milliseconds
from torch import Tensor

from longlive.attention.backends import BACKENDS, missing_reason, resolve_attention
from longlive.attention.fp8_cache import Fp8Cache, Fp8LayerCache
from longlive.callbacks.fp8_attention import Fp8Attention
from longlive.kernels.fp8_attention import plain_fp8_attention

WARM_UP = 3
CHECKED = 64
LATENT_FRAMES = 3
HEADER = ("queries", "keys", "kernel", "ms", "max", "TFLOP/s", "error")


class Numbers(NamedTuple):
    """What all kernels of a size are given.

    Attributes:
        q: Queries ``[1, L, N, D]``.
        k: Keys ``[1, S, N, D]``.
        v: Values, same shape.
        fp8: A cache that holds them.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    fp8: Fp8LayerCache

    def exactly(self) -> Tensor:
        """What the first queries gather, in float64, head by head."""
        heads = []
        for head in range(self.q.shape[2]):
            q, k, v = (x[0, :, head].double() for x in (self.q[:, :CHECKED], self.k, self.v))
            heads.append(torch.softmax(q @ k.t() / q.shape[-1] ** 0.5, -1) @ v)
        return torch.stack(heads, 1)


def numbers_of(queries: int, keys: int, options: argparse.Namespace) -> Numbers:
    """Random normal numbers, and an FP8 cache that holds the keys and values."""
    device = options.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tail = (options.heads, options.head_dim)
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(1, tokens, *tail, generator=generator, device=device).to(dtype)
        for tokens in (queries, keys, keys)
    )
    slots = keys // options.frame
    cache = Fp8Cache((1, 1, slots, options.frame, *tail), device, emulates=not can_fp8(options))
    cache[0].update(k, v, torch.arange(slots, device=device), slots)
    return Numbers(q, k, v, cache[0])


def can_fp8(options: argparse.Namespace) -> bool:
    """Whether the device has the kernels of FP8."""
    return Fp8Attention().missing(options.device) is None


def kernels_of(given: Numbers, options: argparse.Namespace) -> Iterator[tuple[str, Callable]]:
    """Names and calls of what there is."""
    device = options.device
    for name in BACKENDS:
        if missing_reason(name, device) is None:
            kernel = resolve_attention(name, device, given.q.dtype)
            yield name, lambda kernel=kernel: kernel(given.q, given.k, given.v)
    cache = given.fp8.read(given.k.shape[1] // options.frame)[:-1]
    if not can_fp8(options):
        yield "fp8, plain", lambda: plain_fp8_attention(given.q, *cache)
        return
    from longlive.kernels.fp8_attention_triton import TILES, triton_fp8_attention

    for tile in TILES:
        name = f"fp8 {tile.queries}x{tile.keys}, {tile.warps} warps, {tile.stages} stages"
        name += ", wide" if tile.wide_sums else ""
        name += f", last wave in {tile.parts}" if tile.parts > 1 else ""
        yield name, lambda tile=tile: triton_fp8_attention(given.q, *cache, tile)


@torch.no_grad()
def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each size and kernel, as it is measured."""
    for keys in options.keys:
        for queries in options.queries:
            given = numbers_of(queries, keys, options)
            exact = given.exactly()
            operations = 4 * queries * keys * options.heads * options.head_dim
            for name, call in kernels_of(given, options):
                row: dict[str, Any] = {"queries": queries, "keys": keys, "kernel": name}
                try:
                    row.update(measure(call, exact, operations, options))
                # Whatever it is, the other rows are wanted all the same.
                except Exception as error:
                    row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
                yield row
        new = LATENT_FRAMES * options.frame
        yield {"queries": new, "keys": keys, "kernel": "fp8 write", **writing(given, options)}


def measure(
    call: Callable[[], Tensor], exact: Tensor, operations: int, options: argparse.Namespace
) -> dict[str, float]:
    """Time a kernel, and compare what it gives."""
    for _ in range(WARM_UP):
        out = call()
    error = (out[0, :CHECKED].double() - exact).norm() / exact.norm()
    times = milliseconds(call, options.device, options.repeats)
    ms = statistics.median(times)
    return {"ms": ms, "max": max(times), "tflops": operations / ms / 1e9, "error": float(error)}


def writing(given: Numbers, options: argparse.Namespace) -> dict[str, float]:
    """Time the storing of a block, whose scales are known."""
    slots = torch.arange(LATENT_FRAMES, device=options.device)
    new = [x[:, : LATENT_FRAMES * options.frame] for x in (given.k, given.v)]
    seen = given.k.shape[1] // options.frame

    def call() -> None:
        given.fp8.update(*new, slots, seen)

    for _ in range(WARM_UP):
        call()
    times = milliseconds(call, options.device, options.repeats)
    return {"ms": statistics.median(times), "max": max(times)}


def line_of(row: dict[str, Any]) -> str:
    """One row of the table."""
    place = f"{row['queries']:>8}{row['keys']:>8}  {row['kernel']:<36}"
    if "failed" in row:
        return f"{place} {row['failed']}"
    times = f"{row['ms']:>9.4f}{row['max']:>9.4f}"
    if "tflops" not in row:
        return place + times
    return f"{place}{times}{row['tflops']:>9.0f}{row['error']:>9.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--queries", type=int, nargs="+", default=[4680, 14040])
    parser.add_argument("--keys", type=int, nargs="+", default=[14040, 18720])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--frame", type=int, default=1560, help="tokens of a latent frame")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    options = parser.parse_args()
    if any(keys % options.frame for keys in options.keys):
        parser.error(f"keys must be whole latent frames of {options.frame} tokens: set --frame")
    name = options.device.type
    if options.device.type == "cuda":
        name = torch.cuda.get_device_name(options.device)
    print(f"{name}, torch {torch.__version__}, {options.heads} heads of {options.head_dim},")
    print(f"median of {options.repeats}, random normal numbers")
    print("{:>8}{:>8}  {:<36}{:>9}{:>9}{:>9}{:>9}".format(*HEADER))
    table = []
    for row in rows(options):
        table.append(row)
        print(line_of(row), flush=True)
    print(json.dumps({"device": name, "torch": torch.__version__, "rows": table}))


if __name__ == "__main__":
    main()
