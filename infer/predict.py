"""A video without the Trainer, as in a notebook.

python infer/predict.py "a large red circle bounces over night"
"""

import argparse
from pathlib import Path

import yaml

from longlive.callbacks.frame_writer import FrameWriter
from longlive.modules.longlive import LongLive

CONFIG = Path(__file__).parents[1] / "configs" / "tiny.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings of the model")
    parser.add_argument("--weights", help="a folder, embedded or synthetic; else the config's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="outputs", help="folder, or a name ending in .mp4")
    args = parser.parse_args()

    settings = yaml.safe_load(args.config.read_text())["model"]["init_args"]
    model = LongLive(**settings | ({"weights": args.weights} if args.weights else {})).prepare()
    writer = FrameWriter(args.output)
    for block in model.stream(args.prompt, seed=args.seed, callbacks=[writer]):
        # Latents are [B, F, C, H, W]; frames [B, T, 3, H, W], in [0, 1], on the model's device.
        print(f"block {block.index}: {block.frames.shape[1]} frames")
    print(*writer.written)


if __name__ == "__main__":
    main()
