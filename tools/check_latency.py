"""Times the rollout of a benchmark again from outside, and compares.

    python tools/check_latency.py results

The recipe is that of `results.json`. None of the instruments is used: the device is idle
when the wall clock is read before and after twenty steady blocks, and in between nothing is waited
for. Frames are rounded and copied to the host as in the benchmark. Exit code 1 if the two differ by
more than the tolerance. The last line is JSON.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from statistics import median

import lightning.pytorch as pl
import torch

from longlive.benchmark.results import Results
from longlive.benchmark.samples import FIRST_STEADY_BLOCK
from longlive.benchmark.session import OBSERVERS
from longlive.cli.benchmark import read_command
from longlive.errors import UserError
from longlive.modules.longlive import LongLive
from longlive.video.frames import to_uint8

TOLERANCE = 0.02
DIFFERS, BAD_INPUT = 1, 2


def steady_block_ms(
    model: LongLive, callbacks: list[pl.Callback], prompt: str, blocks: int
) -> float:
    """Mean wall-clock time of the blocks from the fourth on of one rollout."""
    last = FIRST_STEADY_BLOCK - 1 + blocks
    frames = (last + 1) * model.block_latent_frames
    stream = model.stream(prompt, latent_frames=frames, callbacks=callbacks)
    host: torch.Tensor | None = None
    start_s = end_s = 0.0
    for block in stream:
        # A block is yielded before its context update: one to the next is a period.
        x = to_uint8(block.frames)
        if host is None or host.shape != x.shape:
            host = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        host.copy_(x, non_blocking=True)
        if block.index == FIRST_STEADY_BLOCK - 1:
            start_s = idle_s()
        if block.index == last:
            end_s = idle_s()
    return 1000 * (end_s - start_s) / blocks


def idle_s() -> float:
    """The time at which the device has nothing left to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder of a benchmark, batch size 1")
    parser.add_argument("--blocks", type=int, default=20, help="steady blocks that are timed")
    parser.add_argument("--repeats", type=int, default=3, help="rollouts; the median counts")
    args = parser.parse_args(argv)
    try:
        if min(args.blocks, args.repeats) < 1:
            raise UserError("blocks and repeats start at 1")
        results = Results.load(args.results)
        measured = results.figures["block_period_ms"].distribution
        if measured is None or not results.recipe.command:
            raise UserError(f"{args.results} has no steady blocks, or no command to repeat")
        asked = read_command(shlex.split(results.recipe.command)[1:])
        model = asked.model.prepare(asked.device)
    except UserError as error:
        print(f"check_latency: error: {error}", file=sys.stderr)
        return BAD_INPUT
    callbacks = [c for c in asked.callbacks if not isinstance(c, OBSERVERS)]
    prompt = asked.config.prompts[0]
    # Warms up.
    steady_block_ms(model, callbacks, prompt, 2)
    outside = [steady_block_ms(model, callbacks, prompt, args.blocks) for _ in range(args.repeats)]
    difference = measured.mean / median(outside) - 1
    print(f"benchmark  {measured.mean:10.3f} ms a block, mean of {measured.count}")
    print(f"outside    {median(outside):10.3f} ms a block, of {args.blocks} in a row")
    print(f"difference {100 * difference:+10.2f} %")
    found = {
        "benchmark_ms": measured.mean,
        "outside_ms": outside,
        "difference": difference,
        "tolerance": TOLERANCE,
        "agrees": abs(difference) <= TOLERANCE,
    }
    print(json.dumps(found))
    return 0 if found["agrees"] else DIFFERS


if __name__ == "__main__":
    sys.exit(main())
