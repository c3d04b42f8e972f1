"""Everything that a stage of distillation is told, checked before any weight is read."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from longlive.attention.backends import BackendName, resolve_attention
from longlive.distillation.decisions import Decisions
from longlive.distillation.discriminator import Discriminator
from longlive.distillation.draws import Draws
from longlive.distillation.levels import ScoreLevels
from longlive.distillation.matching import Matcher
from longlive.distillation.parts import PartClock
from longlive.distillation.regression import Consistency, ConsistencyOptions, ContextKind
from longlive.distillation.scores import Score
from longlive.distillation.streaming import StreamingOptions
from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.models.vae import WanVAE
from longlive.modules.distillation_options import (
    ClipOptions,
    MatchingOptions,
    Objective,
    UpdateOptions,
)
from longlive.modules.distillation_stages import Stage
from longlive.schedule import DenoisingSchedule

_VARIANTS = 32


class Networks(NamedTuple):
    """The networks of a stage, where they stay.

    Attributes:
        student: Learns.
        average: Its moving average.
        teacher: Is learned from.
        critic: Follows the student.
        discriminator: A head on the critic's features.
        vae: Makes the first latent of a chunk's clip.
    """

    student: DiT
    average: DiT | None
    teacher: DiT | None
    critic: DiT | None
    discriminator: Discriminator | None
    vae: WanVAE | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stage is told.

    Attributes:
        objective: What the student learns from.
        clip: The clip, and how the student makes it.
        matching: Distribution matching.
        streaming: Long videos in chunks; None for clips.
        consistency: Consistency along the teacher's ODE.
        context: What a block sees of those before it in causal initialization.
        updates: Learning rates and such.
        decisions: Named options.
        recomputes: Whether layers run again in the backward pass.
        compiles_scores: Whether layers are compiled where a network sees a whole clip.
        compiles_student: Whether the student's are compiled for its rollouts, too.
        attention: Backend of unmasked attention.
        seed: Of all that is drawn.
    """

    objective: Objective
    clip: ClipOptions = field(default_factory=ClipOptions)
    matching: MatchingOptions = field(default_factory=MatchingOptions)
    streaming: StreamingOptions | None = None
    consistency: ConsistencyOptions = field(default_factory=ConsistencyOptions)
    context: ContextKind = "clean"
    updates: UpdateOptions = field(default_factory=UpdateOptions)
    decisions: Decisions = field(default_factory=Decisions)
    recomputes: bool = False
    compiles_scores: bool = False
    compiles_student: bool = False
    attention: BackendName = "auto"
    seed: int = 0

    def check(self) -> "Plan":
        """Return the plan if it can work.

        Raises:
            UserError: Naming the setting to change.
        """
        clip = self.clip
        _ = clip.schedule, clip.first_schedule, self._levels
        if self.streaming is not None:
            self.streaming.check(clip.latent_frames, clip.block_latent_frames)
        if self.recomputes and clip.positions == "relative":
            raise UserError(
                "with relative positions the cache holds the window alone, and a layer that runs "
                "again in the backward pass would miss what has left it: set recomputes to false, "
                "or clip.positions to absolute"
            )
        if self.objective == "flow" and self.context != "clean":
            raise UserError(
                "flow matching shows each block the clean ones before it: set context to clean, or "
                "objective to pairs"
            )
        if self.objective == "consistency" and self.updates.average_decay is None:
            raise UserError("consistency needs targets: set updates.average_decay, 0.95 for one")
        if self.compiles_student and self.recomputes:
            raise UserError(
                "layers that run again in the backward pass are not compiled: set compiles_student "
                "or recomputes to false"
            )
        return self

    def stage(self, networks: Networks, device: torch.device, dtype: torch.dtype) -> Stage:
        """Put losses and networks together.

        Args:
            networks: Where they stay, spread over devices or not.
            device: Of this process.
            dtype: Type the networks compute in.
        """
        if self.compiles_student and self.objective == "matching":
            # The rollout calls a layer with and without gradients, with every filling of the
            # window; all but the first of these share code with variable lengths.
            _compile(networks.student, dynamic=None)
        networks.student.teacher_forcing = self.clip.teacher_forcing
        clock = PartClock(device)
        return Stage(
            student=networks.student,
            clip=self.clip,
            streaming=self.streaming,
            decisions=self.decisions,
            attention=resolve_attention(self.attention, device, dtype),
            draws=Draws(self.seed, device),
            device=device,
            matcher=self._matcher(networks),
            consistency=self._consistency(networks, clock),
            causal=self.clip.causal_pass(self.context),
            discriminator=networks.discriminator,
            discriminator_weight=self.matching.discriminator_weight,
            vae=networks.vae,
            clock=clock,
            shares_rollout=self.matching.shares_rollout,
        )

    @property
    def _levels(self) -> ScoreLevels:
        return ScoreLevels(
            self.clip.shift,
            self.decisions,
            score_shift=self.matching.score_shift,
            lowest=self.matching.lowest,
            highest=self.matching.highest,
        )

    def _score(self, dit: DiT) -> Score:
        if self.compiles_scores:
            _compile(dit, dynamic=False)
        return Score(
            dit,
            self.matching.score_kind,
            block=self.clip.block_latent_frames,
            window=self.clip.window_latent_frames,
            sink=self.clip.sink_latent_frames,
            attention=self.attention,
        )

    def _matcher(self, networks: Networks) -> Matcher | None:
        if self.objective != "matching":
            return None
        assert networks.teacher is not None
        assert networks.critic is not None
        return Matcher(
            teacher=self._score(networks.teacher),
            critic=self._score(networks.critic),
            levels=self._levels,
            decisions=self.decisions,
            guidance=self.matching.guidance,
            per=self.matching.per,
            block=self.clip.block_latent_frames,
        )

    def _consistency(self, networks: Networks, clock: PartClock) -> Consistency | None:
        if self.objective != "consistency":
            return None
        assert networks.teacher is not None
        assert networks.average is not None
        if self.compiles_scores:
            _compile(networks.student, dynamic=False)
            _compile(networks.average, dynamic=False)
        return Consistency(
            student=networks.student,
            average=networks.average,
            teacher=self._score(networks.teacher),
            causal=self.clip.causal_pass(self.context),
            schedule=DenoisingSchedule.uniform(self.consistency.steps, shift=self.clip.shift),
            options=self.consistency,
            clock=clock,
        )


def _compile(dit: DiT, *, dynamic: bool | None) -> None:
    """Compile the layers of a network that stays where it is."""
    # Networks, types, shapes and gradients each have code of their own, all of one function.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, _VARIANTS)
    for layer in dit.layers:
        layer.compile(dynamic=dynamic)
