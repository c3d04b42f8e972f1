"""The model that ``longlive serve`` shows, configured as for ``longlive predict``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace

from longlive.callbacks.frame_writer import FrameWriter
from longlive.callbacks.progress import RolloutProgress
from longlive.cli.config_files import check_config_files
from longlive.cli.lightning_commands import PredictCLI, run_cli
from longlive.errors import UserError
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback

# A live video is shown, not written, and its progress is the video.
_WATCHERS = (FrameWriter, RolloutProgress)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What to serve.

    Attributes:
        model: Its weights are not loaded.
        device: Where they belong.
        callbacks: Optimizations.
        callback_configs: ``class_path`` and ``init_args`` of each.
    """

    model: LongLive
    device: torch.device
    callbacks: tuple[RolloutCallback, ...]
    callback_configs: tuple[dict[str, Any], ...]


class _NoTrainer(pl.Trainer):
    """Is configured like any other, and then has nothing to do: the server runs the rollout."""

    def predict(
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Do nothing; the options are those of the trainer's own method."""


def configure(args: list[str]) -> ServedModel:
    """Read configurations and options.

    Args:
        args: Options of ``longlive predict``, its configurations among them.

    Raises:
        UserError: For input that cannot work.
    """
    check_config_files(args)
    # Viewers bring the prompts; the data module insists on one.
    prompt = [] if any(arg.startswith("--prompt") for arg in args) else ["--prompt", "a"]
    cli = run_cli(PredictCLI, ["predict", *args, *prompt], trainer_class=_NoTrainer)
    if not isinstance(cli.model, LongLive):
        raise UserError(f"serve shows a LongLive model, not {type(cli.model).__name__}")
    found: list[pl.Callback] = cli.trainer.callbacks  # type: ignore[attr-defined]
    callbacks = tuple(
        callback
        for callback in found
        if isinstance(callback, RolloutCallback) and not isinstance(callback, _WATCHERS)
    )
    names = {f"{type(callback).__module__}.{type(callback).__qualname__}" for callback in callbacks}
    configured: list[Namespace] = cli.config["predict"].trainer.callbacks or []
    configs = tuple(entry.as_dict() for entry in configured if entry.class_path in names)
    return ServedModel(cli.model, cli.trainer.strategy.root_device, callbacks, configs)
