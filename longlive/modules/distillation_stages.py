"""The losses of a stage: from a batch to the number whose gradient is wanted."""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns, M tokens of the
# prompt, E text width.

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from longlive.attention.backends import Attention
from longlive.distillation.decisions import Decisions
from longlive.distillation.discriminator import Discriminator, critic_features
from longlive.distillation.draws import Draws
from longlive.distillation.losses import deception_loss, discriminator_loss, matching_loss
from longlive.distillation.matching import Matcher, ScoreDraw
from longlive.distillation.parts import PartClock
from longlive.distillation.regression import CausalPass, Consistency, pair_loss
from longlive.distillation.self_forcing import GeneratorNoise, StudentRollout
from longlive.distillation.streaming import (
    FIRST,
    SECOND,
    Chunk,
    LongVideo,
    StreamingOptions,
)
from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.models.vae import WanVAE
from longlive.modules.distillation_examples import Example
from longlive.modules.distillation_options import ClipOptions, Objective
from longlive.rollout.denoiser import CausalDenoiser
from longlive.rollout.hooks import NoHooks
from longlive.rollout.loop import stream_blocks
from longlive.rollout.noise import SeededNoise
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.state import RolloutState

Slot = tuple[int, int]
"""Training step, and place of the batch among those of all processes in it."""


@dataclass(slots=True)
class Stage:
    """Everything a loss needs; built once the networks are where they stay.

    Attributes:
        student: The network that learns.
        clip: The clip, and how the student makes it.
        streaming: Long videos in chunks; None for clips.
        decisions: Named options.
        attention: Kernel of the student's rollout.
        draws: Random numbers.
        device: Where it runs.
        matcher: Teacher and critic, for distribution matching.
        consistency: For consistency along the teacher's ODE.
        causal: How the student sees a stored clip.
        discriminator: An optional judge on the critic's features.
        discriminator_weight: Of its loss.
        vae: Makes the first latent of a chunk's clip.
        clock: Measures the parts.
        shares_rollout: Whether the critic learns on the student's latest rollout.
        video: The long video under way.
        shared: Latest rollout of each micro-batch, with the text it was made for.
    """

    student: DiT
    clip: ClipOptions
    streaming: StreamingOptions | None
    decisions: Decisions
    attention: Attention
    draws: Draws
    device: torch.device
    matcher: Matcher | None
    consistency: Consistency | None
    causal: CausalPass
    discriminator: Discriminator | None
    discriminator_weight: float
    vae: WanVAE | None
    clock: PartClock
    shares_rollout: bool = False
    video: LongVideo | None = None
    shared: dict[int, tuple[Chunk, Tensor]] = field(default_factory=dict)

    def student_loss(self, example: Example, slot: Slot) -> Tensor:
        """Distribution matching of what the student makes, gradients included."""
        assert self.matcher is not None
        with self.clock.part("student_rollout"):
            chunk, text = self._chunk(example, slot, "student", trains=True)
        if self.shares_rollout:
            self.shared[slot[1]] = chunk._replace(clip=chunk.clip.detach()), text
        with self.clock.part("student_scores"):
            draw = self._score_draw(chunk, slot, "student")
            seen = chunk.clip.detach()
            gradient = self.matcher.match(seen, text, example.negative, draw).gradient
        loss = matching_loss(chunk.clip, gradient, chunk.counts)
        if self.discriminator is not None:
            fake = self._logits(chunk.clip, text, draw)
            loss = loss + self.discriminator_weight * deception_loss(fake)
        return loss

    def critic_loss(self, example: Example, slot: Slot) -> Tensor:
        """Flow matching of the critic on what the student makes."""
        assert self.matcher is not None
        kept = self.shared.get(slot[1]) if self.shares_rollout else None
        with self.clock.part("critic_rollout"), torch.no_grad():
            chunk, text = kept or self._chunk(example, slot, "critic", trains=False)
        draw = self._score_draw(chunk, slot, "critic")
        with self.clock.part("critic_forward"):
            loss, *_ = self.matcher.critic_loss(chunk.clip, text, draw, chunk.counts)
        if self.discriminator is not None:
            fake = self._logits(chunk.clip, text, draw)
            real = self._logits(example.clips(), example.text, draw)
            loss = loss + self.discriminator_weight * discriminator_loss(real, fake)
        return loss

    def flow_loss(self, example: Example, slot: Slot) -> Tensor:
        """Teacher-forced flow matching on true clips."""
        clips, starts = example.clips(), example.starts
        if starts is None:
            starts = torch.zeros(example.batch, dtype=torch.int64, device=clips.device)
        generator = self.draws.generator("flow", *slot)
        with self.clock.part("student_forward"):
            text = self.student.text_keys_values(example.text)
            return self.student.flow_matching_loss(clips, text, starts, generator)

    def pair_loss(self, example: Example, slot: Slot) -> Tensor:
        """Regression on stored pairs."""
        if example.states is None or example.sigmas is None:
            raise UserError("regression needs stored pairs: use longlive.data.pair_shards.OdePairs")
        generator = self.draws.generator("pairs", *slot)
        with self.clock.part("student_forward"):
            return pair_loss(
                self.student,
                self.causal,
                example.states,
                example.sigmas,
                example.text,
                generator,
            )

    def consistency_loss(self, example: Example, slot: Slot) -> Tensor:
        """Consistency along the teacher's ODE, on true clips."""
        assert self.consistency is not None
        generator = self.draws.generator("consistency", *slot)
        return self.consistency.loss(example.clips(), example.text, example.negative, generator)

    def sample(self, dit: DiT, text_BME: Tensor, latent_frames: int, seed: int) -> Tensor:
        """Roll out a network as at inference, all prompts side by side."""
        spec = replace(
            self.clip.spec(dit.config, len(text_BME)),
            latent_frames=latent_frames,
            cached_latent_frames=None,
        ).check()
        state = RolloutState.allocate(spec, dit.config, self._cache_dtype(), self.device)
        denoiser = CausalDenoiser(
            dit, state.cache, state.cross_cache, spec.geometry, self.attention
        )
        noise = SeededNoise(
            seed, spec.geometry.block_shape(len(text_BME)), torch.float32, self.device
        )
        text = dit.text_keys_values(text_BME)
        cursor = PromptTimeline.single(FIRST).start()
        # A few calls of many shapes are over before any of them is compiled.
        with torch.compiler.set_stance("force_eager"):
            blocks = stream_blocks(state, denoiser, noise, cursor, lambda _: text, NoHooks())
            return torch.cat(list(blocks), 1)

    def rollouts_state(self) -> dict[str, Any]:
        """The long video under way and the shared rollouts, for a checkpoint."""
        video = None if self.video is None else self.video.state_dict()
        shared = {place: (*chunk, text) for place, (chunk, text) in self.shared.items()}
        return {"video": video, "shared": shared}

    def restore_rollouts(self, kept: dict[str, Any]) -> None:
        """Go on with the rollouts of a checkpoint."""
        # Before keys were stored turned, a checkpoint did not say where its sink is.
        if (video := kept["video"]) is not None and "sink" in video:
            texts = {name: text.to(self.device) for name, text in video["texts"].items()}
            self.video = self._new_video(texts, video["switch"])
            self.video.load_state_dict(video)
        for place, (clip, counts, prompt, text) in kept["shared"].items():
            counts = None if counts is None else counts.to(self.device)
            self.shared[place] = Chunk(clip.to(self.device), counts, prompt), text.to(self.device)

    def _chunk(
        self, example: Example, slot: Slot, name: str, *, trains: bool
    ) -> tuple[Chunk, Tensor]:
        """What teacher and critic are to look at, and the embeddings it was made for."""
        texts = {FIRST: example.text, SECOND: example.second_text}
        generator = self.draws.generator("rollout", name, *slot)
        shape = (example.batch, *self._block_shape)
        noise = GeneratorNoise(generator, shape)
        sigma = self._context_noise_sigma
        if self.streaming is None:
            blocks = self.clip.latent_frames // self.clip.block_latent_frames
            rollout = self._rollout(texts)
            made = rollout.roll(
                blocks,
                noise,
                self._exits(blocks, 0, slot, name),
                {0: FIRST},
                trains=trains,
                context_noise_sigma=sigma,
            )
            return Chunk(made, None, FIRST), texts[FIRST]
        if self.video is None or self.video.is_over:
            self.video = self._new_video(texts, self._switch(slot, name))
        video = self.video
        exits = self._exits(video.next_blocks, video.made, slot, name)
        chunk = video.next_chunk(noise, exits, trains=trains, context_noise_sigma=sigma)
        return chunk, video.rollout.texts_BME[chunk.prompt]

    def _new_video(self, texts: dict[str, Tensor], switch: int | None) -> LongVideo:
        assert self.streaming is not None
        return LongVideo(
            self._rollout(texts),
            self.streaming,
            self.clip.latent_frames,
            switch,
            None if self.vae is None else self._image_latent,
        )

    def _rollout(self, texts: dict[str, Tensor]) -> StudentRollout:
        decisions = self.decisions
        batch = len(texts[FIRST])
        spec = replace(
            self.clip.spec(self.student.config, batch, self.streaming),
            recached_latent_frames=self.clip.latent_frames if decisions.recaches_clip else None,
        )
        return StudentRollout(
            self.student,
            spec,
            texts,
            decisions,
            attention=self.attention,
            dtype=self._cache_dtype(),
            device=self.device,
        )

    def _cache_dtype(self) -> torch.dtype:
        device = self.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.student.dtype_of_weights

    @property
    def _block_shape(self) -> tuple[int, ...]:
        return self.clip.spec(self.student.config, 1).geometry.block_shape(1)[1:]

    @property
    def _context_noise_sigma(self) -> float | None:
        if not self.decisions.context_noise or self.matcher is None:
            return None
        return float(self.matcher.levels.student_table.sigmas[-1])

    def _exits(self, blocks: int, made: int, slot: Slot, name: str) -> list[int]:
        """One exit step for all blocks and processes; the first block may have steps of its own."""
        steps, first = self.clip.schedule, self.clip.first_schedule
        exit_index = self._exit(len(steps.sigmas), slot, name)
        exits = [exit_index] * blocks
        if first is not None and made == 0:
            exits[0] = self._exit(len(first.sigmas), slot, f"{name} first")
        return exits

    def _exit(self, steps: int, slot: Slot, name: str) -> int:
        if self.clip.exits == "last":
            return steps - 1
        return self.draws.integer(steps, "exit", name, slot[0])

    def _switch(self, slot: Slot, name: str) -> int | None:
        """Where the prompt of a new video changes, the same on all processes."""
        assert self.streaming is not None
        choices = self.streaming.switches(self.clip.latent_frames)
        resolution = 1 << 20
        share = self.draws.integer(resolution, "switches", name, slot[0]) / resolution
        if share >= self.streaming.switch_share:
            return None
        return choices[self.draws.integer(len(choices), "switch", name, slot[0])]

    def _score_draw(self, chunk: Chunk, slot: Slot, name: str) -> ScoreDraw:
        assert self.matcher is not None
        generator = self.draws.generator("score", name, *slot)
        return self.matcher.draw(chunk.clip, generator)

    def _logits(self, clip_BFCHW: Tensor, text_BME: Tensor, draw: ScoreDraw) -> Tensor:
        assert self.matcher is not None
        assert self.discriminator is not None
        noisy = self.matcher.levels.add_noise(clip_BFCHW, draw.noise, draw.raw)
        features = critic_features(self.matcher.critic, noisy, clip_BFCHW.detach(), text_BME)
        logits: Tensor = self.discriminator(features)
        return logits

    @torch.no_grad()
    def _image_latent(self, latents_BFCHW: Tensor) -> Tensor:
        """The last frame of some latents as an image of its own."""
        assert self.vae is not None
        with self.clock.part("image_latent"):
            frames_BTCHW = self.vae.decode(latents_BFCHW)
            return self.vae.encode(frames_BTCHW[:, -1:])


def initialization_loss(stage: Stage, objective: Objective) -> Callable[[Example, Slot], Tensor]:
    """The loss of a stage without a critic."""
    return {
        "flow": stage.flow_loss,
        "pairs": stage.pair_loss,
        "consistency": stage.consistency_loss,
    }[objective]
