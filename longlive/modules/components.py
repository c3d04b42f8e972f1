"""Puts a whole model together: from the package, from the published files, or from nothing."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from longlive.data.shapes_data import shapes_tokenizer
from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.models.sizes import dit_config
from longlive.models.text_encoder import UMT5Encoder, text_encoder_config
from longlive.models.tiny_decoder import TinyDecoder, published_weights
from longlive.models.tokenizer import PromptTokenizer, build_byte_tokenizer
from longlive.models.vae import WanVAE
from longlive.models.vae_layers import use_channels_last
from longlive.weights import embedded
from longlive.weights.layouts import COMPONENTS, locate
from longlive.weights.loading import load_strict
from longlive.weights.lora import adapters_of, inject_lora, merge_lora
from longlive.weights.state_dicts import read_checkpoint, read_state_dict
from longlive.weights.synthetic import fill_synthetic

LoraMode = Literal["merged", "unmerged"]
DecoderName = Literal["wan", "tiny"]

LORA_ALPHA = 256.0


@dataclass(frozen=True, slots=True)
class Components:
    """The parts of a text-to-video model, in evaluation mode.

    Attributes:
        dit: Diffusion transformer.
        text_encoder: Text encoder.
        tokenizer: Its tokenizer.
        decoder: Latents to frames; has ``open_stream()``.
        kind: What the weights are, in a word: ``embedded``, ``synthetic`` or ``released``.
        source: Where they came from.
    """

    dit: DiT
    text_encoder: UMT5Encoder
    tokenizer: PromptTokenizer
    decoder: WanVAE | TinyDecoder
    kind: str
    source: str


def build_components(
    weights: str,
    *,
    size: str,
    decoder: DecoderName,
    lora: LoraMode,
    device: torch.device,
    dtype: torch.dtype,
    student: str | None = None,
) -> Components:
    """Build and load every part on a device.

    Args:
        weights: ``embedded`` for the model in the package, ``synthetic`` for random weights of
            ``size``, else a folder: of the embedded model's layout, or a models folder with the
            published files (:mod:`longlive.weights.layouts`).
        size: Size of the transformer; the embedded layout knows its own.
        decoder: The VAE's own decoder, or the tiny one.
        lora: Whether published adapters are merged into the weights, or run beside them as in the
            reference.
        device: Where the weights go.
        dtype: Their type.
        student: Name of a distilled student beside a model of the embedded layout; None for the
            many-step model.

    Raises:
        UserError: If files are missing, damaged, or of another size.
    """
    is_embedded = weights == "embedded" or (
        weights != "synthetic" and embedded.is_embedded_folder(weights)
    )
    if student is not None and not is_embedded:
        raise UserError(
            f"{weights} weights have no students beside them: set model.student to null"
        )
    if weights == "synthetic":
        parts = _synthetic(size, decoder, device, dtype)
    elif is_embedded:
        folder = None if weights == "embedded" else weights
        parts = _embedded(folder, student, decoder, device, dtype)
    else:
        parts = _released(weights, size, decoder, lora, device, dtype)
    if isinstance(parts.decoder, WanVAE):
        use_channels_last(parts.decoder)
    for module in (parts.dit, parts.text_encoder, parts.decoder):
        module.eval().requires_grad_(False)
    return parts


def with_student(parts: Components, weights: str, student: str) -> Components:
    """The same parts, the transformer with another student's weights, which replace its own.

    Args:
        parts: Of the embedded layout; the transformer has the student's size and no layers that
            an optimization has replaced.
        weights: As they were built with.
        student: Its name.

    Raises:
        UserError: If there is no such student.
    """
    folder = None if weights == "embedded" else weights
    parts.dit.load_state_dict(embedded.load_dit(folder, student).state_dict())
    return replace(parts, source=_embedded_source(folder, student))


def _embedded(
    folder: str | None,
    student: str | None,
    decoder: DecoderName,
    device: torch.device,
    dtype: torch.dtype,
) -> Components:
    load_decoder = embedded.load_vae if decoder == "wan" else embedded.load_tiny_decoder
    return Components(
        dit=embedded.load_dit(folder, student).to(device, dtype),
        text_encoder=embedded.load_text_encoder(folder).to(device, dtype),
        tokenizer=embedded.load_tokenizer(folder),
        decoder=load_decoder(folder).to(device, dtype),
        kind="embedded" if folder is None else "converted",
        source=_embedded_source(folder, student),
    )


def _embedded_source(folder: str | None, student: str | None) -> str:
    source = folder or "the package's own small model of the shapes world"
    return source if student is None else f"{source}, student {student}"


def _synthetic(
    size: str, decoder: DecoderName, device: torch.device, dtype: torch.dtype
) -> Components:
    with torch.device("meta"):
        dit = DiT(dit_config(size))
        text_encoder = UMT5Encoder(text_encoder_config("tiny" if size == "tiny" else "umt5-xxl"))
        decoder_size = "tiny" if size == "tiny" else "wan"
        made = WanVAE(decoder_size) if decoder == "wan" else TinyDecoder(decoder_size)
    for module in (dit, text_encoder, made):
        fill_synthetic(module, dtype=dtype, device=device)
    # The table of the tiny text encoder has fewer rows than there are bytes.
    tokenizer = (
        shapes_tokenizer()
        if size == "tiny"
        else PromptTokenizer(build_byte_tokenizer(), text_encoder.config.text_len)
    )
    return Components(dit, text_encoder, tokenizer, made, "synthetic", f"random weights, {size}")


def _released(
    root: str,
    size: str,
    decoder: DecoderName,
    lora: LoraMode,
    device: torch.device,
    dtype: torch.dtype,
) -> Components:
    converted = COMPONENTS["converted"].find(Path(root))
    transformer = ["converted"] if converted else ["longlive_base", "longlive_lora"]
    decoder_file = "vae" if decoder == "wan" else "taehv"
    paths = locate([*transformer, "text_encoder", "tokenizer", decoder_file], root)
    with torch.device("meta"):
        dit = DiT(dit_config(size))
        text_encoder = UMT5Encoder(text_encoder_config("umt5-xxl"))
        made = WanVAE("wan") if decoder == "wan" else TinyDecoder()
    if converted:
        load_strict(dit, read_state_dict(converted), str(converted), dtype, device)
    else:
        _load_base_and_lora(dit, paths, lora, device, dtype)
    text_path, decoder_path = paths["text_encoder"], paths[decoder_file]
    load_strict(text_encoder, read_state_dict(text_path), str(text_path), dtype, device)
    tensors = read_state_dict(decoder_path)
    if isinstance(made, TinyDecoder):
        tensors = published_weights(tensors, made)
    load_strict(made, tensors, str(decoder_path), dtype, device)
    tokenizer = PromptTokenizer.from_folder(paths["tokenizer"], dit.config.text_len)
    source = str(converted or paths["longlive_base"])
    return Components(dit, text_encoder, tokenizer, made, "released", source)


def _load_base_and_lora(
    dit: DiT, paths: dict[str, Path], lora: LoraMode, device: torch.device, dtype: torch.dtype
) -> None:
    base_path, lora_path = paths["longlive_base"], paths["longlive_lora"]
    adapters = adapters_of(read_checkpoint(lora_path), str(lora_path))
    tensors = read_state_dict(base_path)
    if lora == "merged":
        tensors = merge_lora(tensors, adapters, LORA_ALPHA)
    load_strict(dit, tensors, str(base_path), dtype, device)
    if lora == "unmerged":
        inject_lora(dit, adapters, LORA_ALPHA)
        dit.to(device, dtype)
