"""Pairs of noise and clean clip along the teacher's ODE, with the states in between.

A causal teacher rolls the clip out block by block, as it does at inference, so a pair is one whose
history the student will have; a bidirectional one denoises the whole clip at once.
"""

# Shape suffixes: B batch, S states, F latent frames, C channels, H W latent rows and columns.

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longlive.attention.backends import Attention
from longlive.distillation.losses import guided
from longlive.distillation.scores import Score
from longlive.errors import UserError
from longlive.models.dit import stack_text
from longlive.rollout.denoiser import CausalDenoiser, Denoiser, GuidedDenoiser
from longlive.rollout.hooks import NoHooks
from longlive.rollout.loop import stream_blocks
from longlive.rollout.noise import NoiseSource
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.state import RolloutSpec, RolloutState, StepInputs
from longlive.schedule import TRAIN_STEPS, euler_step


def kept_indices(steps: int, kept: Sequence[int]) -> list[int]:
    """Indices of the ODE's steps before which a state is kept.

    Args:
        steps: Equal steps of the ODE in unwarped time.
        kept: Wanted steps in [1, 1000], falling, such as those the student will take.

    Raises:
        UserError: If the ODE does not stop at one of them.
    """
    indices = []
    for step in kept:
        index, remainder = divmod((TRAIN_STEPS - step) * steps, TRAIN_STEPS)
        if remainder:
            raise UserError(
                f"{steps} equal steps do not stop at {step} of {TRAIN_STEPS}: choose a number of "
                "steps that does, 48 for one"
            )
        indices.append(index)
    return indices


@dataclass(slots=True)
class _KeptStates:
    """Keeps what goes into some steps of every block."""

    denoiser: Denoiser
    indices: Sequence[int]
    states: list[Tensor]
    step: int = 0

    def __call__(self, x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
        if inputs.keys_only:
            self.step = 0
        else:
            if self.step in self.indices:
                self.states.append(x_BFCHW)
            self.step += 1
        return self.denoiser(x_BFCHW, inputs)


@torch.no_grad()
def causal_pairs(
    score: Score,
    spec: RolloutSpec,
    text_BME: Tensor,
    negative_BME: Tensor,
    noise: NoiseSource,
    indices: Sequence[int],
    attention: Attention,
) -> Tensor:
    """Roll out a causal teacher, ``[B, S + 1, F, C, H, W]`` from noise to clean.

    Args:
        score: The teacher.
        spec: Its rollout: the ODE's schedule, sampler ``euler``, guidance, batch and length.
        text_BME: Embeddings of the prompts.
        negative_BME: Embeddings of the negative prompt, one for each clip.
        noise: Starts every block.
        indices: Of :func:`kept_indices`.
        attention: Kernel.
    """
    dit = score.dit
    spec = replace(spec, sampler="euler", batch=len(text_BME)).check()
    state = RolloutState.allocate(spec, dit.config, dit.dtype_of_weights, text_BME.device)
    denoiser: Denoiser = CausalDenoiser(
        dit, state.cache, state.cross_cache, spec.geometry, attention
    )
    texts = [dit.text_keys_values(text_BME)]
    if spec.guidance != 1:
        denoiser = GuidedDenoiser(denoiser, spec.guidance)
        texts.append(dit.text_keys_values(negative_BME))
    text = stack_text(texts)
    keeper = _KeptStates(denoiser, indices, [])
    cursor = PromptTimeline.single("the prompts of the batch").start()
    blocks = list(stream_blocks(state, keeper, noise, cursor, lambda _: text, NoHooks()))
    per_state = [torch.cat(keeper.states[i :: len(indices)], 1) for i in range(len(indices))]
    return torch.stack([*per_state, torch.cat(blocks, 1)], 1)


@torch.no_grad()
def bidirectional_pairs(
    score: Score,
    spec: RolloutSpec,
    text_BME: Tensor,
    negative_BME: Tensor,
    noise_BFCHW: Tensor,
    indices: Sequence[int],
) -> Tensor:
    """Denoise whole clips with a bidirectional teacher, ``[B, S + 1, F, C, H, W]``.

    Arguments as for :func:`causal_pairs`; of ``spec`` only schedule and guidance are read.
    """
    x_BFCHW, states = noise_BFCHW, []
    text = score.text(text_BME, negative_BME)
    for index, (sigma, next_sigma) in enumerate(spec.schedule.transitions):
        if index in indices:
            states.append(x_BFCHW)
        both = x_BFCHW.repeat(2, 1, 1, 1, 1)
        timestep_BF = torch.full(both.shape[:2], TRAIN_STEPS * sigma, device=both.device)
        prompted, unprompted = score.velocity(both, both, timestep_BF, text).chunk(2)
        velocity = guided(prompted, unprompted, spec.guidance, "unprompted")
        x_BFCHW = euler_step(x_BFCHW, velocity, sigma, next_sigma)
    return torch.stack([*states, x_BFCHW], 1)
