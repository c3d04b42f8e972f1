"""What a stage of distillation is told: the clip, the scores, the updates."""

from dataclasses import dataclass
from typing import Literal

from longlive.attention.rope import RopeKind
from longlive.distillation.losses import Granularity
from longlive.distillation.regression import CausalPass, ContextKind
from longlive.distillation.scores import ScoreKind
from longlive.distillation.streaming import StreamingOptions
from longlive.errors import UserError
from longlive.geometry import Geometry
from longlive.models.dit import TeacherForcingOptions
from longlive.models.sizes import DiTConfig
from longlive.rollout.state import RolloutSpec
from longlive.schedule import DenoisingSchedule

Objective = Literal["matching", "flow", "pairs", "consistency"]
"""``matching``: the student's own rollouts against teacher and critic (DMD). ``flow``: clean clips,
by flow matching with teacher forcing. ``pairs``: regression on stored ODE pairs. ``consistency``:
clean clips, by consistency along the teacher's ODE."""


@dataclass(frozen=True, slots=True)
class ClipOptions:
    """The clip that teacher and critic see, and how the student makes it.

    Attributes:
        height_px: Rows of a frame.
        width_px: Columns of a frame.
        latent_frames: Length of a clip, whole blocks.
        block_latent_frames: Latent frames denoised together.
        window_latent_frames: Latent frames a query of the student can see.
        sink_latent_frames: First latent frames that are never evicted.
        positions: Rotary positions of the student.
        denoising_steps: Steps in [1, 1000] that the student takes, falling.
        first_denoising_steps: Those of a video's first block, if it keeps more.
        updates_context: Whether the student stores clean keys with a pass of their own. Without it
            the keys of the last denoising step are kept, so that step should be at low noise.
        shift: Time shift of the student's noise levels.
        exits: Whether the step that trains is drawn, or always the last.
    """

    height_px: int = 480
    width_px: int = 832
    latent_frames: int = 21
    block_latent_frames: int = 3
    window_latent_frames: int | None = 12
    sink_latent_frames: int = 3
    positions: RopeKind = "absolute"
    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)
    first_denoising_steps: tuple[int, ...] | None = None
    updates_context: bool = True
    shift: float = 5.0
    exits: Literal["random", "last"] = "random"

    @property
    def schedule(self) -> DenoisingSchedule:
        """Noise levels of a block."""
        return DenoisingSchedule.from_steps(self.denoising_steps, shift=self.shift)

    @property
    def first_schedule(self) -> DenoisingSchedule | None:
        """Noise levels of the first block, if they are others."""
        if self.first_denoising_steps is None:
            return None
        return DenoisingSchedule.from_steps(self.first_denoising_steps, shift=self.shift)

    @property
    def teacher_forcing(self) -> TeacherForcingOptions:
        """How the student sees a clip in flow matching: the blocks before one are clean."""
        return TeacherForcingOptions(
            self.block_latent_frames,
            self.window_latent_frames,
            self.sink_latent_frames,
            self.shift,
            history_noise=0.0,
        )

    def causal_pass(self, context: ContextKind) -> CausalPass:
        """How the student sees a clip when all its blocks are learned at once."""
        sink = self.sink_latent_frames if context == "clean" else 0
        return CausalPass(self.block_latent_frames, self.window_latent_frames, sink, context)

    def spec(
        self, config: DiTConfig, batch: int, streaming: StreamingOptions | None = None
    ) -> RolloutSpec:
        """What the student rolls out: a clip, or a long video in chunks.

        Args:
            config: Of the student.
            batch: Videos side by side.
            streaming: Options of a long video.

        Raises:
            UserError: If the settings cannot work together.
        """
        window = self.window_latent_frames
        frames = streaming.latent_frames if streaming else self.latent_frames
        frames -= frames % self.block_latent_frames
        # A layer that runs again in the backward pass must find all that its chunk has read.
        room = (window or 0) + self.latent_frames if streaming else self.latent_frames
        # Relative positions are places in the cache, so that must be what it is at inference.
        is_window = window is None or self.positions == "relative"
        return RolloutSpec(
            geometry=Geometry(
                self.height_px,
                self.width_px,
                config.latent_channels,
                config.patch,
                self.block_latent_frames,
            ),
            schedule=self.schedule,
            first_schedule=self.first_schedule,
            latent_frames=frames,
            window_latent_frames=window,
            sink_latent_frames=self.sink_latent_frames,
            positions=self.positions,
            updates_context=self.updates_context,
            batch=batch,
            cached_latent_frames=None if is_window else max(window or 0, room),
        ).check()


@dataclass(frozen=True, slots=True)
class MatchingOptions:
    """Distribution matching.

    Attributes:
        guidance: Scale of the teacher's classifier-free guidance; what it starts from is one of the
            decisions.
        score_kind: Whether teacher and critic see a whole clip or each block after the clean ones
            before it.
        per: Whether noise level and norm belong to a clip or to each block.
        critic_updates: Updates of the critic for each of the student.
        shares_rollout: Whether the critic learns on the student's latest rollout, under noise of
            its own, instead of rolling out anew in every training step.
        score_shift: Time shift of the tables of teacher and critic, with tabled score levels.
        lowest: Least timestep at which they look.
        highest: Greatest one.
        discriminator_weight: Of the loss of a discriminator on the critic's features; 0 for none.
            It needs data with true clips.
    """

    guidance: float = 3.0
    score_kind: ScoreKind = "bidirectional"
    per: Granularity = "clip"
    critic_updates: int = 5
    shares_rollout: bool = False
    score_shift: float = 8.0
    lowest: float = 20.0
    highest: float = 980.0
    discriminator_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.critic_updates < 1:
            raise UserError(f"critic_updates must be at least 1, got {self.critic_updates}")
        if self.per == "block" and self.score_kind == "bidirectional":
            raise UserError(
                "a bidirectional score has one noise level for the whole clip: set matching.per to "
                "clip"
            )


@dataclass(frozen=True, slots=True)
class UpdateOptions:
    """How weights are updated.

    Attributes:
        student_rate: Learning rate of the student.
        critic_rate: Learning rate of the critic.
        betas: Of AdamW, for both.
        weight_decay: Likewise.
        gradient_clip: Largest norm of a gradient.
        micro_batches: Parts into which a batch is cut, whose gradients are summed.
        average_decay: Share of the averaged student that stays in an update; None for no average.
        average_start: Updates of the student before the average is more than a copy.
        warmup_steps: Training steps over which the rates rise.
        decay_share: Last share of the training over which they fall to zero.
    """

    student_rate: float = 2e-6
    critic_rate: float = 4e-7
    betas: tuple[float, float] = (0.0, 0.999)
    weight_decay: float = 0.01
    gradient_clip: float = 10.0
    micro_batches: int = 1
    average_decay: float | None = 0.99
    average_start: int = 40
    warmup_steps: int = 0
    decay_share: float = 0.0

    def __post_init__(self) -> None:
        if self.micro_batches < 1:
            raise UserError(f"micro_batches must be at least 1, got {self.micro_batches}")
        if self.average_decay is not None and not 0 <= self.average_decay < 1:
            raise UserError(f"average_decay goes from 0 to below 1, got {self.average_decay}")
        if not 0 <= self.decay_share <= 1:
            raise UserError(f"decay_share goes from 0 to 1, got {self.decay_share}")

    def rate_factor(self, step: int, progress: float) -> float:
        """Factor on the learning rates.

        Args:
            step: Training steps done.
            progress: How much of the training is done, in [0, 1].
        """
        rise = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = max(0.0, 1.0 - progress)
        return rise * (min(1.0, left / self.decay_share) if self.decay_share else 1.0)
