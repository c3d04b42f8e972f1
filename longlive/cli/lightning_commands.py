"""predict, fit, validate and test: LightningCLI with our defaults and short-cuts."""

import logging
import warnings
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from longlive.errors import UserError

_NOISE = (".*LeafSpec.*", ".*does not have many workers.*", "LightningCLI's args parameter.*")


class LongLiveParser(LightningArgumentParser):
    """Says what is wrong in one line, without a page of usage before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        cause: BaseException | None = ex
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        raise UserError(" ".join(str(cause or message).split()))


class LongLiveCLI(LightningCLI):
    """The Lightning command line of this project."""

    parser_class = LongLiveParser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        kept = ("fit", "validate", "test")
        return {name: LightningCLI.subcommands()[name] for name in kept}


class PredictCLI(LongLiveCLI):
    """``longlive predict``, with short-cuts for what is typed most."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"predict": LightningCLI.subcommands()["predict"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--prompt", type=str | list[str] | None, help="what the video shows")
        parser.add_argument(
            "--prompts", type=str | None, help="file of prompts: .txt, .jsonl or .yaml"
        )
        parser.add_argument(
            "--switch", type=list[int] | None, help="latent frames at which later prompts begin"
        )
        parser.add_argument("--seconds", type=float | None, help="length of a video")
        parser.add_argument("--seed", type=int | None, help="seed of the first video")
        parser.add_argument(
            "--output", type=str | None, help="folder for the videos, or a name ending in .mp4"
        )

    def before_instantiate_classes(self) -> None:
        config = self.config["predict"]
        # Blank is bad input, absent is not.
        if config.prompt is not None:
            config.data.init_args.prompt = config.prompt
        if config.prompts is not None:
            config.data.init_args.prompts_file = Path(config.prompts)
        if config.switch is not None:
            config.data.init_args.switch_latent_frames = config.switch
        if config.seed is not None:
            config.data.init_args.seed = config.seed
        if config.seconds is not None:
            config.model.init_args.seconds = config.seconds
            config.model.init_args.latent_frames = None
        if config.output is not None:
            _frame_writer(config.trainer.callbacks).init_args.output = config.output


def _frame_writer(callbacks: list[Namespace] | None) -> Namespace:
    for callback in callbacks or []:
        if callback.class_path.endswith(".FrameWriter"):
            return callback
    raise UserError("--output needs the callback FrameWriter: add it to trainer.callbacks")


def run(args: list[str]) -> None:
    """Run one of the Lightning commands.

    Args:
        args: Command line without the program's name.

    Raises:
        UserError: For input that cannot work.
    """
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    # What Lightning says at each start helps nobody here: devices found, an advertisement.
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    cli = PredictCLI if args[:1] == ["predict"] else LongLiveCLI
    options: dict[str, Any] = {"prog": "longlive", "default_env": False}
    try:
        cli(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            parser_class=LongLiveParser,
            parser_kwargs=options,
            args=args,
        )
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error


