"""What a benchmark measured, as one file: ``results.json``.

Every sample is kept, not only what was made of them. The file is one JSON object with the fields of
:class:`Results`; records inside it have the fields of the classes below. Units are in the names:
``_ms`` are milliseconds, ``_s`` seconds, ``_bytes`` bytes; shares are fractions of 1.

Times and blocks are explained in :mod:`longlive.benchmark.samples`.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longlive.benchmark.decoding import decode
from longlive.benchmark.provenance import Environment, Recipe, StartUp
from longlive.benchmark.samples import RolloutSample
from longlive.errors import UserError
from longlive.video.atomic import write_bytes

FILE_NAME = "results.json"
FORMAT = "longlive benchmark"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Distribution:
    """Statistics of samples, in the unit of the figure; percentiles are interpolated linearly."""

    count: int
    mean: float
    std: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its definition.

    Attributes:
        value: The number; None if it could not be measured.
        unit: ``ms``, ``fps``, ``bytes``, ``s``, ``count`` or ``ratio``.
        definition: Name in ``longlive.benchmark.definitions.DEFINITIONS``.
        distribution: Of the samples behind it; ``value`` is then its ``p50`` unless the
            definition says otherwise.
        iterations: The same figure of each iteration alone, for its spread from run to run; empty
            if it is none of single iterations.
        components: For totals: what they consist of, in the unit of the figure. They add up to the
            mean of the samples (``distribution.mean``).
        reason: Why there is no value.
    """

    value: float | None
    unit: str
    definition: str
    distribution: Distribution | None = None
    iterations: tuple[float, ...] = ()
    components: dict[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RegionRow:
    """One region of the profiled rollout, steady blocks only where it lies inside blocks.

    Attributes:
        path: Its name, after those of the regions round it, as in ``docs/profiler.md``.
        count: Runs.
        total_ms: Their sum.
        mean_ms: Mean; the percentiles likewise.
        p50_ms: Median.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        max_ms: The longest.
        own_ms: The part of ``total_ms`` that no region inside it covers.
        share_of_parent: ``total_ms`` over that of the region round it; None for an outermost one.
        peak_bytes: Highest memory in use while it ran; None if memory is not known.
        grown_bytes: What it left in use, summed over its runs; likewise.
    """

    path: tuple[str, ...]
    count: int
    total_ms: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    own_ms: float
    share_of_parent: float | None
    peak_bytes: int | None
    grown_bytes: int | None


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One part of the transformer's layers, in a kind of pass.

    Attributes:
        pass_kind: ``denoising step``, ``context update`` or ``recache``.
        part: ``QKV projection``, ``attention``, ``FFN``, ...
        passes: Passes that were timed.
        layers_ms: Mean time per pass in each layer, first to last; their sum is that of the pass.
    """

    pass_kind: str
    part: str
    passes: int
    layers_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Where the time goes, from rollouts of their own: instruments cost the host time.

    Attributes:
        blocks: Blocks of each of the two rollouts.
        regions: From a rollout with the profiler: steady blocks, and what is outside of blocks.
        layers: From another one with the detailed profiler; empty where layers cannot be timed.
        notes: What the numbers do not show, a line each.
        layers_without: Callbacks of the recipe that the detailed rollout left out, because layers
            cannot be timed in what they compile or capture.
    """

    blocks: int
    regions: tuple[RegionRow, ...]
    layers: tuple[LayerRow, ...]
    notes: tuple[str, ...]
    layers_without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkRow:
    """One kind of work in one piece of a rollout.

    Attributes:
        piece: ``step, steady``, ``context update, steady``, ``vae decode, later blocks``,
            ``recache`` or ``text encoder``: pieces of ``longlive analyze``.
        work: Kind of work, in words; ``all`` for the piece as a whole.
        unit: Which rate bounds it: ``gemm``, ``attention``, ``conv``; empty for ``all``.
        flops: FLOPs of one run of the piece.
        moved_bytes: Operands and results, each once.
        floor_ms: What it takes at best at the ceilings; None without ceilings.
        measured_ms: What it took: the median run of the piece, or the sum over the layers of a part
            in the detailed rollout; None where it cannot be told apart.
    """

    piece: str
    work: str
    unit: str
    flops: int
    moved_bytes: int
    floor_ms: float | None
    measured_ms: float | None


@dataclass(frozen=True, slots=True)
class Results:
    """A whole benchmark.

    Attributes:
        format: ``FORMAT``.
        version: ``VERSION``; a file of another version is refused.
        complete: False if the benchmark was interrupted or failed; what it had is here.
        ended: In words: ``complete``, or what ended it before.
        started_at: ISO 8601, UTC.
        elapsed_s: How long all of it took.
        commit: Of the checkout it ran from, with ``-dirty`` appended where it was changed; None
            outside of one.
        benchmark: The ``BenchmarkConfig`` as a dictionary: lengths, iterations, prompts, seeds.
        recipe: What was measured.
        environment: Where.
        start_up: Loading and warming up.
        rollouts: Every rollout, in the order in which they ran.
        figures: By name, see ``longlive.benchmark.definitions``.
        breakdown: From rollouts with instruments; None if it did not come to them.
        work: Work and floors, by piece and kind; empty for sizes that the cost model does not know.
        ceilings: Rates that the floors rest on (``longlive.metrics.ceilings``), or None.
        notes: What a reader should know, a line each.
    """

    format: str
    version: int
    complete: bool
    ended: str
    started_at: str
    elapsed_s: float
    commit: str | None
    benchmark: dict[str, Any]
    recipe: Recipe
    environment: Environment
    start_up: StartUp
    rollouts: tuple[RolloutSample, ...]
    figures: dict[str, Figure]
    breakdown: Breakdown | None
    work: tuple[WorkRow, ...]
    ceilings: dict[str, Any] | None
    notes: tuple[str, ...]

    def save(self, folder: Path) -> Path:
        """Write ``results.json`` into a folder, all of it or nothing, and return its path.

        Raises:
            UserError: If it cannot be written.
        """
        path = folder / FILE_NAME
        write_bytes(path, (json.dumps(asdict(self), indent=1, allow_nan=False) + "\n").encode())
        return path

    @classmethod
    def load(cls, folder: Path) -> "Results":
        """Read the results in a folder; the file itself may be named, too.

        Raises:
            UserError: If there are none, or the file is broken or of something else.
        """
        path = folder if folder.suffix == ".json" else folder / FILE_NAME
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(
                f"no results of a benchmark in {folder} ({path.name}: {reason}): name a folder "
                "that longlive benchmark wrote"
            ) from error
        except ValueError as error:
            raise UserError(f"{path} is broken (no JSON): measure again") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{path} is no result of a benchmark: name a folder that has one")
        if content.get("version") != VERSION:
            raise UserError(
                f"{path} has format version {content.get('version')}, not {VERSION}: measure again "
                "with this version of longlive"
            )
        try:
            return decode(cls, content)
        except ValueError as error:
            raise UserError(f"{path} is broken ({error}): measure again") from error
