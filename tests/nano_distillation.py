"""A distillation run of the nano model, whose training step takes a fraction of a second."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from nano_model import WORDS, write_nano_model

from longlive.callbacks.safe_checkpoint import SafeCheckpoint
from longlive.data.training_prompts import TrainingPrompts
from longlive.distillation.streaming import StreamingOptions
from longlive.modules.distillation import Distillation
from longlive.modules.distillation_options import ClipOptions, MatchingOptions, UpdateOptions

CLIP = ClipOptions(
    height_px=32,
    width_px=48,
    latent_frames=6,
    window_latent_frames=6,
    denoising_steps=(1000, 500),
    shift=3.0,
)
MATCHING = MatchingOptions(guidance=2.0, score_kind="causal", per="block", critic_updates=2)
UPDATES = UpdateOptions(
    student_rate=1e-3, critic_rate=1e-3, average_decay=0.9, average_start=1, warmup_steps=2
)
STREAMING = StreamingOptions(latent_frames=12, overlap_latent_frames=3)


def nano_folder(path: Path) -> Path:
    return write_nano_model(path)


def prompts_file(folder: Path) -> Path:
    path = folder / "prompts.txt"
    lines = [f"a {size} {colour} circle spins" for size in WORDS[5:7] for colour in WORDS[1:3]]
    path.write_text("\n".join([*lines, "a square", "a red square"]) + "\n")
    return path


def distillation(weights: Path | str, **options: Any) -> Distillation:
    settings = {
        "weights": str(weights),
        "size": "tiny",
        "clip": CLIP,
        "matching": MATCHING,
        "updates": UPDATES,
        **options,
    }
    return Distillation(**settings)


def trainer_of(folder: Path, steps: int, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    settings = {
        "max_steps": steps,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [SafeCheckpoint(folder, every=1000), *callbacks],
        **options,
    }
    return pl.Trainer(**settings)


def fit(
    folder: Path,
    weights: Path,
    steps: int,
    *,
    batch_size: int = 2,
    resume: Path | None = None,
    data: pl.LightningDataModule | None = None,
    callbacks: tuple[pl.Callback, ...] = (),
    **options: Any,
) -> Distillation:
    """Train for some steps; the checkpoint is ``folder / "last.ckpt"``."""
    model = distillation(weights, **options)
    data = data or TrainingPrompts(prompts_file(weights), batch_size=batch_size)
    trainer_of(folder, steps, *callbacks).fit(model, data, ckpt_path=resume)
    return model


def saved(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "last.ckpt", weights_only=True)
    return content


def first_exit_is_last() -> ClipOptions:
    return replace(CLIP, exits="last")
