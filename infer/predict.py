"""A video without the Trainer, as in a notebook.

python infer/predict.py "a large red circle bounces over night"
"""

import argparse
from pathlib import Path

import yaml
from interactive import settings_for

from longlive.callbacks.frame_writer import FrameWriter
from longlive.modules.longlive import LongLive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--weights", help="embedded, synthetic, or a folder; else the config's")
    parser.add_argument("--config", type=Path, help="settings of the model; else the weights' own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="outputs", help="folder, or a name ending in .mp4")
    args = parser.parse_args()

    if args.config is None:
        settings = settings_for(args.weights or "embedded")
    else:
        settings = yaml.safe_load(args.config.read_text())["model"]["init_args"]
        settings |= {"weights": args.weights} if args.weights else {}
    model = LongLive(**settings).prepare()
    writer = FrameWriter(args.output)
    for block in model.stream(args.prompt, seed=args.seed, callbacks=[writer]):
        # Latents are [B, F, C, H, W]; frames [B, T, 3, H, W], in [0, 1], on the model's device.
        print(f"block {block.index}: {block.frames.shape[1]} frames")
    print(*writer.written)


if __name__ == "__main__":
    main()
