"""The embedded model: train and export its VAE, then its transformer, then score both.

python train/embedded.py --minutes 30 --output runs/embedded/weights
python train/embedded.py --minutes 15 --devices 4                     # on four GPUs
python train/embedded.py --minutes 20 --start longlive/assets/tiny    # not from nothing

Every command is printed before it runs, so each can be repeated alone.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
VAE_SHARE = 0.3


def run(*command: str | Path) -> None:
    words = [sys.executable, *map(str, command)]
    print(f"\n$ {shlex.join(words)}", flush=True)
    if code := subprocess.run(words).returncode:
        sys.exit(code)


def fit(
    name: str, folder: Path, minutes: float | None, args: argparse.Namespace, *options: str | Path
) -> Path:
    """Train as ``configs/train/NAME.yaml`` says, or for some minutes; returns the checkpoint."""
    limit: list[str] = []
    if args.devices > 1:
        limit += [f"--trainer.devices={args.devices}", "--trainer.strategy=ddp"]
    if minutes is not None:
        seconds = round(60 * minutes)
        limit += ["--trainer.max_steps=-1", f'--trainer.max_time={{"seconds": {seconds}}}']
        # The learning rate falls to zero when the time is up.
        limit += ["--model.max_steps=null", f"--model.max_seconds={seconds}"]
    # The config's own checkpoints come at whole hundreds of steps; this one at the end.
    keep = {"dirpath": folder, "save_last": "true", "save_top_k": 0}
    keep |= {"every_n_epochs": 0, "every_n_train_steps": 0}
    begin: list[str] = []
    if args.start is not None:
        begin = ["--trainer.callbacks+=longlive.callbacks.start_from.StartFrom"]
        begin += [f"--trainer.callbacks.folder={args.start}"]
    run(
        *("-m", "longlive", "fit", "--config", ROOT / "configs" / "train" / f"{name}.yaml"),
        *limit,
        *begin,
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        *(f"--trainer.callbacks.{key}={value}" for key, value in keep.items()),
        *options,
    )
    # Beside the one of an earlier run Lightning puts last-v1.ckpt.
    return max(folder.glob("last*.ckpt"), key=lambda path: path.stat().st_mtime)


def data_of(clips: int | None, devices: int) -> list[str]:
    """As many clips, and openings in proportion; a batch of them for each process at least."""
    if clips is None:
        return []
    return [f"--data.clips={clips}", f"--data.openings={max(256 * devices, 6 * clips)}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, help="of training in all; else the configs' steps")
    parser.add_argument("--output", type=Path, default=Path("runs/embedded/weights"))
    parser.add_argument("--start", type=Path, help="folder of weights to go on from")
    parser.add_argument("--devices", type=int, default=1, help="GPUs to train on")
    parser.add_argument("--clips", type=int, help="that the transformer trains on")
    parser.add_argument("--prompts", type=int, default=100, help="held-out prompts to score")
    args = parser.parse_args()
    shares = (VAE_SHARE, 1 - VAE_SHARE)
    vae_minutes, dit_minutes = ((args.minutes and args.minutes * share) for share in shares)
    runs = args.output.parent
    export, evaluate = (ROOT / "tools" / f"{verb}_embedded.py" for verb in ("export", "evaluate"))
    score = (evaluate, "--folder", args.output, "--prompts", str(args.prompts))

    checkpoint = fit("tiny_vae", runs / "vae", vae_minutes, args)
    run(export, "vae", checkpoint, args.output)
    run(*score, "--vae")
    data = [f"--data.vae={args.output}", *data_of(args.clips, args.devices)]
    checkpoint = fit("tiny_dit", runs / "dit", dit_minutes, args, *data)
    run(export, "dit", checkpoint, args.output)
    run(*score, "--sheet", args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
