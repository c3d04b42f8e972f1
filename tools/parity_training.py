"""The training side of the parity check: losses, gradients and the student's rollout."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from parity_case import Case
from torch import Tensor, nn

from longlive.attention.backends import sdpa_attention
from longlive.distillation.checkpointing import recompute_layers
from longlive.distillation.decisions import Decisions
from longlive.distillation.levels import ScoreLevels
from longlive.distillation.losses import matching_loss
from longlive.distillation.matching import Matcher, Matching, ScoreDraw
from longlive.distillation.scores import Prediction, Score
from longlive.distillation.self_forcing import StudentRollout, nominal_steps
from longlive.geometry import SPATIAL_STRIDE, Geometry
from longlive.models.dit import DiT
from longlive.models.sizes import DiTConfig
from longlive.rollout.state import RolloutSpec
from longlive.schedule import DenoisingSchedule, NoiseTable

PROMPT = "the prompt"


@dataclass
class RecordedTrainingNoise:
    """The noise a golden rollout was made with."""

    case: Case
    prefix: str
    block: int

    def draw(self, block_index: int, step_index: int) -> Tensor:
        if step_index == 0:
            start = block_index * self.block
            return self.case.input(f"{self.prefix}.noise")[:, start : start + self.block]
        return self._frames(f"{self.prefix}.renoise.block{block_index}.step{step_index - 1}")

    def draw_context(self, block_index: int) -> Tensor:
        return self._frames(f"{self.prefix}.context_noise.block{block_index}")

    def _frames(self, key: str) -> Tensor:
        return self.case.input(key).unflatten(0, (self.case.config["batch"], -1))


class Distillation:
    """Student, teacher and critic of a case, and how the reference uses them."""

    def __init__(self, case: Case) -> None:
        config = case.config
        loss = config.get("denoising_loss_type", "flow")
        if loss != "flow":
            raise ValueError(f"{case.name}: a critic loss of type {loss} is not implemented")
        self.case = case
        self.block = config["num_frame_per_block"]
        # Without checkpointing the text gets a gradient only where the first step trains.
        recomputes = config.get("gradient_checkpointing", True)
        self.decisions = replace(Decisions.reference(), text_gradients=recomputes)
        self.student, self.teacher, self.critic = (
            self._network(size, weights)
            for size, weights in (
                ("model", "model"),
                ("real_model", "real"),
                ("fake_model", "fake"),
            )
        )
        if recomputes:
            recompute_layers(self.student)
            recompute_layers(self.critic)
        self.levels = ScoreLevels(
            config["timestep_shift"],
            self.decisions,
            score_shift=config["score_timestep_shift"],
            lowest=config["min_step"],
            highest=config["max_step"],
        )
        self.matcher = Matcher(
            teacher=Score(self.teacher, attention="sdpa"),
            critic=Score(self.critic, attention="sdpa"),
            levels=self.levels,
            decisions=self.decisions,
            guidance=config["guidance_scale"],
        )
        self.schedule = DenoisingSchedule.from_steps(
            config["denoising_step_list"], shift=config["timestep_shift"]
        )
        self.text, self.negative = (
            case.input(f"prompt_embeds.{kind}") for kind in ("cond", "uncond")
        )

    def _network(self, size: str, weights: str) -> DiT:
        case = self.case
        dit = DiT(DiTConfig.from_official(case.config.get(size, case.config["model"])))
        case.load(dit.to(case.dtype), weights)
        return dit

    def draw(self, name: str) -> ScoreDraw:
        raw = self.case.input(f"{name}.timestep_raw")
        return ScoreDraw(raw.reshape(len(raw), -1)[:, :1], self.case.input(f"{name}.noise"))

    def match(self, x: Tensor, prefix: str) -> Matching:
        return compare_matching(
            self.case, prefix, self.matcher.match(x, self.text, self.negative, self.draw("dmd"))
        )

    def rollout(self, decisions: Decisions, exits: int | list[int]) -> StudentRollout:
        case, config = self.case, self.case.config
        rows, columns = config["latent_hw"]
        model = self.student.config
        window = config["local_attn_size"]
        frames = config["frames"]
        first_exit = exits if isinstance(exits, int) else exits[0]
        if first_exit == 0:
            decisions = replace(decisions, text_gradients=True)
        spec = RolloutSpec(
            geometry=Geometry(
                rows * SPATIAL_STRIDE,
                columns * SPATIAL_STRIDE,
                model.latent_channels,
                model.patch,
                self.block,
            ),
            schedule=self.schedule,
            latent_frames=frames,
            window_latent_frames=None if window == -1 else min(window, frames),
            sink_latent_frames=max(0, config.get("sink_size", 0)),
            context_sigma=config.get("context_noise", 0) / 1000,
            cached_latent_frames=None if window == -1 else frames,
            batch=config["batch"],
        )
        return StudentRollout(
            self.student,
            spec,
            {PROMPT: self.text},
            decisions,
            attention=sdpa_attention,
            dtype=case.dtype,
            device=torch.device("cpu"),
        )

    def roll(
        self, rollout: StudentRollout, prefix: str, exits: int | list[int], trains: bool
    ) -> Tensor:
        config = self.case.config
        blocks = config["frames"] // self.block
        table = NoiseTable(config["timestep_shift"])
        sigma = table.sigma_at(torch.tensor(float(config.get("context_noise", 0))))
        return rollout.roll(
            blocks,
            RecordedTrainingNoise(self.case, prefix, self.block),
            [exits] * blocks if isinstance(exits, int) else exits,
            {0: PROMPT},
            trains=trains,
            context_noise_sigma=float(sigma),
        )


def compare_prediction(case: Case, key: str, prediction: Prediction) -> None:
    case.compare(f"{key}.flow", prediction.velocity)
    case.compare(f"{key}.x0", prediction.x0)


def compare_matching(case: Case, prefix: str, found: Matching) -> Matching:
    case.compare(f"{prefix}.timestep", found.clip.timestep)
    case.compare(f"{prefix}.noisy_latent", found.clip.latents)
    compare_prediction(case, f"{prefix}.pred_fake_cond", found.fake)
    compare_prediction(case, f"{prefix}.pred_real_cond", found.prompted)
    if found.unprompted is not None:
        compare_prediction(case, f"{prefix}.pred_real_uncond", found.unprompted)
    case.compare(f"{prefix}.kl_grad", found.gradient)
    case.compare(f"{prefix}.gradient_norm_log", found.gradient.abs().mean().reshape(1))
    return found


def gradients(module: nn.Module, loss: Tensor, inputs: Iterable[Tensor] = ()) -> dict[str, Tensor]:
    """Gradients of a loss by parameter name; zero where it does not depend on one."""
    named = dict(module.named_parameters())
    found = torch.autograd.grad(loss, [*named.values(), *inputs], allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(named.items(), found, strict=False)
    }


def compare_gradients(
    case: Case, prefix: str, order: list[str], found: Mapping[str, Tensor]
) -> None:
    case.compare(f"{prefix}.param_grad_norms", torch.stack([found[name].norm() for name in order]))
    for name, gradient in found.items():
        case.compare(f"{prefix}.grad.{name}", gradient)


def order_of(case: Case, key: str, module: nn.Module) -> list[str]:
    orders = case.manifest.get("parameter_order", {})
    return list(orders.get(key) or [name for name, _ in module.named_parameters()])


def check_given_clip(case: Case, parts: Distillation) -> None:
    """Losses of a clip that the case holds."""
    image = case.input("image_or_video").requires_grad_()
    gradient = parts.match(image.detach(), "dmd").gradient
    losses = {"dmd": matching_loss(image, gradient)}
    if "in.gradient_mask" in case.tensors:
        losses["dmd_masked"] = matching_loss(image, gradient, case.input("gradient_mask").bool())
    for key, loss in losses.items():
        case.compare(f"{key}.loss", loss.reshape(1))
        case.compare(f"{key}.image_grad", torch.autograd.grad(loss, image)[0])
    loss, clip, fake = parts.matcher.critic_loss(image, parts.text, parts.draw("critic"))
    case.compare("critic.timestep", clip.timestep)
    case.compare("critic.noisy_latent", clip.latents)
    compare_prediction(case, "critic.pred_fake", fake)
    case.compare("critic.loss", loss.reshape(1))
    order = order_of(case, "out.critic.param_grad_norms", parts.critic)
    compare_gradients(case, "critic", order, gradients(parts.critic, loss))


def check_student_loss(case: Case, parts: Distillation) -> None:
    """The student's loss through its rollout, with both ways of gradients through the cache."""
    prefix = "rollout.generator"
    exits = case.config["generator_exit_step"]
    key = f"out.{prefix}.param_grad_norms"
    order = order_of(case, key, parts.student)
    for name, cache_gradients in (("official", "leak"), ("detached_cache", "cut")):
        decisions = replace(parts.decisions, cache_gradients=cache_gradients)
        rollout = parts.rollout(decisions, exits)
        image = parts.roll(rollout, prefix, exits, trains=True)
        case.compare(f"{prefix}.pred_image", image)
        loss = matching_loss(image, parts.match(image.detach(), f"{prefix}.dmd").gradient)
        case.compare(f"{prefix}.loss", loss.reshape(1))
        [image_gradient] = torch.autograd.grad(loss, image, retain_graph=True)
        case.compare(f"{prefix}.pred_image_grad", image_gradient)
        compare_gradients(case, f"{prefix}.{name}", order, gradients(parts.student, loss))
        # After the backward pass, which runs layers again and must not have stored anything.
        for layer in range(parts.student.config.layers):
            for kind, buffer in (("k", rollout.cache.k), ("v", rollout.cache.v)):
                case.compare(f"{prefix}.cache.layer{layer}.{kind}", buffer[layer].flatten(1, 2))
    first = exits if isinstance(exits, int) else exits[0]
    steps = nominal_steps(parts.schedule, first, case.config["timestep_shift"])
    case.compare(f"{prefix}.denoised_timestep_from_to", torch.tensor(steps))


def check_critic_loss(case: Case, parts: Distillation) -> None:
    """The critic's loss on a rollout without gradients."""
    prefix = "rollout.critic"
    exits = case.config["critic_exit_step"]
    image = parts.roll(parts.rollout(parts.decisions, exits), prefix, exits, trains=False)
    case.compare(f"{prefix}.pred_image", image)
    loss, *_ = parts.matcher.critic_loss(image, parts.text, parts.draw("critic"))
    case.compare(f"{prefix}.loss", loss.reshape(1))
    order = order_of(case, f"out.{prefix}.param_grad_norms", parts.critic)
    if f"out.{prefix}.param_grad_norms" not in case.manifest.get("parameter_order", {}):
        order = order_of(case, "out.critic.param_grad_norms", parts.critic)
    compare_gradients(case, prefix, order, gradients(parts.critic, loss))


def check_distillation(case: Case) -> None:
    parts = Distillation(case)
    with torch.enable_grad():
        check_given_clip(case, parts)
        if case.config.get("rollout", True):
            check_student_loss(case, parts)
            check_critic_loss(case, parts)
