"""Weights of a student out of a checkpoint of `longlive fit --config configs/distill/...`.

    python tools/export_student.py runs/tiny_dmd/last.ckpt student.pt
    python tools/export_student.py runs/tiny_dmd/last.ckpt runs/student --layout embedded
    python tools/export_student.py runs/tiny_dmd/last.ckpt longlive/assets/tiny --student 4step \
        --denoising 1000 750 500 250
    python tools/export_student.py runs/long/last.ckpt lora.pt --layout lora

`official` is the layout of longlive_base.pt, `lora` that of lora.pt, `embedded` a folder like
longlive/assets/tiny: text encoder, VAE and tokenizer are copied from --base. With --student the
weights lie beside the many-step model of such a folder, which is made from --base if it is not
there, as their change from it in four bits; --denoising notes the steps it was
distilled for, so that `longlive serve` can change to it. A sharded checkpoint is a folder; it is
put together first.
"""

import argparse
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from longlive.distillation.export import (
    Network,
    config_of,
    merged,
    network_of,
    official_adapters,
    official_generator,
    save_official,
)
from longlive.errors import UserError
from longlive.weights.embedded import (
    CONFIG_FILE,
    embedded_folder,
    forget_students,
    read_config,
    save_component,
    save_student,
)
from longlive.weights.state_dicts import read_checkpoint


def whole_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, of one file or of a folder of shards."""
    if not path.is_dir():
        return dict(read_checkpoint(path))
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory() as folder:
        joined = Path(folder) / "joined.ckpt"
        dcp_to_torch_save(path, joined)
        state = torch.load(joined, map_location="cpu", weights_only=True)
    rest = torch.load(path / "meta.pt", map_location="cpu", weights_only=True)
    return {**rest, "state_dict": state["state_dict"]}


def chosen_network(checkpoint: dict[str, Any], wanted: str) -> Network:
    if wanted == "auto":
        names = checkpoint.get("state_dict", {})
        has_average = any(name.startswith("student_average.") for name in names)
        return "student_average" if has_average else "student"
    return wanted  # type: ignore[return-value] # argparse has checked it.


def export_embedded(
    checkpoint: dict[str, Any], network: Network, alpha: float | None, base: Path, output: Path
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for file in base.iterdir():
        if file.suffix == ".json" or file.stem in ("vae", "text_encoder", "tiny_decoder"):
            shutil.copy(file, output / file.name)
    if not (output / CONFIG_FILE).is_file():
        raise UserError(f"{base} has no {CONFIG_FILE}: name a folder of the embedded layout")
    forget_students(output)
    tensors = merged(network_of(checkpoint, network, "the checkpoint"), alpha)
    save_component(output, "dit", tensors, asdict(config_of(checkpoint, network)))


def add_student(
    checkpoint: dict[str, Any],
    network: Network,
    alpha: float | None,
    base: Path,
    output: Path,
    student: str,
    steps: list[int],
) -> None:
    read_config(base)
    if not output.exists():
        shutil.copytree(base, output)
    tensors = merged(network_of(checkpoint, network, "the checkpoint"), alpha)
    config = asdict(config_of(checkpoint, network))
    save_student(output, student, tensors, config, steps)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--layout", choices=["official", "lora", "embedded"], default="official")
    parser.add_argument(
        "--network", choices=["auto", "student", "student_average", "critic"], default="auto"
    )
    parser.add_argument("--student", help="name of a student beside the model in OUTPUT")
    parser.add_argument("--denoising", type=int, nargs="+", default=[], help="its steps")
    parser.add_argument("--base", type=Path, default=embedded_folder())
    args = parser.parse_args(argv)
    try:
        checkpoint = whole_checkpoint(args.checkpoint)
        network = chosen_network(checkpoint, args.network)
        alpha = checkpoint["lora"][1] if checkpoint.get("lora") else None
        source = str(args.checkpoint)
        if args.student is not None:
            add_student(
                *(checkpoint, network, alpha, args.base, args.output),
                *(args.student, args.denoising),
            )
        elif args.layout == "embedded":
            export_embedded(checkpoint, network, alpha, args.base, args.output)
        elif args.layout == "lora":
            networks = {"generator_lora": network_of(checkpoint, network, source)}
            if any(name.startswith("critic.") for name in checkpoint["state_dict"]):
                networks["critic_lora"] = network_of(checkpoint, "critic", source)
            save_official(args.output, official_adapters(**networks))
        else:
            tensors = merged(network_of(checkpoint, network, source), alpha)
            save_official(args.output, official_generator(tensors))
    except UserError as error:
        print(f"export_student: error: {error}", file=sys.stderr)
        return 2
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
