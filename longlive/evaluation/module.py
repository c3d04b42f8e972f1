"""What all evaluations share: a module whose ``test`` judges videos and ends with a table."""

import logging
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from longlive import __version__
from longlive.errors import UserError
from longlive.evaluation.measures import MEASURES, MeasureName
from longlive.evaluation.measuring import MeasureOptions
from longlive.evaluation.output import Measuring
from longlive.evaluation.records import RecordStore, files_fingerprint
from longlive.evaluation.table import Study, Table, build_table
from longlive.evaluation.text_table import markdown_of, summary_of
from longlive.video.atomic import write_bytes

log = logging.getLogger(__name__)

TABLE_TEXT = "table.md"


class Evaluation(pl.LightningModule):
    """Judges videos task by task; a record of each lets an interrupted run go on.

    Args:
        output: Folder for the results. Records that fit are kept, others are made again.
        measures: What to measure: ``shapes``, ``temporal``, ``fidelity``, ``lpips``, ``clip``.
        lpips_weights: AlexNet of torchvision, for ``lpips``.
        clip_weights: Folder of CLIP weights, for ``clip``.
        block_latent_frames: Latent frames of a block, for seams.
        workers: Processes that measure; 0 measures between the rollouts.
    """

    def __init__(
        self,
        output: str | Path = "results",
        measures: list[MeasureName] | None = None,
        lpips_weights: str | None = None,
        clip_weights: str | None = None,
        block_latent_frames: int = 3,
        workers: int = 0,
    ) -> None:
        super().__init__()
        names: list[MeasureName] = ["shapes", "temporal"] if measures is None else list(measures)
        unknown = [name for name in names if name not in MEASURES]
        if unknown or not names:
            raise UserError(f"measures must be some of {', '.join(MEASURES)}, got {names}")
        if workers < 0:
            raise UserError(f"workers must not be negative, got {workers}")
        self.output = Path(output)
        self.store = RecordStore(self.output)
        self.options = MeasureOptions(
            tuple(dict.fromkeys(names)), lpips_weights, clip_weights, block_latent_frames
        )
        self.measuring = Measuring(self.store, self.options, workers)
        self.study: Study | None = None

    def describe(self) -> Study:
        """What the run will do; called once the data is read."""
        raise NotImplementedError

    def on_test_start(self) -> None:
        self.study = self.describe()
        if self.trainer.is_global_zero:
            self.study.save(self.output)
            total = len(self.study.expected)
            there = sum(self.store.read(*entry) is not None for entry in self.study.expected)
            log.info("%d of %d videos are judged already", there, total)

    def on_test_end(self) -> None:
        self.measuring.finish()
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero and self.study is not None:
            self.report(build_table(self.output, self.study))

    def on_exception(self) -> None:
        """Stop the processes; records that are there stay."""
        self.measuring.close()

    def teardown(self, stage: str) -> None:
        self.measuring.close()

    def report(self, table: Table) -> None:
        """Write the table, and print a short form of it."""
        assert self.study is not None
        table.save(self.output)
        text = markdown_of(table)
        write_bytes(self.output / TABLE_TEXT, text.encode())
        sys.stdout.write(summary_of(table))
        log.info("table: %s", self.output / TABLE_TEXT)

    def measures_fingerprint(self) -> list[Any]:
        """What of the measures decides the numbers."""
        weights = {
            "lpips": self.options.lpips_weights,
            "clip": self.options.clip_weights,
        }
        used = {
            name: files_fingerprint(path) if path and Path(path).exists() else path
            for name, path in weights.items()
            if name in self.options.names
        }
        return [sorted(self.options.names), used, self.options.block_latent_frames]

    def environment(self) -> dict[str, str]:
        """Versions and device, for the report."""
        device = self.trainer.strategy.root_device
        is_gpu = device.type == "cuda"
        return {
            "longlive": __version__,
            "torch": str(torch.__version__),
            "device": torch.cuda.get_device_name(device) if is_gpu else device.type,
            "processes": str(self.trainer.world_size),
        }

    def configure_optimizers(self) -> None:
        """Nothing is trained."""
