"""predict, fit, validate and test: LightningCLI with our defaults."""

import sys
import warnings
from typing import Any, NoReturn

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

HINT = "see longlive {subcommand} --help"


class LongLiveParser(LightningArgumentParser):
    """Says what is wrong in one line, without a page of usage before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        reason = " ".join(str(message).split())
        sys.stderr.write(f"longlive: error: {reason}\n")
        sys.exit(2)


class LongLiveCLI(LightningCLI):
    """The Lightning command line of this project."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        kept = ("fit", "validate", "test", "predict")
        return {name: LightningCLI.subcommands()[name] for name in kept}


def run(args: list[str]) -> None:
    """Run one of the Lightning subcommands.

    Args:
        args: Command line without the program's name.
    """
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter.*")
    options: dict[str, Any] = {"default_env": False, "prog": "longlive"}
    LongLiveCLI(
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
