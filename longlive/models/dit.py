"""The diffusion transformer: one class for the causal student and the bidirectional teacher.

Which of the two it is depends on the ``attend`` it is called with (:mod:`longlive.attention.core`);
the weights have the same names and shapes. Names follow the published checkpoints. Architecture:
Wan (arXiv:2503.20314), a DiT (arXiv:2212.09748) with cross-attention to the text.
"""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns, L tokens,
# M tokens of the prompt, E width, N heads, D head dim.

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from longlive.attention.backends import BackendName, resolve_attention
from longlive.attention.core import Attend, FullAttention, MaskedAttention
from longlive.attention.masks import BlockCausal, mask_for
from longlive.attention.rope import Rotation, rotation
from longlive.models.layers import DiTLayer, Head, timestep_features
from longlive.models.sizes import DiTConfig, dit_config
from longlive.schedule import TRAIN_STEPS, add_noise, shift_sigma


class TextKeysValues(Protocol):
    """Keys and values of the prompt per layer: a :class:`CrossCache`, or a plain list."""

    def __getitem__(self, layer: int, /) -> tuple[Tensor, Tensor]: ...


LayerRunner = Callable[..., Tensor]
"""Calls a layer with its inputs; training may call it once more in the backward pass."""


def run_layer(layer: DiTLayer, *inputs: Any) -> Tensor:
    """Call a layer, and nothing else."""
    x_BLE: Tensor = layer(*inputs)
    return x_BLE


TextProjector = Callable[[Sequence[DiTLayer], Tensor], list[tuple[Tensor, Tensor]]]
"""Makes keys and values of an embedded prompt for each of the layers."""


def project_text(layers: Sequence[DiTLayer], text_BME: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Ask one layer after the other; ``[B, M, N, D]`` each."""
    return [layer.text_keys_values(text_BME) for layer in layers]


@dataclass(frozen=True, slots=True)
class TeacherForcingOptions:
    """How a clip is cut and noised in teacher-forced training.

    Attributes:
        block: Latent frames denoised together.
        window: Latent frames a query can see; None for all.
        sink: First latent frames that every later block sees.
        shift: Time shift of the drawn noise levels.
        history_noise: The clean history is noised with a level drawn from [0, this] and still
            called clean, so that the student forgives its own small errors (arXiv:2408.14837,
            section 3.2.1).
    """

    block: int = 3
    window: int | None = 12
    sink: int = 3
    shift: float = 3.0
    history_noise: float = 0.1


class DiT(pl.LightningModule):
    """Predicts the velocity ``noise - x0`` of noisy latents under a prompt.

    Args:
        size: A named size, or a configuration.
        teacher_forcing: How :meth:`flow_matching_loss` cuts and noises clips.
    """

    def __init__(
        self,
        size: str | DiTConfig = "tiny",
        teacher_forcing: TeacherForcingOptions | None = None,
    ) -> None:
        super().__init__()
        config = dit_config(size) if isinstance(size, str) else size
        self.config = config
        self.teacher_forcing = teacher_forcing or TeacherForcingOptions()
        self.run_layer: LayerRunner = run_layer
        self.project_text: TextProjector = project_text
        patch = (1, config.patch, config.patch)
        width = config.width
        self.patch_embedding = nn.Conv3d(config.latent_channels, width, patch, stride=patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_width, width),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, width),
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.frequency_width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(
            DiTLayer(width, config.ffn_width, config.heads, config.eps)
            for _ in range(config.layers)
        )
        self.head = Head(width, config.patch**2 * config.latent_channels, config.eps)

    @property
    def dtype_of_weights(self) -> torch.dtype:
        """Type the transformer computes in; ``self.dtype`` does not follow casts of submodules."""
        return self.patch_embedding.weight.dtype

    @property
    def layers(self) -> Iterator[DiTLayer]:
        """The transformer layers; ``blocks`` is their name in checkpoints."""
        for layer in self.blocks:
            assert isinstance(layer, DiTLayer)
            yield layer

    def reset_parameters(self) -> None:
        """Initialize for training from scratch: small weights, and a head that predicts nothing."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for embedding in (self.text_embedding, self.time_embedding):
            for module in embedding:
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def forward(
        self,
        x_BFCHW: Tensor,
        timestep_BF: Tensor,
        text: TextKeysValues,
        attend: Attend,
        *,
        keys_only: bool = False,
    ) -> Tensor | None:
        """Run the transformer over some latent frames.

        Args:
            x_BFCHW: Noisy latents.
            timestep_BF: 1000 sigma per latent frame; ``[B, 1]`` or ``[1, 1]`` if all frames share
                one.
            text: Keys and values of the prompt, see :meth:`text_keys_values`.
            attend: Self-attention of this call.
            keys_only: Only leave keys and values behind; the output is None.

        Returns:
            Velocity, same shape as ``x_BFCHW``, in the weights' type.
        """
        x_BLE = self.embed_patches(x_BFCHW)
        embedding_BFE, modulation_BF6E = self.embed_timestep(timestep_BF, x_BLE.dtype)
        last = self.config.layers - 1
        for index, layer in enumerate(self.layers):
            if keys_only and index == last:
                layer.store_keys(x_BLE, modulation_BF6E, attend[index])
                return None
            x_BLE = self.run_layer(layer, x_BLE, modulation_BF6E, text[index], attend[index])
        return self._unpatchify(self.head(x_BLE, embedding_BFE), x_BFCHW)

    def embed_patches(self, x_BFCHW: Tensor) -> Tensor:
        """Latents to tokens ``[B, L, E]``, frame by frame, row by row."""
        weight = self.patch_embedding.weight
        patches = rearrange(
            x_BFCHW.to(weight.dtype),
            "B F C (H p) (W q) -> B (F H W) (C p q)",
            p=self.config.patch,
            q=self.config.patch,
        )
        return F.linear(patches, weight.flatten(1), self.patch_embedding.bias)

    def embed_timestep(self, timestep_BF: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Timesteps to an embedding ``[B, F, E]`` and the layers' modulation ``[B, F, 6, E]``."""
        features = timestep_features(timestep_BF, self.config.frequency_width).to(dtype)
        embedding_BFE = self.time_embedding(features)
        return embedding_BFE, self.time_projection(embedding_BFE).unflatten(-1, (6, -1))

    def text_keys_values(self, text_BME: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of a prompt for every layer, ``[B, text_len, N, D]`` each.

        Args:
            text_BME: Text encoder output, zero past the prompt's end; shorter than ``text_len`` is
                padded with zeros. The padding is attended, as in the reference.
        """
        missing = self.config.text_len - text_BME.shape[1]
        padded = F.pad(text_BME.to(self.dtype_of_weights), (0, 0, 0, missing))
        embedded = self.text_embedding(padded)
        return self.project_text(list(self.layers), embedded)

    def rotation(self, positions_F: Tensor, grid_height: int, grid_width: int) -> Rotation:
        """Rotary positions of latent frames of ``grid_height x grid_width`` tokens."""
        return rotation(
            positions_F, grid_height, grid_width, self.config.head_dim, self.dtype_of_weights
        )

    def bidirectional(
        self,
        x_BFCHW: Tensor,
        timestep_B: Tensor,
        text: TextKeysValues,
        attention: BackendName = "auto",
    ) -> Tensor:
        """Velocity of a whole clip in which every latent frame sees every other (teacher, critic).

        Args:
            x_BFCHW: Noisy latents.
            timestep_B: 1000 sigma, one per clip.
            text: Keys and values of the prompts.
            attention: Backend.
        """
        frames = torch.arange(x_BFCHW.shape[1], device=x_BFCHW.device)
        grid = [side // self.config.patch for side in x_BFCHW.shape[-2:]]
        kernel = resolve_attention(attention, x_BFCHW.device, self.dtype_of_weights)
        attend = FullAttention(self.rotation(frames, *grid), kernel)
        velocity = self(x_BFCHW, timestep_B.unsqueeze(1), text, attend)
        assert velocity is not None
        return velocity

    def flow_matching_loss(
        self,
        latents_BFCHW: Tensor,
        text: TextKeysValues,
        starts_B: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Teacher-forced flow-matching loss: each noisy block sees the clean ones before it.

        One pass over ``[clean | noisy]``. Every block of every clip draws its own noise level. A
        clip of one block has no history, and needs half of that.

        Args:
            latents_BFCHW: Clean clips, whole blocks.
            text: Keys and values of their prompts.
            starts_B: First latent frame of each clip that follows the prompt, a block start. What
                comes before is history under another prompt: seen, as after a recache, and not
                learned.
            generator: Draws noise and its levels; the default one of the device if None.

        Returns:
            Mean squared error of the velocity, a scalar.
        """
        options, device = self.teacher_forcing, latents_BFCHW.device
        clips, frames = latents_BFCHW.shape[:2]
        draw: dict[str, Any] = {"generator": generator, "device": device}
        u = torch.rand(clips, frames // options.block, **draw)
        sigma_BF = shift_sigma(u, options.shift).repeat_interleave(options.block, 1)
        draw_noise = partial(torch.randn, latents_BFCHW.shape, dtype=latents_BFCHW.dtype, **draw)
        noise = draw_noise()
        noisy = add_noise(latents_BFCHW, noise, sigma_BF)
        if frames == options.block:
            # No block comes before or after: nothing is masked, and no history is seen.
            velocity = self.bidirectional(noisy, TRAIN_STEPS * sigma_BF[:, 0], text, "sdpa")
            return (velocity.float() - (noise - latents_BFCHW).float()).square().mean()
        history_sigma = options.history_noise * torch.rand(clips, **draw)
        history = add_noise(latents_BFCHW, draw_noise(), history_sigma)
        rule = BlockCausal(
            frames, options.block, options.window, options.sink, teacher_forcing=True
        )
        grid = [side // self.config.patch for side in latents_BFCHW.shape[-2:]]
        attend = MaskedAttention(
            self.rotation(torch.arange(frames, device=device).repeat(2), *grid),
            mask_for(rule, grid[0] * grid[1], device),
        )
        timestep = TRAIN_STEPS * torch.cat([torch.zeros_like(sigma_BF), sigma_BF], 1)
        velocity = self(torch.cat([history, noisy], 1), timestep, text, attend)
        assert velocity is not None
        error = (velocity[:, frames:].float() - (noise - latents_BFCHW).float()).square()
        counts_BF = torch.arange(frames, device=device) >= starts_B.unsqueeze(1)
        return (error.mean((2, 3, 4)) * counts_BF).sum() / counts_BF.sum()

    def _unpatchify(self, patches_BLO: Tensor, like_BFCHW: Tensor) -> Tensor:
        patch = self.config.patch
        return rearrange(
            patches_BLO,
            "B (F H W) (p q C) -> B F C (H p) (W q)",
            F=like_BFCHW.shape[1],
            H=like_BFCHW.shape[-2] // patch,
            p=patch,
            q=patch,
        )


def stack_text(pairs: Sequence[list[tuple[Tensor, Tensor]]]) -> list[tuple[Tensor, Tensor]]:
    """Put the keys and values of several prompts side by side in the batch."""
    return [
        (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer]))
        for layer in zip(*pairs, strict=True)
    ]
