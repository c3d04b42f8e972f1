"""The small model that ships inside the package, and any folder of the same layout.

``config.json`` (sizes and latent statistics), ``vae.safetensors``, ``dit.safetensors``,
``text_encoder.safetensors``, ``tokenizer.json``, and perhaps ``tiny_decoder.safetensors``. Matrices
are stored in eight bits (:mod:`longlive.weights.compact`). Distilled students of the transformer
lie beside it, each under a name of its own: ``dit_4step.safetensors`` is the student ``4step``, as
its change from ``dit.safetensors`` in four bits (:mod:`longlive.weights.changes`).
``student_steps`` of the configuration has the steps that each takes.
"""

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.models.sizes import DiTConfig
from longlive.models.text_encoder import UMT5Config, UMT5Encoder
from longlive.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from longlive.models.tokenizer import PromptTokenizer
from longlive.models.vae import WanVAE
from longlive.models.vae_networks import VAEConfig
from longlive.weights.changes import holds_change, pack_change, unpack_change
from longlive.weights.compact import pack, unpack
from longlive.weights.loading import load_strict
from longlive.weights.state_dicts import read_metadata, read_state_dict

CONFIG_FILE = "config.json"
_BASE = "base_sha256"
"""In the metadata of a student: the file that it is a change of."""
_STEPS = "student_steps"

Module = TypeVar("Module", bound=nn.Module)
Size = TypeVar("Size", DiTConfig, UMT5Config, VAEConfig, TinyDecoderConfig)


def embedded_folder() -> Path:
    """Where the weights inside the package are."""
    return Path(str(files("longlive") / "assets" / "tiny"))


def read_config(folder: str | Path | None = None) -> dict[str, Any]:
    """Read ``config.json`` of a folder; None is the one in the package.

    Raises:
        UserError: If there is none, or it is no JSON object.
    """
    path = _config_path(folder)
    if not path.is_file():
        raise UserError(f"no {CONFIG_FILE} in {path.parent}: name a folder of converted weights")
    try:
        config: dict[str, Any] = {**json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): copy it again") from error
    return config


def is_embedded_folder(folder: str | Path) -> bool:
    """Tell whether a folder has this layout; published models have a ``config.json``, too."""
    return _config_path(folder).is_file() and "dit" in read_config(folder)


def load_vae(folder: str | Path | None = None) -> WanVAE:
    """Read the VAE."""
    with torch.device("meta"):
        vae = WanVAE(_size(VAEConfig, folder, "vae"))
    return _load(vae, folder, "vae")


def load_tiny_decoder(folder: str | Path | None = None) -> TinyDecoder:
    """Read the tiny decoder, which not every folder has.

    Raises:
        UserError: If there is none.
    """
    if "tiny_decoder" not in read_config(folder):
        raise UserError(
            f"no tiny decoder in {_config_path(folder).parent}: set model.decoder to wan, or train "
            "one (configs/train/tiny_decoder.yaml)"
        )
    with torch.device("meta"):
        decoder = TinyDecoder(_size(TinyDecoderConfig, folder, "tiny_decoder"))
    return _load(decoder, folder, "tiny_decoder")


def student_names(folder: str | Path | None = None) -> tuple[str, ...]:
    """Names of the students in a folder."""
    prefix = component_of("")
    return tuple(
        name.removeprefix(prefix) for name in read_config(folder) if name.startswith(prefix)
    )


def steps_of_alike(student: str, folder: str | Path | None = None) -> dict[str, tuple[int, ...]]:
    """Steps of all students in a folder that have the size of one of them, as far as known.

    Those whose file is missing, or is the change of another model, are left out.
    """
    config = read_config(folder)
    size = config.get(component_of(student))
    base = _fingerprint(Path(folder or embedded_folder()) / "dit.safetensors")
    return {
        name: tuple(steps)
        for name, steps in config.get(_STEPS, {}).items()
        if size is not None and config.get(component_of(name)) == size
        if _is_whole(Path(folder or embedded_folder()) / f"{component_of(name)}.safetensors", base)
    }


def _is_whole(path: Path, base: str) -> bool:
    return path.is_file() and read_metadata(path).get(_BASE, base) == base


def component_of(student: str | None) -> str:
    """Name of a student's component; None is the many-step model itself."""
    return "dit" if student is None else f"dit_{student}"


def load_dit(folder: str | Path | None = None, student: str | None = None) -> DiT:
    """Read the diffusion transformer, or a student of it.

    Raises:
        UserError: If there is no such student, or the folder is no folder of weights.
    """
    if student is not None and student not in (known := student_names(folder)):
        where = _config_path(folder).parent
        raise UserError(
            f"no student {student!r} in {where}: "
            + (f"choose one of {', '.join(known)}" if known else "train it with train/students.py")
            + ", or set model.student to null (--config configs/student/teacher.yaml has the rest)"
        )
    name = component_of(student)
    with torch.device("meta"):
        dit = DiT(_size(DiTConfig, folder, name))
    return _load(dit, folder, name)


def save_student(
    folder: Path,
    student: str,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    steps: Sequence[int] = (),
) -> Path:
    """Write a student beside the model: as its change in four bits if it has the same size.

    Args:
        folder: Holds the many-step model, which the student was trained from.
        student: Its name.
        tensors: Its weights.
        config: Its size.
        steps: Denoising steps that it was distilled for, if they are to be known.
    """
    name, base = component_of(student), folder / "dit.safetensors"
    known = read_config(folder).get("dit")
    every: dict[str, Any] = {**read_config(folder).get(_STEPS, {}), student: list(steps)}
    _note(folder, _STEPS, {name: own for name, own in every.items() if own})
    if known != json.loads(json.dumps(config)):
        return save_component(folder, name, tensors, config)
    path = folder / f"{name}.safetensors"
    change = pack_change(tensors, unpack(read_state_dict(base)))
    save_file(change, path, {"format": "pt", "stored": "int4 change", _BASE: _fingerprint(base)})
    _note(folder, name, config)
    return path


def forget_students(folder: Path) -> None:
    """Have a folder name no students, because its model is another one than theirs."""
    students = {component_of(name) for name in student_names(folder)} | {_STEPS}
    kept = {name: part for name, part in read_config(folder).items() if name not in students}
    (folder / CONFIG_FILE).write_text(json.dumps(kept, indent=1) + "\n")


def load_text_encoder(folder: str | Path | None = None) -> UMT5Encoder:
    """Read the text encoder."""
    with torch.device("meta"):
        encoder = UMT5Encoder(_size(UMT5Config, folder, "text_encoder"))
    return _load(encoder, folder, "text_encoder")


def load_tokenizer(folder: str | Path | None = None) -> PromptTokenizer:
    """Read the tokenizer."""
    text_len = _size(UMT5Config, folder, "text_encoder").text_len
    return PromptTokenizer.from_folder(folder or embedded_folder(), text_len)


def save_component(
    folder: Path, name: str, tensors: dict[str, Tensor], config: dict[str, Any]
) -> Path:
    """Write one component's weights in eight bits and its entry of ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    save_file(pack(tensors), path, metadata={"format": "pt", "stored": "int8 rows"})
    _note(folder, name, config)
    return path


def _note(folder: Path, name: str, entry: dict[str, Any]) -> None:
    file = folder / CONFIG_FILE
    whole = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**whole, name: entry}, indent=1) + "\n")


def _config_path(folder: str | Path | None) -> Path:
    return Path(folder or embedded_folder()) / CONFIG_FILE


def _size(kind: type[Size], folder: str | Path | None, name: str) -> Size:
    """Read the size of one component."""
    stored: Any = read_config(folder).get(name)
    try:
        # JSON has no tuples.
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()
        }
        return kind(**fields)
    except (AttributeError, TypeError) as error:
        path = _config_path(folder)
        raise UserError(f"{path} does not describe a {name} ({error}): copy it again") from error


def _load(module: Module, folder: str | Path | None, name: str) -> Module:
    path = Path(folder or embedded_folder()) / f"{name}.safetensors"
    tensors = read_state_dict(path)
    if holds_change(tensors):
        base = path.with_name("dit.safetensors")
        if read_metadata(path).get(_BASE) != _fingerprint(base):
            raise UserError(
                f"{path} is the change of another {base.name} than the one beside it: copy both "
                "from one place, or export the student again"
            )
        weights = unpack_change(tensors, unpack(read_state_dict(base)))
    else:
        weights = unpack(tensors)
    load_strict(module, weights, str(path))
    return module.eval()


def _fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
