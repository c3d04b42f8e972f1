"""Any weight file as a flat dictionary of named tensors, mapped from disk and not yet read.

Three kinds of file are understood: safetensors, safetensors in shards with an index, and PyTorch
pickles (tensors only; a pickle that would run code is refused). What a pickle wraps around the
tensors, and the prefixes that wrappers leave in names, are taken off.
"""

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from longlive.errors import UserError

# Left in names by FSDP, by activation checkpointing and by torch.compile.
_INFIXES = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
# Attributes under which a pipeline keeps the network and the text encoder.
_PREFIXES = ("model.", "text_encoder.")
_INDEX_SUFFIX = ".safetensors.index.json"
_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_LFS_POINTER = b"version https://git-lfs"


def read_state_dict(path: str | Path, entry: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a file under the names of the bare network.

    Args:
        path: A ``.safetensors``, ``.safetensors.index.json``, ``.pt`` or ``.pth`` file.
        entry: Which state dict of a training checkpoint is wanted: ``generator_ema``, ``critic``.
            By default ``generator``, else ``model``, else the file's own top level.

    Returns:
        Tensors on the CPU. They are mapped from the file, so memory is used when they are read;
        only files of the old PyTorch format are read at once.

    Raises:
        UserError: If the file is missing, damaged, or holds no such state dict.
    """
    return state_dict_of(read_checkpoint(path), str(path), entry)


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """Read a file as it is, with whatever nesting it has.

    Raises:
        UserError: If the file is missing or damaged, or would run code when opened.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the weight file in it")
    if not path.is_file():
        raise UserError(f"no weights at {path}; check the path, or fetch them: `longlive download`")
    if path.name.endswith(_INDEX_SUFFIX):
        return _read_shards(path)
    with _one_line_errors(path):
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in _PICKLE_SUFFIXES:
            return _read_pickle(path)
    known = ", ".join((".safetensors", _INDEX_SUFFIX, *_PICKLE_SUFFIXES))
    raise UserError(f"{path} is not a weight file; the name must end in one of {known}")


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the text stored in the header of a safetensors file.

    Raises:
        UserError: If the file is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights at {path}; check the path")
    with _one_line_errors(path), safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def state_dict_of(
    content: Mapping[str, Any], source: str, entry: str | None = None
) -> dict[str, Tensor]:
    """Take the wrapping off a checkpoint's content.

    Args:
        content: What ``read_checkpoint`` gave.
        source: Name of the file, for messages.
        entry: As for ``read_state_dict``.

    Raises:
        UserError: If there is no such state dict, or two names become one without their wrappers.
    """
    chosen = content
    for candidate in (entry,) if entry else ("generator", "model"):
        if isinstance(content.get(candidate), Mapping):
            chosen = content[candidate]
            break
    else:
        if entry or not any(isinstance(value, Tensor) for value in content.values()):
            wanted = entry or "generator or model"
            raise UserError(f"{source} has no {wanted}; it has {_some(content)}")
    tensors = {name: value for name, value in chosen.items() if isinstance(value, Tensor)}
    renamed = dict(zip(_bare_names(list(tensors)), tensors.values(), strict=True))
    if len(renamed) < len(tensors):
        raise UserError(f"{source} holds the same tensor twice, with and without a wrapper's name")
    return renamed


def _bare_names(names: list[str]) -> list[str]:
    for infix in _INFIXES:
        names = [name.replace(infix, "") for name in names]
    for prefix in _PREFIXES:
        # One name without it shows that it is a part of the network itself.
        if all(name.startswith(prefix) for name in names):
            names = [name.removeprefix(prefix) for name in names]
    return names


def _some(content: Mapping[str, Any], limit: int = 8) -> str:
    names = [str(name) for name in list(content)[:limit]]
    more = len(content) - len(names)
    return (", ".join(names) or "nothing") + (f" and {more} more" if more else "")


def _read_pickle(path: Path) -> Mapping[str, Any]:
    # Files of the format before zip cannot be mapped.
    is_zip = zipfile.is_zipfile(path)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__} instead of named tensors")
    return content


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(shard_of.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of shards; download it again") from error
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise UserError(
            f"{index} lists shards that are not beside it: {', '.join(missing)}; download them"
        )
    found: dict[str, Tensor] = {}
    for shard in shards:
        with _one_line_errors(index.parent / shard):
            found |= load_file(index.parent / shard)
    absent = [name for name in shard_of if name not in found]
    if absent:
        raise UserError(
            f"the shards of {index} lack {', '.join(absent[:3])} ({len(absent)} in all); "
            "they are of different versions, download them again"
        )
    return found


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn what the readers raise on a bad file into one line that says what to do."""
    try:
        yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        _refuse_placeholder(path, error)
        if zipfile.is_zipfile(path):
            raise UserError(
                f"{path} holds Python objects besides tensors, and opening those could run code; "
                "save its state dict alone"
            ) from error
        raise UserError(_damaged(path, "not a PyTorch file")) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        _refuse_placeholder(path, error)
        reason = str(error).split("\n")[0].split(". ")[0] or type(error).__name__
        raise UserError(_damaged(path, reason)) from error


def _damaged(path: Path, reason: str) -> str:
    size_mb = path.stat().st_size / 1e6
    return (
        f"{path} is damaged or incomplete ({size_mb:.1f} MB; {reason}); "
        "delete it and download it again"
    )


def _refuse_placeholder(path: Path, error: Exception) -> None:
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise UserError(
            f"{path} is a Git LFS placeholder, not the weights; run `git lfs pull` beside it"
        ) from error
