"""Distillation of a few-step student: one module for all stages, which are configurations.

Student, teacher and critic; losses, rollout and decisions are in :mod:`longlive.distillation`, and
docs/distillation.md explains the stages.
"""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns.

import copy
import logging
from dataclasses import asdict
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from longlive.attention.backends import BackendName
from longlive.distillation.averaging import update_average
from longlive.distillation.checkpointing import recompute_layers
from longlive.distillation.decisions import Decisions, DecisionsName, decisions_of
from longlive.distillation.discriminator import Discriminator
from longlive.distillation.regression import ConsistencyOptions, ContextKind
from longlive.distillation.sharding import data_parallel_mesh, shard
from longlive.distillation.streaming import StreamingOptions
from longlive.models.dit import DiT
from longlive.modules.distillation_examples import Example, examples_of
from longlive.modules.distillation_networks import (
    Language,
    Role,
    build_language,
    build_transformer,
    build_vae,
    check_together,
)
from longlive.modules.distillation_options import (
    ClipOptions,
    MatchingOptions,
    Objective,
    UpdateOptions,
)
from longlive.modules.distillation_plan import Networks, Plan
from longlive.modules.distillation_stages import Stage, initialization_loss
from longlive.modules.distillation_updates import (
    LossOf,
    TrainingTime,
    check_trainer,
    set_rates,
    trained,
    update,
)
from longlive.weights.lora import add_lora

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Distillation(pl.LightningModule):
    """Makes a causal student that needs few steps, from a teacher that needs many.

    Args:
        objective: What the student learns from.
        weights: Where text encoder and VAE come from, and networks that are not named:
            ``embedded``, ``synthetic``, or a folder, see
            :mod:`longlive.modules.distillation_networks`.
        student: Weights to start from, if others: a file, a folder, or a student of the package.
        teacher: Weights of the teacher, if others.
        critic: Weights that the critic starts from; the teacher's by default.
        size: Size of the student.
        teacher_size: Size of the teacher; the student's by default.
        critic_size: Size of the critic; the teacher's by default.
        clip: The clip, and how the student makes it.
        matching: Distribution matching.
        streaming: Long videos in chunks; None for clips.
        consistency: Consistency along the teacher's ODE.
        context: What a block sees of those before it in causal initialization.
        updates: Learning rates and such.
        decisions: Named options, or ``default`` or ``reference`` for a set of them.
        negative_prompt: What the teacher's guidance steers away from.
        lora_rank: Train adapters of this rank beside frozen weights; None trains all weights.
        lora_alpha: Numerator of their scale; the rank by default.
        recomputes: Whether student and critic compute their layers again in the backward pass.
        compiles_scores: Whether layers are compiled where a network sees a whole clip.
        compiles_student: Whether the student's are compiled for its rollouts, too.
        teacher_dtype: Type of the frozen teacher's weights.
        attention: Backend of unmasked attention.
        max_steps: Training steps over which rates fall; those of the trainer by default.
        max_seconds: Seconds of training after which rates have fallen and the trainer stops.
        seed: Of all that is drawn.

    Raises:
        UserError: If the settings cannot work together.
    """

    def __init__(  # noqa: PLR0913 - one argument is one key of the configuration.
        self,
        objective: Objective = "matching",
        weights: str = "embedded",
        student: str | None = None,
        teacher: str | None = None,
        critic: str | None = None,
        size: str = "wan-1.3b",
        teacher_size: str | None = None,
        critic_size: str | None = None,
        clip: ClipOptions | None = None,
        matching: MatchingOptions | None = None,
        streaming: StreamingOptions | None = None,
        consistency: ConsistencyOptions | None = None,
        context: ContextKind = "clean",
        updates: UpdateOptions | None = None,
        decisions: DecisionsName | Decisions = "default",
        negative_prompt: str = "",
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        recomputes: bool = False,
        compiles_scores: bool = False,
        compiles_student: bool = False,
        teacher_dtype: Literal["float32", "bfloat16"] = "float32",
        attention: BackendName = "auto",
        max_steps: int | None = None,
        max_seconds: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.plan = Plan(
            objective=objective,
            clip=clip or ClipOptions(),
            matching=matching or MatchingOptions(),
            streaming=streaming,
            consistency=consistency or ConsistencyOptions(),
            context=context,
            updates=updates or UpdateOptions(),
            decisions=decisions_of(decisions),
            recomputes=recomputes,
            compiles_scores=compiles_scores,
            compiles_student=compiles_student,
            attention=attention,
            seed=seed,
        ).check()
        self.weights = weights
        self.sources = {"student": student, "teacher": teacher, "critic": critic or teacher}
        teacher_size = teacher_size or size
        critic_size = critic_size or teacher_size
        self.sizes = {"student": size, "teacher": teacher_size, "critic": critic_size}
        self.negative_prompt = negative_prompt
        self.lora = None if lora_rank is None else (lora_rank, lora_alpha or float(lora_rank))
        self.teacher_dtype = DTYPES[teacher_dtype]
        self._time = TrainingTime(max_steps, max_seconds)
        self.student: DiT | None = None
        self.critic: DiT | None = None
        self.student_average: DiT | None = None
        self.discriminator: Discriminator | None = None
        # Frozen, so in no checkpoint: kept out of the registered modules.
        self._frozen: dict[str, Any] = {}
        self._stage: Stage | None = None
        self._kept_rollouts: dict[str, Any] | None = None

    def configure_model(self) -> None:
        """Build the networks, once, and spread them over the devices if the strategy does."""
        if self.student is not None:
            return
        strategy = self.trainer.strategy
        is_sharded = isinstance(strategy, pl.strategies.ModelParallelStrategy)
        check_trainer(self.trainer, is_sharded=is_sharded)
        # Sharding moves each device's part there; the whole may not fit.
        device = torch.device("cpu") if is_sharded else strategy.root_device
        self._build(device, strategy.root_device)
        if is_sharded:
            mesh = data_parallel_mesh(
                strategy.root_device.type, self.trainer.num_nodes, self.trainer.world_size
            )
            for module in self._networks:
                shard(module, mesh, torch.bfloat16 if self._is_mixed else None)
        networks = Networks(
            cast(DiT, self.student),
            self.student_average,
            self._frozen.get("teacher"),
            self.critic,
            self.discriminator,
            self._frozen.get("vae"),
        )
        dtype = torch.bfloat16 if self._is_mixed else torch.float32
        self._stage = self.plan.stage(networks, strategy.root_device, dtype)

    def _build(self, device: torch.device, root_device: torch.device) -> None:
        # The large text encoder and VAE are published in, or made for, half the memory.
        is_large = root_device.type == "cuda" and self.sizes["student"] != "tiny"
        language_dtype = torch.bfloat16 if is_large else torch.float32
        language = build_language(self.weights, self.sizes["student"], root_device, language_dtype)
        networks = {"student": self._transformer("student", device, drawn_on=root_device)}
        if self.plan.objective in ("matching", "consistency"):
            teacher = self._transformer("teacher", device, self.teacher_dtype, root_device)
            networks["teacher"] = self._frozen["teacher"] = teacher.requires_grad_(False)
        if self.plan.objective == "matching":
            networks["critic"] = self._transformer("critic", device, drawn_on=root_device)
        check_together(networks, language.encoder.config.width)
        self.plan.clip.spec(networks["student"].config, 1, self.plan.streaming)
        self._frozen["language"] = language
        if self.plan.streaming is not None:
            self._frozen["vae"] = build_vae(
                self.weights, self.sizes["student"], root_device, language_dtype
            )
        # New weights must be the same on all processes, and in a run that is repeated.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.plan.seed)
            for dit in (networks["student"], networks.get("critic")):
                if dit is not None:
                    self._make_trainable(dit)
            if self.plan.matching.discriminator_weight and "critic" in networks:
                width = networks["critic"].config.width
                self.discriminator = Discriminator(width).to(device)
        self.student, self.critic = networks["student"], networks.get("critic")
        if self.plan.updates.average_decay is not None:
            self.student_average = copy.deepcopy(self.student).requires_grad_(False)

    def _transformer(
        self,
        role: Role,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        drawn_on: torch.device | None = None,
    ) -> DiT:
        source = self.sources[role] or self.weights
        return build_transformer(source, self.sizes[role], role, device, dtype, drawn_on)

    def _make_trainable(self, dit: DiT) -> None:
        dit.requires_grad_(True)
        if self.lora is not None:
            add_lora(dit, *self.lora)
        if self.plan.recomputes:
            recompute_layers(dit)

    @property
    def _is_mixed(self) -> bool:
        return str(self.trainer.precision) == "bf16-mixed"

    @property
    def _networks(self) -> list[nn.Module]:
        found = (
            self.student,
            self.student_average,
            self.critic,
            self.discriminator,
            self._frozen.get("teacher"),
        )
        return [module for module in found if module is not None]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for the student and, where there is one, for the critic."""
        rates = [(self.plan.updates.student_rate, trained(self.student))]
        if self.critic is not None:
            weights = trained(self.critic, self.discriminator)
            rates.append((self.plan.updates.critic_rate, weights))
        betas, decay = self.plan.updates.betas, self.plan.updates.weight_decay
        return [
            torch.optim.AdamW(weights, lr=rate, betas=betas, weight_decay=decay)
            for rate, weights in rates
        ]

    def training_step(self, batch: Any, batch_index: int = 0) -> None:
        """Update the student if it is its turn, then the critic."""
        stage, trainer = cast(Stage, self._stage), self.trainer
        if self._time.start() and self._kept_rollouts is not None:
            stage.restore_rollouts(self._kept_rollouts)
        progress = self._time.progress(trainer)
        set_rates(self._optimizers, self.plan.updates, trainer.global_step, progress)
        with stage.clock.part("iteration"):
            with stage.clock.part("text"):
                language = cast(Language, self._frozen["language"])
                whole = examples_of(batch, language, self.negative_prompt, self.device)
            numbers = self._updates(whole.split(self.plan.updates.micro_batches))
        numbers |= {"train/progress": progress, **stage.clock.read()}
        self.log_dict(numbers, batch_size=whole.batch)
        if self._time.max_seconds and progress >= 1:
            trainer.should_stop = True

    def _updates(self, examples: list[Example]) -> dict[str, float]:
        stage, step = cast(Stage, self._stage), self.trainer.global_step
        if self.critic is None:
            loss_of = initialization_loss(stage, self.plan.objective)
            return self._update("student", loss_of, examples)
        numbers = {}
        if step % self.plan.matching.critic_updates == 0:
            numbers = self._update("student", stage.student_loss, examples)
        return numbers | self._update("critic", stage.critic_loss, examples)

    @property
    def _optimizers(self) -> list[LightningOptimizer]:
        found: Any = self.optimizers()
        return list(found) if isinstance(found, list) else [found]

    def _update(self, name: str, loss_of: LossOf, examples: list[Example]) -> dict[str, float]:
        step, optimizers = self.trainer.global_step, self._optimizers
        optimizer = optimizers[0 if name == "student" else 1]
        clock = cast(Stage, self._stage).clock
        numbers = update(
            self,
            name,
            optimizer,
            loss_of,
            examples,
            clock,
            gradient_clip=self.plan.updates.gradient_clip,
            is_counted=optimizer is optimizers[-1],
        )
        if name == "student" and self.student_average is not None:
            every = self.plan.matching.critic_updates if self.critic is not None else 1
            is_started = step // every >= self.plan.updates.average_start
            decay = cast(float, self.plan.updates.average_decay) if is_started else 0.0
            with clock.part("student_average"):
                update_average(self.student_average, cast(DiT, self.student), decay)
        return numbers

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the weights do not say: sizes, time, and the rollouts under way."""
        sizes = {"student": self.student, "student_average": self.student, "critic": self.critic}
        checkpoint["sizes"] = {
            name: asdict(dit.config) for name, dit in sizes.items() if dit is not None
        }
        checkpoint["seconds"] = self._time.seconds
        checkpoint["lora"] = self.lora
        if self.trainer.world_size == 1 and self._stage is not None:
            checkpoint["rollouts"] = self._stage.rollouts_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        self._time.seconds_before = float(checkpoint["seconds"])
        self._kept_rollouts = checkpoint.get("rollouts")
        if self.plan.streaming is not None and self.trainer.world_size > 1:
            log.warning("several processes: the video that was under way is begun anew")

    @torch.no_grad()
    def sample(self, prompts: list[str], latent_frames: int, seed: int) -> Tensor:
        """Latents ``[B, F, C, H, W]`` of the averaged student, if there is one, as at inference."""
        stage, language = cast(Stage, self._stage), cast(Language, self._frozen["language"])
        network = cast(DiT, self.student_average or self.student)
        with self.trainer.precision_plugin.forward_context():
            return stage.sample(network, language.embed(prompts), latent_frames, seed)

    @torch.no_grad()
    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        """Frames ``[B, T, 3, H, W]`` in [0, 1] of some latents."""
        if "vae" not in self._frozen:
            self._frozen["vae"] = build_vae(
                self.weights, self.sizes["student"], self.device, torch.float32
            )
        frames_BTCHW: Tensor = self._frozen["vae"].decode(latents_BFCHW.to(self.device))
        return frames_BTCHW
