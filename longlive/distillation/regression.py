"""Causal initialization: regression on ODE pairs, and consistency along the teacher's ODE.

Both make a many-step network a few-step one before its own rollouts are worth training on. All
blocks of a clip are learned in one masked pass. With *clean* context each noisy block sees the
clean blocks before it, as in a rollout; with *noisy* context it sees them as noisy as they were
drawn, as the reference does (CausVid, arXiv:2412.07772).
"""

# Shape suffixes: B batch, S states of an ODE, K blocks, F latent frames, C channels, H W latent
# rows and columns, M tokens of the prompt, E text width.

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from longlive.attention.masks import BlockCausal
from longlive.distillation.losses import guided, pseudo_huber_loss, regression_loss
from longlive.distillation.parts import PartClock
from longlive.distillation.scores import Score, masked_attend
from longlive.models.dit import DiT, TextKeysValues
from longlive.schedule import (
    TRAIN_STEPS,
    DenoisingSchedule,
    add_noise,
    euler_step,
    x0_from_velocity,
)

ContextKind = Literal["clean", "noisy"]


@dataclass(frozen=True, slots=True)
class CausalPass:
    """How a student sees a clip when all blocks are learned at once.

    Attributes:
        block: Latent frames of a block.
        window: Latent frames a block sees, sink and itself included; None for all.
        sink: First latent frames that every block sees. The reference's pass has none.
        context: Whether the blocks before are clean or noisy.
    """

    block: int = 3
    window: int | None = 12
    sink: int = 3
    context: ContextKind = "clean"

    def x0(
        self,
        dit: DiT,
        noisy_BFCHW: Tensor,
        clean_BFCHW: Tensor,
        sigma_BF: Tensor,
        text: TextKeysValues,
    ) -> Tensor:
        """Estimate the clean clip.

        Args:
            dit: The student.
            noisy_BFCHW: The clip with noise.
            clean_BFCHW: The clip without, the context if that is clean.
            sigma_BF: Noise level of each latent frame.
            text: Keys and values of the prompts.
        """
        frames, is_clean = noisy_BFCHW.shape[1], self.context == "clean"
        rule = BlockCausal(frames, self.block, self.window, self.sink, teacher_forcing=is_clean)
        attend = masked_attend(dit, rule, noisy_BFCHW)
        x_BFCHW, timestep_BF = noisy_BFCHW, TRAIN_STEPS * sigma_BF
        if is_clean:
            x_BFCHW = torch.cat([clean_BFCHW, noisy_BFCHW], 1)
            timestep_BF = torch.cat([torch.zeros_like(timestep_BF), timestep_BF], 1)
        velocity = dit(x_BFCHW, timestep_BF, text, attend)[:, -frames:]
        return x0_from_velocity(noisy_BFCHW, velocity, sigma_BF)


def pair_loss(
    dit: DiT,
    causal: CausalPass,
    states_BSFCHW: Tensor,
    sigmas_S: Tensor,
    text_BME: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Regression from a state of the teacher's ODE to its end.

    Every block draws its own state. With noisy context it may draw the clean one, which others then
    see; its own error does not count.

    Args:
        dit: The student.
        causal: How it sees the clip.
        states_BSFCHW: States from noise to clean.
        sigmas_S: Their noise levels; the last is 0.
        text_BME: Embeddings of the prompts.
        generator: Draws the states.
    """
    clean = states_BSFCHW[:, -1]
    batch, frames = clean.shape[:2]
    drawn = len(sigmas_S) - (causal.context == "clean")
    shape = (batch, frames // causal.block)
    index_BK = torch.randint(drawn, shape, generator=generator, device=clean.device)
    index_BF = index_BK.repeat_interleave(causal.block, 1)
    rows = torch.arange(batch, device=clean.device)[:, None]
    columns = torch.arange(frames, device=clean.device)[None, :]
    noisy = states_BSFCHW[rows, index_BF, columns]
    sigma_BF = sigmas_S.to(clean.device)[index_BF]
    x0 = causal.x0(dit, noisy, clean, sigma_BF, dit.text_keys_values(text_BME))
    return regression_loss(x0, clean, (sigma_BF > 0)[..., None, None, None])


@dataclass(frozen=True, slots=True)
class ConsistencyOptions:
    """Consistency distillation along the teacher's ODE.

    Attributes:
        steps: Steps of the ODE from noise to clean.
        guidance: Scale of the teacher's classifier-free guidance.
        huber: Errors below this count quadratically.
    """

    steps: int = 48
    guidance: float = 3.0
    huber: float = 0.03


@dataclass(frozen=True, slots=True)
class Consistency:
    """Causal consistency distillation (arXiv:2303.01469, on the teacher's causal ODE).

    Where the student says a noisy clip leads must not change when the teacher takes a step: the
    estimate at one noise level is drawn to the averaged student's estimate one step later.

    Attributes:
        student: The network that learns.
        average: Its moving average, which gives the targets.
        teacher: Takes the step.
        causal: How the student sees a clip.
        schedule: Noise levels of the ODE.
        options: Guidance and loss.
        clock: Measures the parts.
    """

    student: DiT
    average: DiT
    teacher: Score
    causal: CausalPass
    schedule: DenoisingSchedule
    options: ConsistencyOptions
    clock: PartClock

    def loss(
        self,
        clean_BFCHW: Tensor,
        text_BME: Tensor,
        negative_BME: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Loss on clean clips; no stored pairs are needed.

        Args:
            clean_BFCHW: Clips.
            text_BME: Embeddings of their prompts.
            negative_BME: Embeddings of the negative prompt, one for each clip.
            generator: Draws noise and its levels, one per block for a causal teacher.
        """
        batch, frames = clean_BFCHW.shape[:2]
        device = clean_BFCHW.device
        levels = torch.tensor([*self.schedule.sigmas, 0.0], device=device)
        blocks = frames // self.causal.block if self.teacher.kind == "causal" else 1
        index_BK = torch.randint(
            len(levels) - 1, (batch, blocks), generator=generator, device=device
        )
        index_BF = index_BK.repeat_interleave(frames // blocks, 1)
        sigma_BF, next_sigma_BF = levels[index_BF], levels[index_BF + 1]
        noise = torch.randn(
            clean_BFCHW.shape, generator=generator, device=device, dtype=clean_BFCHW.dtype
        )
        noisy = add_noise(clean_BFCHW, noise, sigma_BF)
        texts = text_BME, negative_BME
        with self.clock.part("target"):
            target = self._target(noisy, clean_BFCHW, sigma_BF, next_sigma_BF, *texts)
        with self.clock.part("student_forward"):
            text = self.student.text_keys_values(text_BME)
            x0 = self.causal.x0(self.student, noisy, clean_BFCHW, sigma_BF, text)
            return pseudo_huber_loss(x0, target, c=self.options.huber)

    @torch.no_grad()
    def _target(
        self,
        noisy_BFCHW: Tensor,
        clean_BFCHW: Tensor,
        sigma_BF: Tensor,
        next_sigma_BF: Tensor,
        text_BME: Tensor,
        negative_BME: Tensor,
    ) -> Tensor:
        """The averaged student's estimate after the teacher's step."""
        text = self.teacher.text(text_BME, negative_BME)
        noisy, clean = (x.repeat(2, 1, 1, 1, 1) for x in (noisy_BFCHW, clean_BFCHW))
        timestep_BF = (TRAIN_STEPS * sigma_BF).repeat(2, 1)
        prompted, unprompted = self.teacher.velocity(noisy, clean, timestep_BF, text).chunk(2)
        velocity = guided(prompted, unprompted, self.options.guidance, "unprompted")
        stepped = euler_step(noisy_BFCHW, velocity, sigma_BF, next_sigma_BF)
        average_text = self.average.text_keys_values(text_BME)
        # At level 0 the estimate is the clip itself, whatever the network says.
        return self.causal.x0(self.average, stepped, clean_BFCHW, next_sigma_BF, average_text)
