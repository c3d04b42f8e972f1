"""What the profiler itself costs: a steady block with and without it.

    python tools/profiler_overhead.py --config configs/base.yaml --weights synthetic

Rollouts with and without it take turns, so that a drift of the clocks falls on both. A block is
timed from outside, by the wall clock: from block 3 on, the device idle at both ends. Every cost
is that of a pair of neighbors; what is printed are medians. The last line is JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch
import yaml

from longlive.callbacks.profiler import LongLiveProfiler
from longlive.errors import UserError
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback

CONFIG = Path(__file__).parents[1] / "configs" / "tiny.yaml"
FIRST_STEADY_BLOCK = 3
PROMPT = "a large red circle bounces over night"
MODES = ("without", "with", "detailed")


def callbacks_of(mode: str) -> list[RolloutCallback]:
    return [] if mode == "without" else [LongLiveProfiler(detailed=mode == "detailed")]


def steady_block_ms(model: LongLive, blocks: int, mode: str) -> float:
    """Mean wall-clock time of the blocks from the fourth on of one rollout."""
    frames = (FIRST_STEADY_BLOCK + blocks) * model.block_latent_frames
    stream = model.stream(PROMPT, latent_frames=frames, callbacks=callbacks_of(mode))
    start_s = 0.0
    for block in stream:
        # A block is yielded before its context update; block i closes the period of i blocks.
        if block.index == FIRST_STEADY_BLOCK - 1:
            start_s = idle_s()
        if block.index == FIRST_STEADY_BLOCK + blocks - 1:
            return 1000 * (idle_s() - start_s) / blocks
    raise AssertionError("the rollout was too short")


def idle_s() -> float:
    """The time at which the device has nothing left to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(model: LongLive, blocks: int, repeats: int) -> dict[str, list[float]]:
    """Times of a steady block in ms, one per mode and repeat."""
    for mode in MODES:
        steady_block_ms(model, 1, mode)
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for repeat in range(repeats):
        # Whoever comes second may find a warmer device.
        for mode in MODES if repeat % 2 == 0 else reversed(MODES):
            times[mode].append(steady_block_ms(model, blocks, mode))
    return times


def summarize(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median block per mode, and the median of what each repeat adds to its neighbor without."""
    base = times["without"]
    return {
        mode: {
            "block_ms": round(median(found), 4),
            "spread_ms": round(max(found) - min(found), 4),
            "added_percent": round(
                100 * median(ms / plain - 1 for ms, plain in zip(found, base, strict=True)), 3
            ),
        }
        for mode, found in times.items()
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings of the model")
    parser.add_argument("--weights", help="a folder, embedded or synthetic; else the config's")
    parser.add_argument("--blocks", type=int, default=5, help="steady blocks per rollout")
    parser.add_argument("--repeats", type=int, default=5, help="rollouts per mode")
    args = parser.parse_args(argv)
    if min(args.blocks, args.repeats) < 1:
        print("profiler_overhead: error: blocks and repeats start at 1", file=sys.stderr)
        return 2
    settings = yaml.safe_load(args.config.read_text())["model"]["init_args"]
    try:
        # Students belong to the weights of the configuration; any will do to be timed.
        other = {"weights": args.weights, "student": None} if args.weights else {}
        model = LongLive(**settings | other).prepare()
    except UserError as error:
        print(f"profiler_overhead: error: {error}", file=sys.stderr)
        return 2
    times = measure(model, args.blocks, args.repeats)
    found = summarize(times)
    for mode, row in found.items():
        print(
            f"{mode:9} {row['block_ms']:10.3f} ms a block, {row['added_percent']:+.2f} %, "
            f"spread {row['spread_ms']:.3f} ms"
        )
    print(json.dumps({"summary": found, "samples_ms": times}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
