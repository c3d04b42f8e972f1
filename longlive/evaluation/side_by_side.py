"""Videos made side by side: one batch, each with the prompts and the noise it has alone.

One GPU makes fifty small videos in the time of a few. Their numbers differ from those of videos
made one by one only by how kernels round in a batch.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import lightning.pytorch as pl
import torch
from torch import Tensor

from longlive.data.prompts import PromptScript
from longlive.errors import UserError
from longlive.geometry import frames_of
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.state import RolloutSpec
from longlive.video.frames import to_uint8


@dataclass(frozen=True, slots=True)
class Made:
    """One video on the host.

    Attributes:
        script: What was asked for.
        frames_TCHW: ``uint8``.
        latents_FCHW: In the model's type.
        timeline: ``(first frame, prompt)`` in order, as it was shown.
        seconds: Its share of the time the batch took.
    """

    script: PromptScript
    frames_TCHW: Tensor
    latents_FCHW: Tensor
    timeline: tuple[tuple[int, str], ...]
    seconds: float


class BatchOf(RolloutCallback):
    """Denoises several videos side by side.

    Args:
        batch: How many.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def configure_rollout(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, spec: RolloutSpec
    ) -> RolloutSpec:
        return replace(spec, batch=self.batch)


def make_videos(
    model: LongLive, callbacks: Sequence[pl.Callback], scripts: Sequence[PromptScript]
) -> list[Made]:
    """Roll out videos side by side.

    Args:
        model: On its device.
        callbacks: Optimizations.
        scripts: Videos that switch prompts at the same places.

    Raises:
        UserError: If a prompt would never be shown, or the settings cannot work.
    """
    plans = [plan_of(model, script) for script in scripts]
    starts = [start for start, _ in plans[0]]
    if any([start for start, _ in plan] != starts for plan in plans):
        raise UserError("videos made side by side must switch prompts together: set batch to 1")
    started = time.perf_counter()
    if len(scripts) == 1:
        stream = model.stream(
            _timeline(starts, [prompt for _, prompt in plans[0]]),
            seed=scripts[0].seed,
            index=scripts[0].index,
            callbacks=callbacks,
        )
    else:
        # The rollout sees one prompt at a time; each name stands for one prompt of every video, and
        # says which, because callbacks may remember what they encoded.
        prompts = [[plan[number][1] for plan in plans] for number in range(len(starts))]
        names = [" / ".join(some) for some in prompts]
        shown = dict(zip(names, prompts, strict=True))
        stream = model.stream(
            _timeline(starts, names),
            seed=tuple(script.seed for script in scripts),
            index=scripts[0].index,
            callbacks=[*callbacks, BatchOf(len(scripts))],
            embed=lambda name: model.encode(shown.get(name, [name] * len(scripts))),
        )
    latents, frames = [], []
    for block in stream:
        latents.append(block.latents.cpu())
        frames.append(to_uint8(block.frames).cpu())
    seconds = (time.perf_counter() - started) / len(scripts)
    latents_BFCHW, frames_BTCHW = torch.cat(latents, 1), torch.cat(frames, 1)
    return [
        Made(
            script,
            # Copies: a video that goes to another process moves all of the memory that it lies in,
            # while others of the batch may be read.
            frames_BTCHW[index].clone(),
            latents_BFCHW[index].clone(),
            tuple((frames_of(start), prompt) for start, prompt in plan),
            seconds,
        )
        for index, (script, plan) in enumerate(zip(scripts, plans, strict=True))
    ]


def plan_of(model: LongLive, script: PromptScript) -> list[tuple[int, str]]:
    """Latent frame and prompt, as a video of the model's length shows them.

    Raises:
        UserError: If the model's length is open, or a prompt would never be shown.
    """
    length = model.spec.latent_frames
    if length is None:
        raise UserError("a video that is evaluated needs a length: set seconds")
    timeline = script.timeline(length, model.block_latent_frames)
    return timeline.plan(length, model.block_latent_frames)


def _timeline(starts: Sequence[int], prompts: Sequence[str]) -> PromptTimeline:
    return PromptTimeline.switching(prompts, starts[1:])
