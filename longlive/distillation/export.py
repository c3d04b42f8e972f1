"""A student out of a training checkpoint: weights alone, in a layout that others read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from longlive.errors import UserError
from longlive.models.sizes import DiTConfig
from longlive.video.atomic import cannot_write, make_parent, part_path
from longlive.weights.lora import Adapter, merge_lora

Network = Literal["student", "student_average", "critic"]


def network_of(checkpoint: Mapping[str, Any], network: Network, source: str) -> dict[str, Tensor]:
    """Weights of one network of a checkpoint, under the names of the bare transformer.

    Args:
        checkpoint: What ``read_checkpoint`` gave.
        network: Which one.
        source: Name of the file, for messages.

    Raises:
        UserError: If the checkpoint does not hold it.
    """
    prefix = f"{network}."
    tensors = {
        name.removeprefix(prefix): value
        for name, value in checkpoint.get("state_dict", {}).items()
        if name.startswith(prefix)
    }
    if not tensors:
        raise UserError(f"{source} holds no {network}: name a checkpoint of distillation")
    return tensors


def config_of(checkpoint: Mapping[str, Any], network: Network) -> DiTConfig:
    """Shape of a network of a checkpoint."""
    return DiTConfig(**checkpoint["sizes"][network])


def split_adapters(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Adapter]]:
    """Part a network that was trained with LoRA into the base weights and the adapters."""
    base, factors = {}, dict[str, dict[str, Tensor]]()
    for name, value in tensors.items():
        target, found, side = name.rpartition(".lora_")
        if found:
            factors.setdefault(target, {})[side[0]] = value
        else:
            base[name.replace(".base_layer.", ".")] = value
    return base, {target: Adapter(pair["A"], pair["B"]) for target, pair in factors.items()}


def merged(tensors: Mapping[str, Tensor], alpha: float | None) -> dict[str, Tensor]:
    """Weights with their adapters added, if they have any."""
    base, adapters = split_adapters(tensors)
    return merge_lora(base, adapters, alpha) if adapters and alpha is not None else base


def official_generator(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The layout of ``longlive_base.pt``: names under ``model.``, in ``generator``."""
    return {"generator": {f"model.{name}": value for name, value in tensors.items()}}


def official_adapters(**networks: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The layout of ``lora.pt``.

    Args:
        **networks: ``generator_lora`` and ``critic_lora``: weights with adapters.

    Raises:
        UserError: If one has none.
    """
    found = {}
    for entry, tensors in networks.items():
        _, adapters = split_adapters(tensors)
        if not adapters:
            raise UserError(f"there are no adapters for {entry}: the run trained all weights")
        found[entry] = {
            f"base_model.model.{target}.lora_{side}.weight": factor
            for target, pair in adapters.items()
            for side, factor in zip("AB", pair, strict=True)
        }
    return found


def save_official(path: Path, content: Mapping[str, Any]) -> None:
    """Write a ``.pt`` file: all of it, or nothing.

    Raises:
        UserError: If it cannot be written.
    """
    make_parent(path)
    part = part_path(path)
    try:
        torch.save(dict(content), part)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        reason = error if isinstance(error, OSError) else OSError(str(error).splitlines()[0])
        raise cannot_write(path, reason) from error
