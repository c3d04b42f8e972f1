"""The named sizes of the diffusion transformer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longlive.errors import UserError


@dataclass(frozen=True, slots=True)
class DiTConfig:
    """Shape of a diffusion transformer.

    Attributes:
        width: Model width.
        ffn_width: Hidden width of the feed-forward network.
        heads: Attention heads; must divide the width into an even head width.
        layers: Transformer layers.
        text_width: Width of the text encoder's output.
        text_len: Text positions that are attended, padding included.
        patch: Rows and columns of latent values in one token.
        latent_channels: Channels of the latents, in and out.
        frequency_width: Width of the sinusoidal timestep features.
        eps: Added to variances in every norm.
    """

    width: int
    ffn_width: int
    heads: int
    layers: int
    text_width: int
    text_len: int
    patch: int = 2
    latent_channels: int = 16
    frequency_width: int = 256
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.width % self.heads or self.head_dim % 2:
            raise UserError(
                f"{self.heads} heads do not divide a width of {self.width} into even head widths"
            )

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads

    @classmethod
    def from_official(cls, config: Mapping[str, Any], **defaults: Any) -> "DiTConfig":
        """Read a Wan ``config.json``.

        Args:
            config: Its content; text width, patch size and norm switches may be absent.
            **defaults: Fields of this class to use where ``config`` is silent.
        """
        names = {
            "width": "dim",
            "ffn_width": "ffn_dim",
            "heads": "num_heads",
            "layers": "num_layers",
            "text_width": "text_dim",
            "text_len": "text_len",
            "latent_channels": "in_dim",
            "frequency_width": "freq_dim",
            "eps": "eps",
        }
        fields = {"text_width": 4096, "text_len": 512, **defaults}
        fields |= {ours: config[theirs] for ours, theirs in names.items() if theirs in config}
        if "patch_size" in config:
            fields["patch"] = config["patch_size"][-1]
        return cls(**fields)


SIZES: dict[str, DiTConfig] = {
    "tiny": DiTConfig(
        width=256, ffn_width=1024, heads=4, layers=6, text_width=64, text_len=16, patch=1
    ),
    "wan-1.3b": DiTConfig(
        width=1536, ffn_width=8960, heads=12, layers=30, text_width=4096, text_len=512
    ),
    "wan-14b": DiTConfig(
        width=5120, ffn_width=13824, heads=40, layers=40, text_width=4096, text_len=512
    ),
}


def dit_config(size: str) -> DiTConfig:
    """Look up a named size.

    Raises:
        UserError: If the name is unknown.
    """
    if size not in SIZES:
        raise UserError(f"unknown model size {size!r}: choose one of {', '.join(SIZES)}")
    return SIZES[size]
