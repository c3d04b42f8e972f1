"""benchmark: every latency of a recipe, measured into one folder."""

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from longlive.benchmark.config import BenchmarkConfig
from longlive.benchmark.run import run_benchmark, summary, table
from longlive.benchmark.session import Origin
from longlive.cli.config_files import check_config_files, named_config_files
from longlive.cli.lightning_commands import (
    LongLiveCLI,
    check_accelerator,
    check_callbacks,
    check_seed,
    run_cli,
)
from longlive.cli.recipe_option import HELP as RECIPE_HELP
from longlive.cli.recipe_option import recipes_named, with_recipes_spelled_out
from longlive.errors import UserError
from longlive.modules.longlive import LongLive

NAME = "benchmark"
COMPARE = "compare"
REPORT = "report"

_USAGE = """longlive benchmark --config FILE [--config FILE ...] [OPTIONS]
       longlive benchmark compare FOLDER FOLDER
       longlive benchmark report FOLDER"""


@dataclass(frozen=True, slots=True)
class Asked:
    """A command line, understood; nothing has been measured and no weight been read.

    Attributes:
        model: What makes the videos.
        callbacks: As configured.
        device: Where.
        config: What to run.
        output: Folder for the results.
        overwrite: Whether it may have files.
        origin: Where the recipe came from.
    """

    model: LongLive
    callbacks: list[pl.Callback]
    device: torch.device
    config: BenchmarkConfig
    output: Path
    overwrite: bool
    origin: Origin


class BenchmarkTrainer(pl.Trainer):
    """A trainer that only notes what it is asked to measure."""

    asked: Asked
    origin = Origin()

    def ask(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None = None,
        benchmark: BenchmarkConfig = BenchmarkConfig(),  # noqa: B008 - the parser wants a default.
        output: Path = Path("results"),
        overwrite: bool = False,
    ) -> None:
        """Measure every latency of a recipe.

        Args:
            model: What makes the videos.
            datamodule: Not used: the prompts are those of the benchmark.
            benchmark: Lengths, repeats, prompts and seeds.
            output: Folder for the results; it must be empty.
            overwrite: Whether it may have files.
        """
        if not isinstance(model, LongLive):
            raise UserError(f"a benchmark measures a LongLive model, not {type(model).__name__}")
        self.asked = Asked(
            model=model,
            callbacks=self.callbacks,  # type: ignore[attr-defined]
            device=self.strategy.root_device,
            config=benchmark,
            output=output,
            overwrite=overwrite,
            origin=self.origin,
        )

    # The parser groups arguments by the name of the function, and of the argument "benchmark".
    benchmark = ask


class BenchmarkCLI(LongLiveCLI):
    """``longlive benchmark``: configurations as ``longlive predict`` takes them, and its own."""

    command = ""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {NAME: {"model", "datamodule"}}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        group = parser.add_argument_group("short-cuts")
        group.add_argument(
            "--base",
            type=list[str] | None,
            help="configurations to begin with where none that is given names a model",
        )
        group.add_argument("--recipe", type=str | None, metavar="NAME", help=RECIPE_HELP)
        # What configurations for predict say, and a benchmark has no use for.
        for name in ("return_predictions", "png", "latents"):
            group.add_argument(f"--{name}", type=bool | None, help="ignored")
        super().add_default_arguments_to_parser(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        LightningCLI.parse_arguments(self, parser, args)
        config = self.config[NAME]
        check_seed(config.seed_everything)
        check_accelerator(config.trainer.accelerator)

    def before_instantiate_classes(self) -> None:
        config = self.config[NAME]
        check_callbacks(config.trainer.callbacks)
        arguments = config.data.get("init_args", {})
        if arguments.get("prompt") is None and arguments.get("prompts_file") is None:
            arguments["prompt"] = list(config.benchmark.prompts)

    def before_benchmark(self) -> None:
        """Tell the trainer where the recipe came from."""
        config = self.config[NAME]
        settings = yaml.safe_load(self._parser(NAME).dump(config, skip_none=False))
        files = [str(path) for path in config.pop("config", None) or ()]
        settings.pop("config", None)
        trainer = cast(BenchmarkTrainer, self.trainer)
        named = recipes_named(shlex.split(self.command))
        recipes = tuple((name, tuple(overlays)) for name, overlays in named)
        trainer.origin = Origin(self.command, tuple(files), settings, recipes)


def run(args: list[str]) -> None:
    """Measure a recipe, or compare two results.

    Args:
        args: Command line without the program's name.

    Raises:
        UserError: For input that cannot work.
    """
    if args[1:2] == [COMPARE]:
        from longlive.cli.benchmark_compare import run as run_compare

        run_compare(args)
        return
    if args[1:2] == [REPORT]:
        from longlive.cli.benchmark_report import run as run_report

        run_report(args)
        return
    asked = read_command(args)
    results = run_benchmark(
        asked.model,
        asked.callbacks,
        asked.config,
        device=asked.device,
        output=asked.output,
        overwrite=asked.overwrite,
        origin=asked.origin,
    )
    for line in table(results):
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"{json.dumps(summary(results, asked.output))}\n")


def read_command(args: list[str]) -> Asked:
    """Understand a command line: read its configurations, and make the model without weights.

    Args:
        args: Command line without the program's name.

    Raises:
        UserError: For input that cannot work.
    """
    spelled_out = with_recipes_spelled_out(args)
    check_config_files(spelled_out)
    begun = [args[0], *_base_of(spelled_out), *spelled_out[1:]]
    check_config_files(begun)
    # Known before the parser runs the command.
    BenchmarkCLI.command = shlex.join(["longlive", *args])
    cli = run_cli(BenchmarkCLI, begun, _USAGE, trainer_class=BenchmarkTrainer)
    return cast(BenchmarkTrainer, cli.trainer).asked


def _base_of(args: list[str]) -> Iterator[str]:
    """Configurations to put first: those that a preset names, if none that is given has a model."""
    contents = {Path(name): _content(name) for name in named_config_files(args)}
    if any("class_path" in (content.get("model") or {}) for content in contents.values()):
        return
    for path, content in reversed(contents.items()):
        if content.get("base"):
            yield from (f"--config={path.parent / name}" for name in content["base"])
            return


def _content(name: str) -> dict[str, Any]:
    text = name if name.lstrip().startswith("{") else Path(name).read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    return content if isinstance(content, dict) else {}
