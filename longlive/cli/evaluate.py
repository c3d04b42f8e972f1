"""evaluate: how good the videos of a recipe are, or those in a folder."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from longlive.cli.config_files import check_config_files
from longlive.cli.lightning_commands import (
    LongLiveCLI,
    check_accelerator,
    check_seed,
    run_cli,
)
from longlive.errors import UserError

NAME = "evaluate"
# Short-cut, then the argument of the model or the data that it sets.
_MODEL = {"output": "output", "workers": "workers", "measures": "measures"}
_DATA = {
    "videos": "folder",
    "prompts": "prompts_file",
    "seeds": "seeds",
    "limit": "limit",
    "batch": "batch",
}


class EvaluationTrainer(pl.Trainer):
    """A trainer whose ``test`` has a friendlier name."""

    def evaluate(
        self, model: pl.LightningModule, datamodule: pl.LightningDataModule | None = None
    ) -> None:
        """Judge videos; goes on where an earlier run stopped.

        Args:
            model: ``EvaluateRollouts`` or ``JudgeVideos``.
            datamodule: Its prompts, or its videos.
        """
        self.test(model, datamodule=datamodule, verbose=False)


class EvaluateCLI(LongLiveCLI):
    """``longlive evaluate``, with short-cuts for what is typed most."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {NAME: {"model", "datamodule"}}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        group = parser.add_argument_group("short-cuts")
        group.add_argument("--output", type=str | None, help="folder for the results")
        group.add_argument("--prompts", type=str | None, help="prompt set: .txt, .jsonl or .yaml")
        group.add_argument("--videos", type=str | None, help="folder of finished videos to judge")
        group.add_argument(
            "--seeds", type=list[int] | int | None, help="a video of each prompt for each of them"
        )
        group.add_argument("--limit", type=int | None, help="how many videos of the prompt set")
        group.add_argument("--batch", type=int | None, help="videos made side by side")
        group.add_argument("--workers", type=int | None, help="processes that measure")
        group.add_argument(
            "--measures", type=list[str] | None, help="shapes, temporal, fidelity, lpips, clip"
        )
        super().add_default_arguments_to_parser(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        LightningCLI.parse_arguments(self, parser, args)
        config = self.config[NAME]
        check_seed(config.seed_everything)
        check_accelerator(config.trainer.accelerator)

    def before_instantiate_classes(self) -> None:
        config = self.config[NAME]
        for table, node in ((_MODEL, config.model), (_DATA, config.data)):
            for option, argument in table.items():
                if config[option] is not None:
                    _set(node, argument, _typed(option, config[option]), option)


def run(args: list[str]) -> None:
    """Judge the videos of a recipe, or those in a folder.

    Args:
        args: Command line without the program's name.

    Raises:
        UserError: For input that cannot work.
    """
    check_config_files(args)
    usage = "longlive evaluate --config configs/eval/NAME.yaml --output FOLDER [OPTIONS]"
    run_cli(EvaluateCLI, args, usage, trainer_class=EvaluationTrainer)


def _typed(option: str, value: Any) -> Any:
    if option in ("videos", "prompts"):
        return Path(value)
    return [value] if option == "seeds" and isinstance(value, int) else value


def _set(node: Namespace, name: str, value: Any, option: str) -> None:
    if name not in node.get("init_args", {}):
        raise UserError(f"--{option} does not fit: {node.class_path} takes no {name}")
    node.init_args[name] = value
