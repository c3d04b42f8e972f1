"""One look of teacher and critic at the student's clip: its gradient, and the critic's loss."""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns, M tokens of the
# prompt, E text width.

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from longlive.distillation.decisions import Decisions
from longlive.distillation.levels import NoisyClip, ScoreLevels
from longlive.distillation.losses import Granularity, guided, matching_gradient, velocity_loss
from longlive.distillation.scores import Prediction, Score
from longlive.schedule import velocity_from_x0


class ScoreDraw(NamedTuple):
    """The random numbers of one look.

    Attributes:
        raw: Timesteps before the shift, ``[B, 1]`` or ``[B, blocks]`` int64.
        noise: Standard normal, of the clip's shape.
    """

    raw: Tensor
    noise: Tensor


class Matching(NamedTuple):
    """What a look at a clip gave.

    Attributes:
        clip: The clip with noise.
        fake: The critic's prediction.
        prompted: The teacher's prediction under the prompt.
        unprompted: The teacher's prediction under the negative prompt; None without guidance.
        gradient: For :func:`longlive.distillation.losses.matching_loss`.
    """

    clip: NoisyClip
    fake: Prediction
    prompted: Prediction
    unprompted: Prediction | None
    gradient: Tensor


@dataclass(frozen=True, slots=True)
class Matcher:
    """Teacher and critic, and how their answers are used.

    Attributes:
        teacher: The distribution to match.
        critic: Follows the student's distribution.
        levels: Noise levels to look at.
        decisions: Named options.
        guidance: Scale of the teacher's classifier-free guidance.
        per: Whether noise level and norm belong to a clip or to each block.
        block: Latent frames of a block.
    """

    teacher: Score
    critic: Score
    levels: ScoreLevels
    decisions: Decisions
    guidance: float = 3.0
    per: Granularity = "clip"
    block: int = 3

    def draw(self, like_BFCHW: Tensor, generator: torch.Generator) -> ScoreDraw:
        """Draw the random numbers of a look at clips of a shape."""
        batch, frames = like_BFCHW.shape[:2]
        blocks = frames // self.block if self.per == "block" else 1
        raw = self.levels.draw(batch, blocks, generator)
        noise = torch.randn(
            like_BFCHW.shape, generator=generator, device=like_BFCHW.device, dtype=like_BFCHW.dtype
        )
        return ScoreDraw(raw, noise)

    @torch.no_grad()
    def match(
        self, x_BFCHW: Tensor, text_BME: Tensor, negative_BME: Tensor, draw: ScoreDraw
    ) -> Matching:
        """Compare teacher and critic on the student's clips.

        Args:
            x_BFCHW: The clips; what is learned from them is the caller's business.
            text_BME: Embeddings of their prompts.
            negative_BME: Embeddings of the negative prompt, one for each clip.
            draw: Noise and its levels.
        """
        x_BFCHW = self._rounded(x_BFCHW)
        clip = self.levels.add_noise(x_BFCHW, draw.noise.to(x_BFCHW.dtype), draw.raw)
        [fake] = self.critic.predict(clip, x_BFCHW, [text_BME], self.levels)
        origin = self.decisions.guidance_from
        needs_negative = self.guidance != (0 if origin == "prompted" else 1)
        texts = [text_BME, negative_BME] if needs_negative else [text_BME]
        prompted, *rest = self.teacher.predict(clip, x_BFCHW, texts, self.levels)
        real = prompted.x0
        if rest:
            real = guided(prompted.x0, rest[0].x0, self.guidance, origin)
        block = self.block if self.per == "block" else None
        gradient = matching_gradient(x_BFCHW, fake.x0, real, block=block)
        if self.decisions.hides_nan:
            gradient = torch.nan_to_num(gradient)
        return Matching(clip, fake, prompted, rest[0] if rest else None, gradient)

    def critic_loss(
        self,
        x_BFCHW: Tensor,
        text_BME: Tensor,
        draw: ScoreDraw,
        counts: Tensor | None = None,
    ) -> tuple[Tensor, NoisyClip, Prediction]:
        """Flow matching of the critic on the student's clips.

        Args:
            x_BFCHW: The clips; no gradient reaches the student.
            text_BME: Embeddings of their prompts.
            draw: Noise and its levels.
            counts: Which latents count, see :func:`longlive.distillation.losses.mean_over`.

        Returns:
            Loss, noisy clip and prediction.
        """
        x_BFCHW = self._rounded(x_BFCHW.detach())
        clip = self.levels.add_noise(x_BFCHW, draw.noise.to(x_BFCHW.dtype), draw.raw)
        [fake] = self.critic.predict(clip, x_BFCHW, [text_BME], self.levels)
        velocity = fake.velocity
        if self.decisions.critic_target == "x0":
            sigma_BF = self.levels.noise_sigma(clip.timestep)
            velocity = velocity_from_x0(clip.latents, fake.x0, sigma_BF)
        loss = velocity_loss(velocity, clip.noise, x_BFCHW, counts)
        return loss, clip, fake

    def _rounded(self, x_BFCHW: Tensor) -> Tensor:
        """Latents in the type in which scores are formed."""
        device = x_BFCHW.device.type
        if not self.decisions.rounds_scores or not torch.is_autocast_enabled(device):
            return x_BFCHW
        return x_BFCHW.to(torch.get_autocast_dtype(device))
