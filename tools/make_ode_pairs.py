r"""ODE pairs of a teacher, for `longlive fit --config configs/distill/tiny_pairs.yaml`.

    python tools/make_ode_pairs.py runs/tiny_pairs --pairs 2048
    python tools/make_ode_pairs.py runs/pairs --weights models --size wan-1.3b --batch 1 \
        --kind bidirectional --prompts prompts.txt --height 480 --width 832 --shift 5 --guidance 6

Shards that are there already are kept, so a run that was stopped is gone on with.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from longlive.attention.backends import resolve_attention
from longlive.data.pair_shards import shard_path, write_shard
from longlive.data.prompt_files import read_prompt_file
from longlive.distillation.ode_pairs import bidirectional_pairs, causal_pairs, kept_indices
from longlive.distillation.scores import Score
from longlive.errors import UserError
from longlive.modules.distillation_networks import build_language, build_transformer
from longlive.modules.distillation_options import ClipOptions
from longlive.rollout.noise import SeededNoise
from longlive.schedule import DenoisingSchedule
from longlive.shapes import training_prompts


def batches(prompts: list[str], pairs: int, batch: int) -> Iterator[tuple[int, list[str]]]:
    """Number of the first pair, and its prompts; the list is gone through again and again."""
    for first in range(0, pairs, batch):
        numbers = range(first, min(first + batch, pairs))
        yield first, [prompts[number % len(prompts)] for number in numbers]


def make(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    prompts = (
        [entry.prompts[0] for entry in read_prompt_file(args.prompts)]
        if args.prompts
        else [prompt.text for prompt in training_prompts()]
    )
    # Any stretch of the list shall show all of it.
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(args.seed))
    prompts = [prompts[index] for index in order.tolist()]
    dtype = getattr(torch, args.dtype)
    teacher = build_transformer(args.weights, args.size, "teacher", device, dtype)
    language = build_language(args.weights, args.size, device, dtype)
    clip = ClipOptions(
        height_px=args.height,
        width_px=args.width,
        latent_frames=args.latent_frames,
        window_latent_frames=args.window,
        denoising_steps=tuple(args.keep),
        shift=args.shift,
    )
    schedule = DenoisingSchedule.uniform(args.steps, shift=args.shift)
    indices = kept_indices(args.steps, args.keep)
    sigmas = [*(schedule.sigmas[index] for index in indices), 0.0]
    score = Score(teacher, args.kind)
    attention = resolve_attention("auto", device, dtype)
    negative = language.embed([args.negative_prompt])
    started = time.monotonic()
    for first, some in batches(prompts, args.pairs, args.batch):
        path = shard_path(args.output, first // args.batch)
        if path.exists():
            continue
        text = language.embed(some)
        spec = replace(
            clip.spec(teacher.config, len(some)),
            schedule=schedule,
            guidance=args.guidance,
            cached_latent_frames=None,
        )
        noise = SeededNoise(args.seed + first, spec.geometry.block_shape(len(some)), dtype, device)
        negatives = negative.expand_as(text)
        if args.kind == "causal":
            states = causal_pairs(score, spec, text, negatives, noise, indices, attention)
        else:
            parts = [noise.draw(block, 0) for block in range(spec.blocks or 0)]
            whole = torch.cat(parts, 1)
            states = bidirectional_pairs(score, spec, text, negatives, whole, indices)
        write_shard(path, states, some, sigmas)
        done = min(first + args.batch, args.pairs)
        print(
            f"{path}: {done} of {args.pairs} pairs, {time.monotonic() - started:.0f} s", flush=True
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--pairs", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64, help="pairs of a shard, made together")
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--kind", choices=["causal", "bidirectional"], default="causal")
    parser.add_argument("--prompts", type=Path, help="file of prompts; else the shapes world's")
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--latent-frames", type=int, default=21)
    parser.add_argument("--window", type=int, default=12)
    parser.add_argument("--steps", type=int, default=48, help="of the ODE")
    parser.add_argument("--keep", type=int, nargs="+", default=[1000, 750, 500, 250])
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    try:
        make(args)
    except UserError as error:
        print(f"make_ode_pairs: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
