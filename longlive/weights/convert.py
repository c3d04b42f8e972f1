"""Published base weights and LoRA to one safetensors file of our own, with its papers.

The result needs half the disk and none of the adapters' arithmetic. Merging is done in float32 and
rounded once, which is not what the reference runs: see ``longlive.weights.lora``.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import longlive
from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.models.sizes import SIZES, DiTConfig
from longlive.weights.layouts import config_beside, format_size
from longlive.weights.loading import check_fit
from longlive.weights.lora import Adapter, adapters_of, merge_lora
from longlive.weights.recognize import layer_count, recognize
from longlive.weights.state_dicts import read_checkpoint, read_state_dict

WEIGHTS_FILE = "longlive.safetensors"
HEADER_KEY = "longlive_conversion"
"""Entry of the file's header: a JSON object of texts, see ``Conversion.facts``."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was made of what; goes into the file's header and the model card."""

    base: Path
    lora: Path | None
    alpha: float
    rank: int | None
    dtype: str

    def facts(self) -> dict[str, str]:
        """Return what a reader of the file may want to know, hashes of the sources included."""
        entries = {
            "base": self.base.name,
            "base_sha256": _sha256(self.base),
            "dtype": self.dtype,
            "longlive": longlive.__version__,
            "torch": str(torch.__version__),
        }
        if self.lora is not None:
            entries |= {
                "lora": self.lora.name,
                "lora_sha256": _sha256(self.lora),
                "lora_alpha": f"{self.alpha:g}",
                "lora_rank": str(self.rank),
            }
        return entries


def convert(
    base: str | Path,
    lora: str | Path | None,
    output: str | Path,
    alpha: float = 256.0,
    dtype: str = "bfloat16",
    *,
    entry: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Merge an adapter into base weights and write them as one folder.

    Args:
        base: Transformer weights in any layout that is understood, ``longlive_base.pt`` for one.
        lora: Its adapter, ``lora.pt`` for one; None to convert the base alone.
        output: Folder for ``longlive.safetensors``, ``config.json`` and ``README.md``.
        alpha: Numerator of the adapter's scale ``alpha / rank``.
        dtype: Type to store: ``bfloat16``, ``float16`` or ``float32``.
        entry: State dict of the base to take, such as ``generator_ema``.
        overwrite: Replace weights that are there.

    Returns:
        The weight file. It appears under its name only when it is complete.

    Raises:
        UserError: If an input is missing, damaged or does not fit, or the output exists.
    """
    base, output = Path(base), Path(output)
    lora = None if lora is None else Path(lora)
    target = output / WEIGHTS_FILE
    if dtype not in DTYPES:
        raise UserError(f"cannot store weights as {dtype!r}; choose from {', '.join(DTYPES)}")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; choose another folder, or allow overwriting")

    tensors = read_state_dict(base, entry)
    config = config_of(tensors, base)
    adapters: dict[str, Adapter] = {}
    if lora is not None:
        adapters = adapters_of(read_checkpoint(lora), str(lora))
    merged = merge_lora(tensors, adapters, alpha, DTYPES[dtype])

    rank = next((adapter.rank for adapter in adapters.values()), None)
    conversion = Conversion(base, lora, alpha, rank, dtype)
    facts = conversion.facts()
    output.mkdir(parents=True, exist_ok=True)
    # One entry: the order of several changes from run to run, and with it the file's hash.
    _write_whole(merged, target, {HEADER_KEY: json.dumps(facts, sort_keys=True)})
    (output / "config.json").write_text(json.dumps(official_config(config), indent=2) + "\n")
    (output / "README.md").write_text(model_card(config, facts), encoding="utf-8")
    return target


def config_of(tensors: Mapping[str, Tensor], base: Path) -> DiTConfig:
    """Tell a transformer's configuration from the file beside its weights, or from their shapes.

    Raises:
        UserError: If the weights are not a transformer's, or of a size without name or file.
    """
    candidates = [config_beside(base), *SIZES.values()]
    for config in candidates:
        if config is not None and _fits(config, tensors):
            with torch.device("meta"):
                check_fit(DiT(config).state_dict(), tensors, str(base))
            return config
    found = recognize({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    raise UserError(
        f"{base} holds {found or 'no transformer weights'}, which no known size has; put the "
        "model's config.json beside it"
    )


def _fits(config: DiTConfig, tensors: Mapping[str, Tensor]) -> bool:
    patches, text = (
        tensors.get(f"{name}.weight") for name in ("patch_embedding", "text_embedding.0")
    )
    if patches is None or text is None:
        return False
    return (config.layers, config.width, config.text_width) == (
        layer_count(tensors),
        patches.shape[0],
        text.shape[1],
    )


def official_config(config: DiTConfig) -> dict[str, object]:
    """Return a configuration under the keys of Wan's ``config.json``."""
    return {
        "model_type": "t2v",
        "patch_size": [1, config.patch, config.patch],
        "text_len": config.text_len,
        "text_dim": config.text_width,
        "in_dim": config.latent_channels,
        "out_dim": config.latent_channels,
        "dim": config.width,
        "ffn_dim": config.ffn_width,
        "freq_dim": config.frequency_width,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "eps": config.eps,
    }


def model_card(config: DiTConfig, facts: Mapping[str, str]) -> str:
    """Write the README that goes with converted weights."""
    sources = [f"| base weights | `{facts['base']}` | `{facts['base_sha256']}` |"]
    merged = "No adapter was merged."
    if "lora" in facts:
        sources.append(f"| LoRA | `{facts['lora']}` | `{facts['lora_sha256']}` |")
        merged = (
            f"The LoRA (rank {facts['lora_rank']}, alpha {facts['lora_alpha']}) was merged "
            "in float32 and rounded once."
        )
    return "\n".join(
        [
            "---",
            "library_name: longlive",
            "pipeline_tag: text-to-video",
            "---",
            "",
            "# LongLive weights, converted",
            "",
            f"`{WEIGHTS_FILE}`: a causal video transformer of {config.layers} layers and width "
            f"{config.width}, stored as {facts['dtype']}.",
            merged,
            "",
            "| made from | file | SHA-256 |",
            "| --- | --- | --- |",
            *sources,
            "",
            f"Written by longlive {facts['longlive']} with torch {facts['torch']}. The "
            "licenses of the sources apply.",
            "",
        ]
    )


def _write_whole(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
    """Write under another name first, so that a file of the right name is always complete."""
    needed = sum(tensor.nbytes for tensor in tensors.values())
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise UserError(
            f"{target.parent} has {format_size(free)} free and the weights need "
            f"{format_size(needed)}; make room, or choose another folder"
        )
    partial = target.with_name(f".{target.name}.partial")
    try:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata
        )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
