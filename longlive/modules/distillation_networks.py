"""The networks of distillation: where their weights come from, and whether they fit together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from longlive.data.shapes_data import shapes_tokenizer
from longlive.distillation.export import merged
from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.models.sizes import DiTConfig, dit_config
from longlive.models.text_encoder import UMT5Encoder, text_encoder_config
from longlive.models.tokenizer import PromptTokenizer, build_byte_tokenizer
from longlive.models.vae import WanVAE
from longlive.models.vae_layers import use_channels_last
from longlive.weights import embedded
from longlive.weights.layouts import locate
from longlive.weights.loading import load_strict
from longlive.weights.state_dicts import read_checkpoint, read_state_dict
from longlive.weights.synthetic import fill_synthetic

Role = Literal["student", "teacher", "critic"]


@dataclass(frozen=True, slots=True)
class Language:
    """Prompts to embeddings; nothing is learned.

    Attributes:
        encoder: Text encoder.
        tokenizer: Its tokenizer.
    """

    encoder: UMT5Encoder
    tokenizer: PromptTokenizer

    @torch.no_grad()
    def embed(self, prompts: tuple[str, ...] | list[str]) -> Tensor:
        """Embeddings ``[B, M, E]`` float32, zero past each prompt's end."""
        tokens = self.tokenizer(list(prompts), allow_empty=True)
        return self.encode(tokens.ids, tokens.mask)

    @torch.no_grad()
    def encode(self, ids_BM: Tensor, mask_BM: Tensor) -> Tensor:
        """The same for tokens."""
        device = next(self.encoder.parameters()).device
        text: Tensor = self.encoder(ids_BM.to(device), mask_BM.to(device), trim=False)
        return text.float()


def build_transformer(
    source: str,
    size: str,
    role: Role,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    drawn_on: torch.device | None = None,
) -> DiT:
    """Build a transformer with weights, ready to be trained or not.

    Args:
        source: ``embedded``, ``synthetic``, a folder of the embedded layout, a models folder with
            the published Wan files, a student of the package (``4step``), or a file: published or
            converted weights, or a ``.ckpt`` of a stage before this one.
        size: Its size; the embedded layout knows its own.
        role: Which network of a ``.ckpt`` is wanted. Of a student the average, if there is one.
        device: Where the weights go.
        dtype: Their type.
        drawn_on: Where synthetic ones are drawn; there by default.

    Raises:
        UserError: If weights are missing, damaged or of another size.
    """
    if source == "embedded" or (Path(source).is_dir() and embedded.is_embedded_folder(source)):
        return embedded.load_dit(None if source == "embedded" else source).to(device, dtype)
    if not Path(source).exists() and source in embedded.student_names():
        return embedded.load_dit(None, source).to(device, dtype)
    with torch.device("meta"):
        dit = DiT(dit_config(size))
    if source == "synthetic":
        fill_synthetic(dit, dtype=dtype, device=device, drawn_on=drawn_on)
        return dit.eval()
    path = Path(source)
    if path.is_dir():
        path = locate([size], path)[size]
    if path.suffix == ".ckpt":
        return _of_stage(path, role, device, dtype)
    load_strict(dit, read_state_dict(path), str(path), dtype, device)
    return dit.eval()


def _of_stage(path: Path, role: Role, device: torch.device, dtype: torch.dtype) -> DiT:
    content = read_checkpoint(path)
    tensors, sizes = content.get("state_dict"), content.get("sizes", {})
    names = ("student_average", "student", "dit") if role == "student" else (role, "dit")
    for name in names:
        found = {
            key.removeprefix(f"{name}."): value
            for key, value in (tensors or {}).items()
            if key.startswith(f"{name}.")
        }
        if found and name in sizes:
            with torch.device("meta"):
                dit = DiT(DiTConfig(**sizes[name]))
            # A stage with adapters goes on in the weights of the next.
            found = merged(found, content["lora"][1] if content.get("lora") else None)
            load_strict(dit, found, f"{path} ({name})", dtype, device)
            return dit.eval()
    raise UserError(f"{path} holds no {role}: name a checkpoint of a training stage")


def build_language(source: str, size: str, device: torch.device, dtype: torch.dtype) -> Language:
    """Build the text encoder that goes with a source of weights.

    Args:
        source: As for :func:`build_transformer`; a file has none.
        size: Size of the student.
        device: Where the weights go.
        dtype: Their type.

    Raises:
        UserError: If weights are missing or damaged.
    """
    if source == "embedded" or (Path(source).is_dir() and embedded.is_embedded_folder(source)):
        folder = None if source == "embedded" else source
        encoder, tokenizer = embedded.load_text_encoder(folder), embedded.load_tokenizer(folder)
        encoder = encoder.to(device, dtype)
    elif source == "synthetic":
        with torch.device("meta"):
            encoder = UMT5Encoder(text_encoder_config("tiny" if size == "tiny" else "umt5-xxl"))
        fill_synthetic(encoder, dtype=dtype, device=device)
        text_len = encoder.config.text_len
        byte_tokenizer = PromptTokenizer(build_byte_tokenizer(), text_len)
        tokenizer = shapes_tokenizer() if size == "tiny" else byte_tokenizer
    else:
        paths = locate(["text_encoder", "tokenizer"], _folder(source))
        with torch.device("meta"):
            encoder = UMT5Encoder(text_encoder_config("umt5-xxl"))
        path = paths["text_encoder"]
        load_strict(encoder, read_state_dict(path), str(path), dtype, device)
        tokenizer = PromptTokenizer.from_folder(paths["tokenizer"], encoder.config.text_len)
    return Language(encoder.eval().requires_grad_(False), tokenizer)


def build_vae(source: str, size: str, device: torch.device, dtype: torch.dtype) -> WanVAE:
    """Build the VAE that goes with a source of weights; arguments as :func:`build_language`."""
    if source == "embedded" or (Path(source).is_dir() and embedded.is_embedded_folder(source)):
        vae = embedded.load_vae(None if source == "embedded" else source).to(device, dtype)
    elif source == "synthetic":
        with torch.device("meta"):
            vae = WanVAE("tiny" if size == "tiny" else "wan")
        fill_synthetic(vae, dtype=dtype, device=device)
    else:
        path = locate(["vae"], _folder(source))["vae"]
        with torch.device("meta"):
            vae = WanVAE("wan")
        load_strict(vae, read_state_dict(path), str(path), dtype, device)
    use_channels_last(vae)
    return vae.eval().requires_grad_(False)


def check_together(networks: dict[str, DiT], text_width: int) -> None:
    """Check that the networks can look at the same latents under the same text.

    Raises:
        UserError: Naming the one that cannot.
    """
    channels = networks["student"].config.latent_channels
    for name, dit in networks.items():
        if dit.config.latent_channels != channels:
            raise UserError(
                f"the {name} takes {dit.config.latent_channels} latent channels and the student "
                f"makes {channels}: choose weights of the same VAE"
            )
        if dit.config.text_width != text_width:
            raise UserError(
                f"the {name} takes text of width {dit.config.text_width} and the text encoder "
                f"makes {text_width}: choose weights of the same text encoder"
            )


def _folder(source: str) -> Path:
    path = Path(source)
    if not path.is_dir():
        raise UserError(
            f"model.weights names a folder with text encoder and VAE, or embedded or synthetic; "
            f"got {source}"
        )
    return path
