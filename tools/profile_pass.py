"""Milliseconds of each kind of pass of the transformer, as it is, compiled and captured.

    python tools/profile_pass.py                                # the full size, on a GPU
    python tools/profile_pass.py --size tiny --device cpu       # to see that it works
    python tools/profile_pass.py --quantize fp8 --keeps '*_attn.*'   # the same in eight bits
    python tools/profile_pass.py --variants compiled+graph compiled+graph+fuse_projections
    python tools/profile_pass.py --variants compiled+graph --kernels # and what a step consists of

One row for each window and variant: a denoising step of the steady state, the context update after
it, a recache of the full window, and a block of four steps and an update. A variant is ``eager``,
or ``compiled``, ``graph`` and names of overlays in ``configs/opt``, joined by ``+``. The weights
are random, the caches too. Rows are printed as they come; a variant that fails is a row that says
why, and what does not fit into ``--seconds`` is left out. The last line is JSON.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from longlive.attention.backends import BACKENDS, resolve_attention
from longlive.callbacks.compile import CompileLayers
from longlive.callbacks.cuda_graph import CapturedDenoiser, CaptureDenoiser
from longlive.callbacks.quantize import TEXT_KEYS_VALUES, QuantizeLinears
from longlive.geometry import Geometry
from longlive.models.dit import DiT
from longlive.models.sizes import dit_config
from longlive.rollout.denoiser import CausalDenoiser, Denoiser
from longlive.rollout.hooks import CallbackHooks
from longlive.rollout.rehearsal import kind_of, passes_of
from longlive.rollout.state import RolloutSpec, RolloutState, StepInputs, allocate_caches
from longlive.schedule import DenoisingSchedule
from longlive.weights.synthetic import fill_synthetic

STEPS = [1000, 750, 500, 250]
WARM_UP = 3
MOST_KERNELS = 25
VARIANTS = (
    *("eager", "graph", "compiled", "compiled+graph"),
    "compiled+graph+fuse_projections+fuse_layers",
)
OVERLAYS = Path(__file__).parents[1] / "configs" / "opt"


def callbacks_of(variant: str, mode: str = "default") -> list[pl.Callback]:
    """Make the callbacks of a variant, which are joined by ``+`` in its name.

    Args:
        variant: Its name.
        mode: Of ``torch.compile``.
    """
    return [_callback(part, mode) for part in variant.split("+") if part != "eager"]


def _callback(part: str, mode: str) -> pl.Callback:
    # Every kind of pass that is wanted is run here.
    if part == "compiled":
        return CompileLayers(mode=mode, rehearses=False)
    if part == "graph":
        return CaptureDenoiser(rehearses=False)
    path = OVERLAYS / f"{part}.yaml"
    if not path.is_file():
        names = " ".join(sorted(path.stem for path in OVERLAYS.glob("*.yaml")))
        raise argparse.ArgumentTypeError(
            f"{part!r} is not eager, compiled, graph or one of {names}"
        )
    (entry,) = yaml.safe_load(path.read_text())["trainer"]["callbacks+"]
    module, _, name = entry["class_path"].rpartition(".")
    callback: pl.Callback = getattr(import_module(module), name)(**entry.get("init_args", {}))
    return callback


def variant_of(text: str) -> str:
    """The name of a variant, which is checked."""
    callbacks_of(text)
    return text


class Model(pl.LightningModule):
    """What the callbacks look for layers in."""

    def __init__(self, size: str, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        with torch.device("meta"):
            self.dit = DiT(dit_config(size))
        fill_synthetic(self.dit, dtype=dtype, device=device)
        self.eval().requires_grad_(False)


def passes_to_time(state: RolloutState, like: Tensor) -> dict[str, tuple[Tensor, StepInputs]]:
    """A call of each kind of the steady state, on latents that are not zero."""
    spec = state.spec
    window = spec.window_latent_frames or spec.slots
    # The sink keeps its keys. Where one block is left, a recache is the same pass as an update.
    recached = window - spec.sink_latent_frames
    calls = {kind_of(x, inputs): (x, inputs) for x, inputs in passes_of(state, like)}
    found = {}
    for name, frames, keys_only in (
        ("step", like.shape[1], False),
        ("update", like.shape[1], True),
        ("recache", recached, True),
    ):
        found[name] = next(
            (torch.randn_like(x), inputs)
            for kind, (x, inputs) in calls.items()
            if (kind.read, kind.latents[1], kind.keys_only) == (window, frames, keys_only)
        )
    return found


def milliseconds(call: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """How long each of some calls takes, on the device's clock where it has one."""
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
        return times
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) for before, after in zip(events, events[1:], strict=False)]


def kernels_of(call: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """What a call spends most of its time in: kernels of a GPU, or operations of a CPU."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    kernels = [
        {
            "name": event.key,
            "calls": event.count,
            "ms": (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000,
        }
        for event in seen.key_averages()
    ]
    kernels.sort(key=lambda kernel: -kernel["ms"])
    return [kernel for kernel in kernels[:MOST_KERNELS] if kernel["ms"] > 0]


def fill(state: RolloutState, dit: DiT) -> None:
    """Store random keys and values in all slots, whatever form they are kept in."""
    cache, config = state.cache, dit.config
    tokens = cache.slots * cache.tokens_per_slot
    shape = (state.spec.network_batch, tokens, config.heads, config.head_dim)
    slots = torch.arange(cache.slots, device=state.device)
    for layer in range(config.layers):
        new = torch.randn(2, *shape, dtype=dit.dtype_of_weights, device=state.device)
        cache[layer].update(*new, slots, cache.slots)


@torch.no_grad()
def time_variant(
    model: Model, spec: RolloutSpec, callbacks: list[pl.Callback], options: argparse.Namespace
) -> dict[str, Any]:
    """Set up a rollout as the model does, and time its passes."""
    device, dtype = options.device, model.dit.dtype_of_weights
    hooks = CallbackHooks(callbacks, model)
    spec = hooks.configure_rollout(spec)
    make = hooks.configure_caches(
        lambda spec: allocate_caches(spec, model.dit.config, dtype, device)
    )
    state = RolloutState.start(spec, make(spec), device)
    kernel = resolve_attention(options.attention, device, dtype)
    caches = state.cache, state.cross_cache
    denoiser: Denoiser = CausalDenoiser(model.dit, *caches, spec.geometry, kernel)
    denoiser = hooks.configure_denoiser(denoiser)
    text = torch.randn(1, 120, model.dit.config.text_width, device=device)
    state.cross_cache.store(model.dit.text_keys_values(text))
    fill(state, model.dit)
    like = torch.zeros(spec.geometry.block_shape(spec.batch), dtype=dtype, device=device)
    row: dict[str, Any] = {"first_s": 0.0}
    for name, (x, inputs) in passes_to_time(state, like).items():
        start = time.perf_counter()
        for _ in range(WARM_UP):
            denoiser(x, inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        row["first_s"] += time.perf_counter() - start
        start = time.perf_counter()
        times = milliseconds(lambda: denoiser(x, inputs), device, options.repeats)  # noqa: B023
        row[f"{name}_wall"] = 1000 * (time.perf_counter() - start) / options.repeats
        row[name] = statistics.median(times)
        row[f"{name}_max"] = max(times)
        if options.kernels and name == "step":
            row["kernels"] = kernels_of(lambda: denoiser(x, inputs), device)  # noqa: B023
    if isinstance(denoiser, CapturedDenoiser) and denoiser.graphs.failure:
        raise RuntimeError(f"not captured: {denoiser.graphs.failure}")
    row["block"] = len(STEPS) * row["step"] + row["update"]
    if device.type == "cuda":
        row["gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    hooks.call("on_rollout_end", state)
    return row


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each window and variant, as it is measured."""
    began = time.perf_counter()
    for window in options.windows:
        for variant in options.variants:
            row: dict[str, Any] = {"window": window, "variant": variant}
            if time.perf_counter() - began > options.seconds:
                yield {**row, "error": f"left out: {options.seconds:.0f} s are over"}
                continue
            torch._dynamo.reset()
            gc.collect()
            if options.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(options.device)
            try:
                row.update(measure(window, variant, options))
            # Whatever it is, the other rows are wanted all the same.
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            yield row


def measure(window: int, variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time a variant on a model of its own, since callbacks change one for good."""
    dtype = torch.bfloat16 if options.device.type == "cuda" else torch.float32
    model = Model(options.size, options.device, dtype)
    config = model.dit.config
    geometry = Geometry(options.height, options.width, config.latent_channels, config.patch)
    schedule = DenoisingSchedule.from_steps(STEPS, shift=5.0)
    spec = RolloutSpec(geometry, schedule, latent_frames=240, window_latent_frames=window)
    callbacks = callbacks_of(variant, options.mode)
    if options.quantize:
        callbacks.append(QuantizeLinears(options.quantize, options.keeps, options.granularity))
    return time_variant(model, spec.check(), callbacks, options)


HEADER = ("window", "variant", "step", "update", "recache", "block", "max step", "first s", "GiB")


def line_of(row: dict[str, Any], width: int) -> str:
    """One row of the table, whose variants are that wide."""
    place = f"{row['window']:>6}  {row['variant']:<{width}}"
    if "error" in row:
        return f"{place} {row['error']}"
    names = ("step", "update", "recache", "block", "step_max", "first_s", "gib")
    return place + "".join(f"{row.get(name, float('nan')):>10.2f}" for name in names)


def kernel_lines(row: dict[str, Any]) -> Iterator[str]:
    """What a step of a row consists of: milliseconds, calls and name of each kernel."""
    for kernel in row.get("kernels", ()):
        yield f"{kernel['ms']:>16.3f} ms {kernel['calls']:>6} x  {kernel['name'][:100]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", default="wan-1.3b")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--windows", type=int, nargs="+", default=[12, 9, 6])
    parser.add_argument("--variants", type=variant_of, nargs="+", default=list(VARIANTS))
    parser.add_argument("--kernels", action="store_true", help="print what a step consists of")
    parser.add_argument("--attention", default="auto", choices=["auto", *BACKENDS])
    parser.add_argument("--mode", default="default", help="of torch.compile")
    parser.add_argument("--quantize", choices=["fp8", "int8"], help="in all rows")
    parser.add_argument("--keeps", nargs="+", default=TEXT_KEYS_VALUES, help="of QuantizeLinears")
    parser.add_argument("--granularity", default="row", choices=["row", "tensor"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=240, help="begin no variant after this")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    options = parser.parse_args()
    name = options.device.type
    if options.device.type == "cuda":
        name = torch.cuda.get_device_name(options.device)
    print(f"{name}, torch {torch.__version__}, {options.size}, {options.width}x{options.height},")
    if options.quantize:
        kept = " ".join(options.keeps)
        print(f"{options.quantize} by {options.granularity}, without {kept}")
    print(f"attention {options.attention}, median of {options.repeats}, milliseconds")
    width = max(map(len, options.variants))
    print(f"{HEADER[0]:>6}  {HEADER[1]:<{width}}" + "".join(f"{name:>10}" for name in HEADER[2:]))
    table = []
    for row in rows(options):
        table.append(row)
        print(line_of(row, width), *kernel_lines(row), sep="\n", flush=True)
    print(
        json.dumps(
            {"device": name, "size": options.size, "quantize": options.quantize, "rows": table}
        )
    )


if __name__ == "__main__":
    main()
