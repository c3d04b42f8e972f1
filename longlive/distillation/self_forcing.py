"""The student's own rollout in training, with gradients through one denoising step of each block.

The student is trained on what it makes at inference (Self-Forcing, arXiv:2506.08009): blocks are
rolled out with the KV cache by the functions of :mod:`longlive.rollout.loop`. Of each block the
steps before a drawn *exit step* run without gradients, the exit step keeps its graph, and its clean
estimate is the block. Then the context update stores clean keys, without gradients.
"""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns, M tokens of the
# prompt, E text width.

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from longlive.attention.backends import Attention
from longlive.distillation.caches import TrainingCache
from longlive.distillation.decisions import Decisions
from longlive.models.dit import DiT
from longlive.rollout.denoiser import CausalDenoiser
from longlive.rollout.loop import next_block, switch_prompt, update_context
from longlive.rollout.noise import NoiseSource
from longlive.rollout.state import RolloutSpec, RolloutState, StepInputs
from longlive.schedule import DenoisingSchedule, NoiseTable, add_noise

KeysValues = list[tuple[Tensor, Tensor]]


class TrainingNoise(NoiseSource, Protocol):
    """Noise of a training rollout."""

    def draw_context(self, block_index: int) -> Tensor:
        """Noise of a block's context update, ``[B, F, C, H, W]``."""
        ...


class GeneratorNoise:
    """Noise drawn from a generator, in the order in which it is asked for.

    Args:
        generator: On the device where the noise is wanted.
        shape: Shape of a block, ``[B, F, C, H, W]``.
        dtype: Type of the latents.
    """

    def __init__(
        self,
        generator: torch.Generator,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.generator = generator
        self.shape = shape
        self.dtype = dtype

    def draw(self, block_index: int, step_index: int) -> Tensor:
        """The next noise of the generator."""
        return torch.randn(
            self.shape,
            generator=self.generator,
            device=self.generator.device,
            dtype=self.dtype,
        )

    def draw_context(self, block_index: int) -> Tensor:
        """The next noise of the generator."""
        return self.draw(block_index, -1)


def exited(schedule: DenoisingSchedule, exit_index: int) -> DenoisingSchedule:
    """The schedule up to its exit step, whose clean estimate is the block."""
    return DenoisingSchedule(schedule.sigmas[: exit_index + 1])


def nominal_steps(schedule: DenoisingSchedule, exit_index: int, shift: float) -> tuple[int, int]:
    """Return the unwarped steps, in [0, 1000], that the exit step leads from and to."""
    table = NoiseTable(shift)
    index = table.nearest_index(torch.tensor(schedule.timesteps)).tolist()
    steps = [*(len(table.timesteps) - i for i in index), 0]
    return steps[exit_index], steps[exit_index + 1]


class StudentRollout:
    """A rollout of the student of which one step per block keeps its graph.

    It goes on where it stands: a long video is several calls of :meth:`roll`.

    Args:
        dit: The student.
        spec: What is rolled out; its cache must have room for the window and for all blocks of a
            call of :meth:`roll`, or a backward pass would not find what its forward pass saw.
        texts_BME: Prompt embeddings by name.
        decisions: Named options.
        attention: Kernel.
        dtype: Type of the cache.
        device: Where it runs.
    """

    def __init__(
        self,
        dit: DiT,
        spec: RolloutSpec,
        texts_BME: Mapping[str, Tensor],
        decisions: Decisions,
        *,
        attention: Attention,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.dit = dit
        self.spec = spec
        self.texts_BME = texts_BME
        self.decisions = decisions
        self.attention = attention
        self.state = RolloutState.allocate(spec, dit.config, dtype, device)
        self.cache = TrainingCache(self.state.cache, leaks=decisions.cache_gradients == "leak")
        self.state.cache = self.cache
        self.smallest_sigma: float | None = None
        self._cached = CausalDenoiser(
            dit, self.cache, self.state.cross_cache, spec.geometry, attention
        )
        self._live_text: KeysValues | None = None
        self._noise: TrainingNoise | None = None
        self._trains = False
        self._is_exit = False
        self._is_context_update = False

    def roll(
        self,
        blocks: int,
        noise: TrainingNoise,
        exits: Sequence[int],
        prompts: Mapping[int, str],
        *,
        trains: bool,
        context_noise_sigma: float | None = None,
    ) -> Tensor:
        """Denoise the next blocks.

        Args:
            blocks: How many.
            noise: Their noise.
            exits: Exit step of each.
            prompts: Names of the prompts that become active, by the latent frame of a block start.
            trains: Whether the exit steps keep their graph.
            context_noise_sigma: Noise that the context updates see; None for clean latents.

        Returns:
            Clean latents ``[B, F, C, H, W]`` of all blocks.
        """
        self._noise, self._trains = noise, trains
        self.smallest_sigma = context_noise_sigma
        parts = []
        try:
            for exit_index in exits[:blocks]:
                parts.append(self._roll_block(exit_index, prompts.get(self.state.block_start)))
                self.state.block_index += 1
        finally:
            self._live_text = None
            self.cache.forget_histories()
        return torch.cat(parts, 1)

    def refresh_text(self) -> None:
        """Store the active prompt's keys and values anew, after the weights have changed."""
        self.state.cross_cache.store(self._text_of(self.state.prompt))

    def _roll_block(self, exit_index: int, prompt: str | None) -> Tensor:
        state = self.state
        if prompt is not None:
            self._live_text = None
            switch_prompt(state, self, prompt, self._text_of, self)
        whole = self.spec.first_schedule if state.block_index == 0 else None
        whole = whole or self.spec.schedule
        state.spec = replace(self.spec, schedule=exited(whole, exit_index), first_schedule=None)
        with torch.set_grad_enabled(self._trains):
            x0_BFCHW = next_block(state, self, self._checked_noise, self)
        is_last_step = exit_index == len(whole.sigmas) - 1
        if self.spec.updates_context or not is_last_step:
            if not self.spec.updates_context:
                # Inference keeps the keys of the last step; so they are what later blocks see.
                last = whole.sigmas[-1]
                state.spec = replace(state.spec, context_sigma=last)
            self._is_context_update = True
            with torch.no_grad():
                update_context(state, self, x0_BFCHW.detach(), self)
            self._is_context_update = False
        state.spec = self.spec
        return x0_BFCHW

    @property
    def _checked_noise(self) -> TrainingNoise:
        assert self._noise is not None
        return self._noise

    def __call__(self, x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
        """The network call: with its graph in an exit step that trains, else without."""
        if self._trains and self._is_exit and not inputs.keys_only:
            return self._live(x_BFCHW, inputs)
        if self._is_context_update:
            x_BFCHW = self._with_context_noise(x_BFCHW)
        with torch.no_grad():
            return self._cached(x_BFCHW, inputs)

    def call(self, hook: str, state: RolloutState, *args: Any) -> None:
        """Follow the rollout as one of its listeners."""
        if hook == "on_denoise_step_start":
            self._is_exit = state.step_index == len(state.schedule.sigmas) - 1
        elif (
            hook == "on_prompt_switch"
            and state.recent
            and self.decisions.sink_after_switch == "zeroed"
        ):
            self.cache.clear()

    def _live(self, x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
        text: Any = self.state.cross_cache
        if self.decisions.text_gradients:
            if self._live_text is None:
                self._live_text = self.dit.text_keys_values(self.texts_BME[self.state.prompt])
            text = self._live_text
        denoiser = CausalDenoiser(self.dit, self.cache, text, self.spec.geometry, self.attention)
        return denoiser(x_BFCHW, inputs)

    def _with_context_noise(self, x0_BFCHW: Tensor) -> Tensor:
        state = self.state
        sigma = self.smallest_sigma if self.spec.updates_context else state.spec.context_sigma
        if not sigma:
            return x0_BFCHW
        noise = self._checked_noise.draw_context(state.block_index)
        return add_noise(x0_BFCHW, noise, sigma)

    @torch.no_grad()
    def _text_of(self, prompt: str) -> KeysValues:
        return self.dit.text_keys_values(self.texts_BME[prompt])
