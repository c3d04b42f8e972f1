"""Turn checkpoints of ``longlive fit`` into the folder that ships in the package.

    python tools/export_embedded.py vae runs/tiny_vae/last.ckpt longlive/assets/tiny
    python tools/export_embedded.py dit runs/tiny_dit/last.ckpt longlive/assets/tiny
    python tools/export_embedded.py tiny_decoder runs/tiny_decoder/last.ckpt longlive/assets/tiny

The VAE's latent statistics are measured here, over training clips, and stored in ``config.json``.
After training the decoder alone, ``--keep-statistics`` leaves those that the transformer knows.
"""

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from longlive.data.shapes_data import draw_clip, encode_clips, shapes_tokenizer
from longlive.models.vae import WanVAE
from longlive.models.vae_networks import SIZES, VAEConfig
from longlive.weights.embedded import read_config, save_component

# Channels the VAE hardly uses are not blown up to unit variance: their noise would be learned too.
SMALLEST_STD = 0.2


def export_vae(weights: dict[str, Tensor], output: Path, clips: int | None) -> None:
    known = read_config(output)["vae"] if clips is None else asdict(measured_config(weights, clips))
    print(save_component(output, "vae", weights, known))


def measured_config(weights: dict[str, Tensor], clips: int) -> VAEConfig:
    """The tiny VAE with the statistics of its latents over training clips."""
    vae = WanVAE("tiny")
    vae.load_state_dict(weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = [draw_clip(number, 21, 0.25) for number in range(clips)]
    latents = encode_clips(vae, chosen, 21, 96, device, batch_size=8).float()
    mean, std = latents.mean((0, 1, 3, 4)), latents.std((0, 1, 3, 4))
    print("latent std:", [round(value, 3) for value in std.tolist()])
    return replace(
        SIZES["tiny"],
        latent_mean=tuple(round(value, 5) for value in mean.tolist()),
        latent_std=tuple(round(max(value, SMALLEST_STD), 5) for value in std.tolist()),
    )


def export_dit(
    weights: dict[str, Tensor], sizes: dict[str, dict[str, object]], output: Path
) -> None:
    for name, config in sizes.items():
        prefix = f"{name}."
        part = {key.removeprefix(prefix): v for key, v in weights.items() if key.startswith(prefix)}
        print(save_component(output, name, part, config))
    shapes_tokenizer().tokenizer.save(str(output / "tokenizer.json"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("component", choices=["vae", "dit", "tiny_decoder"])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--clips", type=int, default=128, help="clips the statistics are over")
    parser.add_argument(
        "--keep-statistics", action="store_true", help="of latents, from the folder's config.json"
    )
    args = parser.parse_args()
    checkpoint = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    weights = checkpoint["state_dict"]
    if args.component == "vae":
        export_vae(weights, args.output, None if args.keep_statistics else args.clips)
    elif args.component == "dit":
        export_dit(weights, checkpoint["sizes"], args.output)
    else:
        [(name, config)] = checkpoint["sizes"].items()
        print(save_component(args.output, name, weights, config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
