"""A folder of weights like the embedded model's, of random weights: a block takes milliseconds."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from longlive.models.dit import DiT
from longlive.models.sizes import DiTConfig
from longlive.models.text_encoder import UMT5Config, UMT5Encoder
from longlive.models.tokenizer import build_word_tokenizer
from longlive.models.vae import WanVAE
from longlive.models.vae_networks import VAEConfig
from longlive.weights.embedded import save_component
from longlive.weights.synthetic import fill_synthetic

WORDS = ("a", "red", "blue", "circle", "square", "large", "small", "bounces", "spins", "over")
DIT = DiTConfig(
    width=16, ffn_width=16, heads=2, layers=2, text_width=8, text_len=6, patch=1, frequency_width=8
)
VAE = VAEConfig(
    base_width=2,
    encoder_res_blocks=1,
    decoder_res_blocks=1,
    latent_mean=(0.0,) * 16,
    latent_std=(1.0,) * 16,
)
TEXT = UMT5Config(
    vocab=16, width=8, attention_width=8, ffn_width=8, heads=2, layers=1, text_len=DIT.text_len
)
# What the command line and the class need besides the weights.
SETTINGS: dict[str, Any] = {
    "size": "tiny",
    "student": None,
    "height_px": 32,
    "width_px": 48,
    "denoising_steps": [1000, 500],
    "window_latent_frames": 6,
    "sink_latent_frames": 3,
    "positions": "absolute",
    "sampler": "renoise",
}


def write_nano_model(folder: Path, text_len: int = DIT.text_len, dit: DiTConfig = DIT) -> Path:
    """Write the folder; ``text_len`` tokens of a prompt are read."""
    dit = replace(dit, text_len=text_len)
    text = replace(TEXT, text_len=text_len)
    parts: Iterable[tuple[str, nn.Module, Any]] = (
        ("dit", DiT(dit), dit),
        ("vae", WanVAE(VAE), VAE),
        ("text_encoder", UMT5Encoder(text), text),
    )
    for name, module, config in parts:
        fill_synthetic(module)
        save_component(folder, name, module.state_dict(), asdict(config))
    build_word_tokenizer(WORDS).save(str(folder / "tokenizer.json"))
    return folder
