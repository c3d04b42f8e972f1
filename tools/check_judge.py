"""Ground truth must read 100 %: every prompt of the shapes world, drawn and judged.

    python tools/check_judge.py                 # all 2160 prompts, one seed each, through H.264
    python tools/check_judge.py --every 10      # a tenth of them
    python tools/check_judge.py --seed 1 --raw  # other clips, without a codec

A line for each clip that reads wrong, then one of JSON. The exit code is 1 if there is any.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from longlive.data.shapes_world import render_clips
from longlive.metrics.shapes_adherence import ShapesAdherence
from longlive.metrics.shapes_judge import read_clip, score
from longlive.shapes import SLOTS, ShapePrompt, all_prompts
from longlive.video.frames import to_uint8
from longlive.video.mp4 import Mp4Writer
from longlive.video.read import read_video


def through_h264(frames_TCHW: Tensor, folder: Path) -> Tensor:
    """Store a clip as ``longlive predict`` does, and read it back."""
    path = folder / "clip.mp4"
    with Mp4Writer(path) as writer:
        writer.append(to_uint8(frames_TCHW))
    return read_video(path).permute(0, 3, 1, 2).float() / 255


def wrong_slots(prompt: ShapePrompt, clip_TCHW: Tensor, metric: ShapesAdherence) -> str:
    """Count a clip; say what reads wrong, or nothing."""
    reading = read_clip(clip_TCHW)
    got = score(reading, prompt)
    metric.update([got])
    return ", ".join(
        f"{slot} reads {getattr(reading, slot)}" for slot in SLOTS if not getattr(got, slot)
    )


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="judge one prompt in so many")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0, help="prompt number n has seed + n")
    parser.add_argument("--raw", action="store_true", help="judge the frames as they were drawn")
    args = parser.parse_args(argv)
    prompts = list(enumerate(all_prompts()))[:: args.every]
    metric, wrong, started = ShapesAdherence(), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number, prompt in prompts:
            clip_TCHW = render_clips([prompt], [args.seed + number], args.frames, args.side)[0]
            if not args.raw:
                clip_TCHW = through_h264(clip_TCHW, Path(folder))
            if faults := wrong_slots(prompt, clip_TCHW, metric):
                wrong += 1
                print(f"{prompt.text} (seed {args.seed + number}): {faults}", flush=True)
    shares = {name: round(float(value), 6) for name, value in metric.compute().items()}
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"clips": len(prompts), "wrong": wrong, **shares, "seconds": seconds}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
