"""What a second GPU gives: frames a second, first frame and prompt switch of one video.

    torchrun --nproc-per-node 2 tools/check_devices.py --recipe exact
    torchrun --nproc-per-node 2 tools/check_devices.py --recipe sweet_spot --shares 1 3
    torchrun --nproc-per-node 2 tools/check_devices.py --recipe "" --size tiny --device cpu

Five ways in the same run, of which ``--ways`` names some, in its order: one GPU; the decoder on the
second one; every pass shared by both (``SequenceParallel``); shared by ``--shares``, so that the
first one, which decodes, has the smaller part; and shared but for context updates, recaches and the
first ``--rested-steps`` of a block, which the second one computes while the first one decodes;
several numbers are a way each. Random weights, and frames that arrive on the host as for a writer.
Rows are printed as they come; a way that fails in one process is a row that says why, and the last
line is JSON.
"""

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor

from longlive.callbacks.sequence_parallel import SequenceParallel
from longlive.callbacks.shared_prompts import control_group
from longlive.callbacks.vae_pipeline import PipelineDecoding
from longlive.errors import UserError
from longlive.evaluation.recipes import Recipe, load_recipe
from longlive.geometry import frames_of
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.prompts import PromptTimeline
from longlive.video.frames import to_uint8
from longlive.video.to_host import HostTransfer

CONFIGS = Path(__file__).parents[1] / "configs"
PROMPTS = ("a large red circle bounces over night", "a small blue square spins over night")
TINY = {"height_px": 96, "width_px": 96, "window_latent_frames": 6}
WAYS = ("one", "decoder", "shared", "uneven", "rests")
# Blocks until every window is full.
FILLING_BLOCKS = 6


@dataclass(frozen=True, slots=True)
class Row:
    """One way, measured; medians over the rollouts.

    Attributes:
        way: Its name.
        fps: Frames a second once the window is full, a prompt switch among them.
        fps_each: Of each rollout.
        first_frame_ms: From the start of a rollout to its first frame, text included.
        block_ms: From the frames of a block to those of the next one.
        switch_ms: The same where the prompt changes between them.
        peak_gib: Most memory the first process had on each GPU.
        error: Why there are no numbers.
    """

    way: str
    fps: float = 0.0
    fps_each: tuple[float, ...] = ()
    first_frame_ms: float = 0.0
    block_ms: float = 0.0
    switch_ms: float = 0.0
    peak_gib: tuple[float, ...] = ()
    error: str = ""


class Arrivals(RolloutCallback):
    """Notes when frames arrive on the host."""

    def __init__(self) -> None:
        self.transfer: HostTransfer | None = None
        self.frames: list[tuple[int, float]] = []

    def on_rollout_start(self, trainer: Any, pl_module: Any, state: Any) -> None:
        self.frames = []
        self.transfer = HostTransfer(capacity=2, name="frames to host")

    def on_frames_ready(self, trainer: Any, pl_module: Any, state: Any, frames: Tensor) -> None:
        assert self.transfer is not None
        self.transfer.send(to_uint8(frames), self._receive)

    def on_rollout_end(self, trainer: Any, pl_module: Any, state: Any) -> None:
        assert self.transfer is not None
        self.transfer.finish()

    def _receive(self, frames_BTCHW: Tensor) -> None:
        self.frames.append((frames_BTCHW.shape[1], time.perf_counter()))


Callbacks = list[pl.Callback]


def with_decoder_on(device: str, callbacks: Sequence[pl.Callback]) -> Callbacks:
    """The same with the decoder on another device."""
    others = [one for one in callbacks if not isinstance(one, PipelineDecoding)]
    return [*others, PipelineDecoding(device=device)]


def ways_of(
    recipe: Recipe, shares: list[int], rested_steps: list[int], names: Sequence[str]
) -> dict[str, tuple[bool, Callable[[], Callbacks]]]:
    """Whether all processes take part, and the callbacks, of each way that is named."""
    plain: Callable[[], Callbacks] = lambda: list(recipe.build_callbacks())  # noqa: E731
    ways = {
        "one GPU": (False, plain),
        "decoder on the second": (False, lambda: with_decoder_on("cuda:1", plain())),
        "passes shared": (True, lambda: [*plain(), SequenceParallel()]),
        f"shared {':'.join(map(str, shares))}": (
            True,
            lambda: [*plain(), SequenceParallel(shares=shares)],
        ),
    }
    chosen = {}
    for name in names:
        if name != "rests":
            way = list(ways)[WAYS.index(name)]
            chosen[way] = ways[way]
            continue
        for steps in rested_steps:
            chosen[f"shared, the first rests in {steps} steps"] = (
                True,
                lambda steps=steps: [*plain(), SequenceParallel(None, True, steps)],
            )
    return chosen


def measure(way: str, model: LongLive, callbacks: Callbacks, blocks: int, repeats: int) -> Row:
    """Make a video several times; the first one warms up and is not counted."""
    block = model.block_latent_frames
    switch = (FILLING_BLOCKS + blocks) // 2
    timeline = PromptTimeline.switching(PROMPTS, [switch * block])
    arrivals = Arrivals()
    firsts, rates, medians, switches = [], [], [], []
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        stream = model.stream(
            timeline, latent_frames=blocks * block, callbacks=[*callbacks, arrivals]
        )
        for _ in stream:
            pass
        if repeat == 0 or not stream.state.spec.is_shown:
            continue
        times = block_times(arrivals.frames, block)
        gaps = [1000 * (b - a) for a, b in zip(times, times[1:], strict=False)]
        steady = times[FILLING_BLOCKS:]
        firsts.append(1000 * (arrivals.frames[0][1] - started))
        rates.append(4 * block * (len(steady) - 1) / (steady[-1] - steady[0]))
        medians.append(statistics.median(gaps[FILLING_BLOCKS:]))
        switches.append(gaps[switch - 1])
    if not rates:
        return Row(way)
    peaks = [torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())]
    return Row(
        way,
        fps=round(statistics.median(rates), 2),
        fps_each=tuple(round(rate, 2) for rate in rates),
        first_frame_ms=round(statistics.median(firsts), 1),
        block_ms=round(statistics.median(medians), 1),
        switch_ms=round(statistics.median(switches), 1),
        peak_gib=tuple(round(peak / 2**30, 2) for peak in peaks),
    )


def block_times(frames: Sequence[tuple[int, float]], block: int) -> list[float]:
    """When each block was whole; the first one, and one under a new prompt, come in pieces.

    Args:
        frames: How many frames came, and when.
        block: Latent frames of a block.
    """
    times: list[float] = []
    count = 0
    for added, at in frames:
        count += added
        if count == frames_of(block * (len(times) + 1)):
            times.append(at)
    return times


def run(options: argparse.Namespace) -> list[Row]:
    """Measure every way in turn; the rows of the first process are the ones that count."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", rank) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    control = control_group(None)
    files = [CONFIGS / "base.yaml"]
    if options.recipe:
        files.append(CONFIGS / "recipes" / f"{options.recipe}.yaml")
    settings = {"weights": "synthetic", "size": options.size}
    recipe = load_recipe(files).with_settings(
        {**settings, **(TINY if options.size == "tiny" else {})}
    )
    rows = []
    ways = ways_of(recipe, options.shares, options.rested_steps, options.ways)
    for way, (is_shared, callbacks) in ways.items():
        row = Row(way)
        if is_shared or rank == 0:
            try:
                model = recipe.model().prepare(device)
                row = measure(way, model, callbacks(), options.blocks, options.repeats)
            except (UserError, RuntimeError) as error:
                # Where others take part they would wait for this one.
                if is_shared and not isinstance(error, UserError):
                    raise
                row = Row(way, error=" ".join(str(error).split()))
            model = None
            gc.collect()
            torch._dynamo.reset()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                for index in range(torch.cuda.device_count() if rank == 0 else 0):
                    torch.cuda.reset_peak_memory_stats(index)
        dist.barrier(control)
        rows.append(row)
        if rank == 0:
            print_row(row)
    dist.destroy_process_group()
    return rows if rank == 0 else []


def print_row(row: Row) -> None:
    """Print a row as it comes."""
    if row.error:
        print(f"{row.way:36} {row.error}", flush=True)
        return
    print(
        f"{row.way:36} {row.fps:8.2f} fps  first frame {row.first_frame_ms:8.1f} ms  "
        f"block {row.block_ms:7.1f} ms  switch {row.switch_ms:7.1f} ms  GiB {row.peak_gib}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="exact", help="empty for the eager base")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--shares", type=int, nargs="+", default=[1, 2], help="of a pass")
    parser.add_argument(
        "--rested-steps", type=int, nargs="+", default=[2], help="in which the first one rests"
    )
    parser.add_argument("--size", default="wan-1.3b", choices=["tiny", "wan-1.3b"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--blocks", type=int, default=30, help="of a video, at least 12")
    parser.add_argument("--repeats", type=int, default=3, help="videos that count")
    options = parser.parse_args()
    if options.blocks < 2 * FILLING_BLOCKS:
        parser.error(f"--blocks must be at least {2 * FILLING_BLOCKS}")
    rows = run(options)
    if rows:
        print(json.dumps({**vars(options), "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
