"""Teacher and critic: networks that look at a noisy clip and say what it was.

A *bidirectional* one sees the whole clip at once, as the published teachers do. A *causal* one says
of each block what it was given the clean blocks before it, as an autoregressive teacher can
(LongLive 2.0 distills from one); both halves, ``[clean | noisy]``, go through it in one pass.
"""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns, M tokens of the
# prompt, E text width.

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from longlive.attention.backends import BackendName
from longlive.attention.core import MaskedAttention
from longlive.attention.masks import BlockCausal, mask_for
from longlive.distillation.levels import NoisyClip, ScoreLevels
from longlive.models.dit import DiT, TextKeysValues, stack_text
from longlive.schedule import x0_from_velocity

ScoreKind = Literal["bidirectional", "causal"]


class Prediction(NamedTuple):
    """What a network says of a noisy clip, ``[B, F, C, H, W]`` each.

    Attributes:
        velocity: Its output, ``noise - x0``.
        x0: The clean clip that follows from it.
    """

    velocity: Tensor
    x0: Tensor


class Score:
    """A network as a score of clips.

    Args:
        dit: The network.
        kind: Whether it sees a whole clip, or each block after the clean ones before it.
        block: Latent frames of a block.
        window: Latent frames a causal score sees; None for all.
        sink: First latent frames a causal score always sees.
        attention: Backend of a bidirectional score.
    """

    def __init__(
        self,
        dit: DiT,
        kind: ScoreKind = "bidirectional",
        *,
        block: int = 3,
        window: int | None = None,
        sink: int = 0,
        attention: BackendName = "auto",
    ) -> None:
        self.dit = dit
        self.kind = kind
        self.block = block
        self.window = window
        self.sink = sink
        self.attention: BackendName = attention

    def text(self, *text_BME: Tensor) -> TextKeysValues:
        """Keys and values of prompts, one after the other in the batch."""
        return stack_text([self.dit.text_keys_values(some) for some in text_BME])

    def velocity(
        self, noisy_BFCHW: Tensor, clean_BFCHW: Tensor, timestep_BF: Tensor, text: TextKeysValues
    ) -> Tensor:
        """Velocity of a noisy clip.

        Args:
            noisy_BFCHW: The clip with noise.
            clean_BFCHW: The same without; the history that a causal score sees.
            timestep_BF: 1000 sigma of each latent frame. A bidirectional score takes that of the
                first for all.
            text: Keys and values of the prompts.
        """
        if self.kind == "bidirectional":
            return self.dit.bidirectional(noisy_BFCHW, timestep_BF[:, 0], text, self.attention)
        frames, device = noisy_BFCHW.shape[1], noisy_BFCHW.device
        attend = masked_attend(
            self.dit,
            BlockCausal(frames, self.block, self.window, self.sink, teacher_forcing=True),
            noisy_BFCHW,
        )
        both = torch.cat([clean_BFCHW, noisy_BFCHW], 1)
        clean_level = torch.zeros_like(timestep_BF, device=device)
        velocity = self.dit(both, torch.cat([clean_level, timestep_BF], 1), text, attend)
        return velocity[:, frames:]

    def predict(
        self,
        clip: NoisyClip,
        clean_BFCHW: Tensor,
        texts_BME: Sequence[Tensor],
        levels: ScoreLevels,
    ) -> list[Prediction]:
        """Say what a noisy clip was under each of several prompts, in one pass.

        Args:
            clip: The clip with noise.
            clean_BFCHW: The same without.
            texts_BME: For each answer, the embeddings of a prompt per clip.
            levels: What the clip's timesteps mean.
        """
        copies = len(texts_BME)
        noisy, clean = (x.repeat(copies, 1, 1, 1, 1) for x in (clip.latents, clean_BFCHW))
        velocity = self.velocity(
            noisy, clean, clip.timestep.repeat(copies, 1), self.text(*texts_BME)
        )
        sigma_BF = levels.score_sigma(clip.timestep)
        return [
            Prediction(some, x0_from_velocity(clip.latents, some, sigma_BF))
            for some in velocity.chunk(copies)
        ]


def masked_attend(dit: DiT, rule: BlockCausal, like_BFCHW: Tensor) -> MaskedAttention:
    """Attention of a pass over all blocks of clips such as ``like_BFCHW`` at once."""
    rows, columns = (side // dit.config.patch for side in like_BFCHW.shape[-2:])
    device = like_BFCHW.device
    positions = torch.arange(rule.latent_frames, device=device)
    if rule.teacher_forcing:
        positions = positions.repeat(2)
    mask = mask_for(rule, rows * columns, device)
    return MaskedAttention(dit.rotation(positions, rows, columns), mask)
