"""An optional judge of true against made: a small head on the critic's features.

It sees what the critic's middle layer makes of a noisy clip (DMD2, arXiv:2405.14867, section 4.3),
token by token. It needs true clips; distribution matching alone does not.
"""

# Shape suffixes: B batch, L tokens, E width.

from typing import Any

import torch
from torch import Tensor, nn

from longlive.distillation.levels import NoisyClip
from longlive.distillation.scores import Score


class Discriminator(nn.Module):
    """Logits of tokens: high where they look true.

    Args:
        width: Of the critic.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, features_BLE: Tensor) -> Tensor:
        """Return ``[B, L]``."""
        logits: Tensor = self.head(features_BLE).squeeze(-1)
        return logits


def critic_features(
    critic: Score, clip: NoisyClip, clean_BFCHW: Tensor, text_BME: Tensor
) -> Tensor:
    """Tokens of a noisy clip after the critic's middle layer, ``[B, L, E]``.

    Args:
        critic: Whose features.
        clip: The clip with noise.
        clean_BFCHW: The same without; the history that a causal critic sees.
        text_BME: Embeddings of the prompts.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        # A layer that runs again for its backward pass comes by a second time.
        if not seen:
            seen.append(output)

    layer = critic.dit.blocks[critic.dit.config.layers // 2]
    handle = layer.register_forward_hook(keep)
    try:
        critic.velocity(clip.latents, clean_BFCHW, clip.timestep, critic.text(text_BME))
    finally:
        handle.remove()
    [features_BLE] = seen
    if critic.kind == "causal":
        return torch.chunk(features_BLE, 2, 1)[1]
    return features_BLE
