"""predict, fit, validate and test: LightningCLI with our defaults and short-cuts."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from longlive.callbacks.watch_processes import WatchProcesses
from longlive.cli import COMMANDS
from longlive.cli.complaints import complaint_about
from longlive.cli.config_files import check_config_files
from longlive.cli.recipe_option import HELP as RECIPE_HELP
from longlive.cli.recipe_option import with_recipes_spelled_out
from longlive.cli.session_option import with_session_spelled_out
from longlive.errors import UserError
from longlive.weights.state_dicts import read_checkpoint

_NOISE = (".*LeafSpec.*", ".*does not have many workers.*", "LightningCLI's args parameter.*")
_PREDICT_NOISE = ("No seed found.*", "GPU available but not used.*")
_CHATTER = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")
_PREDICT_CHATTER = ("lightning.pytorch", "lightning.fabric", *_CHATTER)
# Says which process has failed before it ends the others.
_LAUNCHER = "lightning.fabric.strategies.launchers.subprocess_script"
_NAMED_CHECKPOINTS = ("best", "last", "hpc", "registry")
_SEEDS = range(1 << 32)
_TRAINING = ("fit", "validate", "test")

CLI = TypeVar("CLI", bound=LightningCLI)


class LongLiveParser(LightningArgumentParser):
    """Says what is wrong in one line, without a page of usage before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse the arguments.

        Raises:
            UserError: Always.
        """
        raise complaint_about(self, message, ex) from ex


class LongLiveCLI(LightningCLI):
    """The Lightning command line of this project."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: LightningCLI.subcommands()[name] for name in _TRAINING}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        # What Lightning would trip over next, with a traceback.
        config = self.config[self.config["subcommand"]]
        _check_checkpoint(config.ckpt_path)
        check_seed(config.seed_everything)
        check_accelerator(config.trainer.accelerator)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        try:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.append(WatchProcesses())  # type: ignore[attr-defined]
            return trainer
        # The callbacks exist by now: what is refused here are the trainer's own settings.
        except ValueError as error:
            raise UserError(f"trainer: {error}") from error


class PredictCLI(LongLiveCLI):
    """``longlive predict``, with short-cuts for what is typed most."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"predict": LightningCLI.subcommands()["predict"]}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Before all others, so that the help begins with them.
        group = parser.add_argument_group("short-cuts")
        group.add_argument("--prompt", type=str | list[str] | None, help="what the video shows")
        group.add_argument(
            "--prompts", type=str | None, help="file of prompts: .txt, .jsonl or .yaml"
        )
        group.add_argument(
            "--switch",
            type=list[int] | int | None,
            metavar="FRAME ...",
            help="latent frames at which later prompts begin",
        )
        group.add_argument("--seconds", type=float | None, help="length of a video")
        group.add_argument("--seed", type=int | None, help="seed of the first video")
        group.add_argument(
            "--output", type=str | None, help="folder for the videos, or a name ending in .mp4"
        )
        group.add_argument(
            "--session",
            type=str | None,
            metavar="FILE",
            help="make a session of longlive serve again, or play an interactive .jsonl",
        )
        group.add_argument("--recipe", type=str | None, metavar="NAME", help=RECIPE_HELP)
        group.add_argument("--png", type=bool | None, help="also write each frame as a PNG file")
        group.add_argument("--latents", type=bool | None, help="also write the latents")
        super().add_default_arguments_to_parser(parser)

    def before_instantiate_classes(self) -> None:
        config = self.config["predict"]
        check_callbacks(config.trainer.callbacks)
        # Blank is bad input, absent is not.
        if config.prompt is not None:
            _set(config.data, "prompt", config.prompt, "--prompt")
        if config.prompts is not None:
            _set(config.data, "prompts_file", Path(config.prompts), "--prompts")
        if config.switch is not None:
            switches = [config.switch] if isinstance(config.switch, int) else config.switch
            _set(config.data, "switch_latent_frames", switches, "--switch")
        if config.seed is not None:
            _set(config.data, "seed", config.seed, "--seed")
        if config.seconds is not None:
            _set(config.model, "seconds", config.seconds, "--seconds")
            _set(config.model, "latent_frames", None, "--seconds")
        for name in ("output", "png", "latents"):
            if config[name] is not None:
                writer = _frame_writer(config.trainer.callbacks, f"--{name}")
                _set(writer, name, config[name], f"--{name}")


def run(args: list[str]) -> None:
    """Run one of the Lightning commands.

    Args:
        args: Command line without the program's name.

    Raises:
        UserError: For input that cannot work.
    """
    name = args[0]
    args = _with_switches_joined(args)
    if name == "predict":
        args = with_recipes_spelled_out(with_session_spelled_out(args))
    check_config_files(args)
    cli = PredictCLI if name == "predict" else LongLiveCLI
    run_cli(cli, args, f"longlive {name} --config FILE [--config FILE ...] [OPTIONS]")


def run_cli(cli: type[CLI], args: list[str], usage: str | None = None, **options: Any) -> CLI:
    """Have a command line read by Lightning, and its command run.

    Args:
        cli: Of which class.
        args: Command line without the program's name.
        usage: First line of the command's help, if it has one.
        options: Of the class.

    Raises:
        UserError: For input that cannot work.
    """
    name = args[0]
    parser: dict[str, Any] = {
        "prog": "longlive",
        "default_env": False,
        # An abbreviation that works today is ambiguous after the next option.
        "allow_abbrev": False,
    }
    if usage is not None:
        summary = COMMANDS[name].summary.capitalize() + "."
        parser[name] = {"usage": usage, "description": summary}
    with _without_chatter(is_predict=name not in _TRAINING):
        try:
            return cli(
                pl.LightningModule,
                pl.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                save_config_callback=None,
                parser_class=LongLiveParser,
                parser_kwargs=parser,
                args=args,
                **options,
            )
        except MisconfigurationException as error:
            raise UserError(" ".join(str(error).split())) from error


@contextmanager
def _without_chatter(*, is_predict: bool) -> Iterator[None]:
    """Hold back what Lightning says at each start: devices found, an advertisement.

    Of a training run more is worth knowing.
    """
    loggers = [logging.getLogger(name) for name in (_PREDICT_CHATTER if is_predict else _CHATTER)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    logging.getLogger(_LAUNCHER).setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            for message in (*_NOISE, *(_PREDICT_NOISE if is_predict else ())):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _with_switches_joined(args: list[str]) -> list[str]:
    """Turn ``--switch 10 5`` into ``--switch=[10,5]``.

    An option of several words would refuse a single number in a file.
    """
    if "--switch" not in args:
        return args
    place = args.index("--switch")
    numbers = list(takewhile(re.compile(r"-?\d+").fullmatch, args[place + 1 :]))
    if not numbers:
        return args
    joined = f"--switch=[{','.join(numbers)}]"
    return [*args[:place], joined, *args[place + 1 + len(numbers) :]]


def _set(node: Namespace, name: str, value: Any, option: str) -> None:
    """Set an argument of a configured class."""
    if name not in node.get("init_args", {}):
        raise UserError(f"{option} does not fit: {node.class_path} takes no {name}")
    node.init_args[name] = value


def _frame_writer(callbacks: list[Namespace] | None, option: str) -> Namespace:
    for callback in callbacks or []:
        if callback.class_path.endswith(".FrameWriter"):
            return callback
    raise UserError(f"{option} needs the callback FrameWriter: add it to trainer.callbacks")


def check_callbacks(callbacks: list[Namespace] | None) -> None:
    """Refuse one of ours that two overlays have brought: a rollout would, after loading weights."""
    paths = [callback.class_path for callback in callbacks or []]
    for path in paths:
        if path.startswith("longlive.") and paths.count(path) > 1:
            name = path.rpartition(".")[2]
            raise UserError(f"{name} is configured twice: name its overlay once")


def check_accelerator(accelerator: Any) -> None:
    found = {"gpu": torch.cuda.is_available() or torch.backends.mps.is_available()}
    found["cuda"] = torch.cuda.is_available()
    if not found.get(str(accelerator), True):
        raise UserError(
            f"no GPU for accelerator {accelerator}: use --config configs/tiny.yaml, or add "
            "--trainer.accelerator cpu"
        )


def check_seed(seed: bool | int) -> None:
    if seed not in _SEEDS:
        raise UserError(f"seed_everything goes from 0 to {_SEEDS[-1]}, got {seed}")


def _check_checkpoint(path: str | Path | None) -> None:
    name = str(path)
    # A sharded checkpoint is a folder, and a remote one is not here yet.
    if path is None or name in _NAMED_CHECKPOINTS or "://" in name or Path(name).is_dir():
        return
    read_checkpoint(name)
