"""What a profiler found out, as numbers, as a text and as files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longlive.metrics.region_report import render
from longlive.metrics.region_statistics import LayerBreakdown, layer_breakdowns, statistics
from longlive.metrics.regions import Sample
from longlive.metrics.trace import chrome_trace, write_document
from longlive.schedule import timestep_of

LAYER = "layer"

_STEP = "step "
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class RolloutProfile:
    """Samples of some rollouts, and what is to be known about them.

    Attributes:
        samples: Every run of every region.
        device: What they ran on.
        clock: What timed them.
        memory: What the bytes are; None if they were not read.
        rollouts: How many.
        has_device_clock: Whether the device has a timeline apart from the host's.
        notes: What the numbers do not show, a line each.
    """

    samples: Sequence[Sample] = ()
    device: str = "no device"
    clock: str = "no clock"
    memory: str | None = None
    rollouts: int = 0
    has_device_clock: bool = False
    notes: list[str] = field(default_factory=list)

    def summary(self, from_block: int = 0) -> dict[str, Any]:
        """Statistics of every region, ready for JSON.

        Args:
            from_block: First block that counts; 3 for the steady state. What is outside of blocks
                then does not count.

        Returns:
            The attributes but for the samples; ``regions``, a :class:`RegionStats` each; and
            ``layers``, a :class:`LayerBreakdown` each.
        """
        samples = self._from(from_block)
        return {
            "version": _FORMAT_VERSION,
            "device": self.device,
            "clock": self.clock,
            "memory": self.memory,
            "rollouts": self.rollouts,
            "from_block": from_block,
            "regions": [asdict(row) for row in statistics(samples)],
            "layers": [asdict(breakdown) for breakdown in _breakdowns(samples)],
            "notes": self.notes,
        }

    def report(self, from_block: int = 0) -> str:
        """The same as tables; what is inside the layers has one of its own."""
        samples = self._from(from_block)
        outer = [row for row in statistics(samples) if LAYER not in row.path]
        since = f", blocks from {from_block} on" if from_block else ""
        title = f"{self.device}, {self.clock}, {self.rollouts} rollout(s){since}"
        return render(title, outer, _breakdowns(samples), self.notes)

    def write_json(self, path: str | Path) -> None:
        """Write the summary and every sample.

        Raises:
            UserError: If the file cannot be written.
        """
        samples = [asdict(sample) for sample in self.samples]
        write_document(Path(path), {**self.summary(), "samples": samples})

    def write_trace(self, path: str | Path) -> None:
        """Write a trace for https://ui.perfetto.dev.

        Raises:
            UserError: If the file cannot be written.
        """
        process = f"longlive on {self.device}"
        trace = chrome_trace(self.samples, process=process, has_device_clock=self.has_device_clock)
        write_document(Path(path), trace)

    def _from(self, block: int) -> list[Sample]:
        if not block:
            return list(self.samples)
        return [s for s in self.samples if s.block is not None and s.block >= block]


def step_name(sigma: float) -> str:
    """Name of the region of a denoising step, by the network's timestep: ``step 937.5``."""
    return f"{_STEP}{timestep_of(sigma):g}"


def _breakdowns(samples: Sequence[Sample]) -> list[LayerBreakdown]:
    def kind_of(region: str) -> str:
        return "denoising step" if region.startswith(_STEP) else region

    return layer_breakdowns(samples, LAYER, kind_of)
