"""What an ablation found: one row per variant, every repeat kept."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longlive.benchmark.decoding import decode
from longlive.benchmark.provenance import Environment
from longlive.errors import UserError
from longlive.video.atomic import write_bytes

FILE_NAME = "ablation.json"
FORMAT = "longlive ablation"
VERSION = 1


@dataclass(frozen=True, slots=True)
class AblationRow:
    """One variant.

    Attributes:
        name: As in the matrix.
        overlays: Configuration files on top of the recipe, in order.
        settings: Arguments of the model that it was run with.
        callbacks: Classes of the optimizations that ran.
        reason: Why it was not measured, in one line; empty if it was.
        samples: For each figure (names of ``definitions.DEFINITIONS``) one value per repeat, in
            the order of the repeats; shorter or absent where something could not be measured.
        block_periods_ms: Steady block periods of every repeat.
    """

    name: str
    overlays: tuple[str, ...]
    settings: dict[str, Any]
    callbacks: tuple[str, ...]
    reason: str
    samples: dict[str, tuple[float, ...]]
    block_periods_ms: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class AblationResults:
    """A whole ablation: all rows on one machine in one go.

    Attributes:
        format: ``FORMAT``.
        version: ``VERSION``.
        complete: False if it was interrupted; what it had is here.
        title: Of the matrix.
        recipe: Configuration files that every row is based on.
        matrix: File of the matrix.
        baseline: Name of the row that the others are compared with.
        kind: ``one by one`` (each row alone differs from the baseline), or ``cumulative`` (each row
            adds to the one before it).
        figures: Names of the figures, in the order of the columns.
        rows: In the order of the matrix.
        order: Names of the rows in the order in which they ran, one tuple a repeat,
            or a row's turn.
        repeats: Asked for.
        weights_kind: What made the videos: ``synthetic``, ``embedded``, ...
        environment: Where.
        commit: As in ``Results``.
        command: Command line.
        started_at: ISO 8601, UTC.
        interleaved: Whether every repeat ran all rows; else each row had all its repeats at once.
    """

    format: str
    version: int
    complete: bool
    title: str
    recipe: tuple[str, ...]
    matrix: str
    baseline: str
    kind: str
    figures: tuple[str, ...]
    rows: tuple[AblationRow, ...]
    order: tuple[tuple[str, ...], ...]
    repeats: int
    weights_kind: str
    environment: Environment
    commit: str | None
    command: str
    started_at: str
    interleaved: bool = True

    def save(self, folder: Path) -> Path:
        """Write ``ablation.json`` into a folder, all of it or nothing, and return its path.

        Raises:
            UserError: If it cannot be written.
        """
        path = folder / FILE_NAME
        write_bytes(path, (json.dumps(asdict(self), indent=1, allow_nan=False) + "\n").encode())
        return path

    @classmethod
    def load(cls, folder: Path) -> "AblationResults":
        """Read the ablation in a folder.

        Raises:
            UserError: If there is none, or the file is broken or of something else.
        """
        path = folder if folder.suffix == ".json" else folder / FILE_NAME
        try:
            content = json.loads(path.read_bytes())
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise ValueError("it holds something else")
            if content.get("version") != VERSION:
                raise ValueError(f"its format version is {content.get('version')}, not {VERSION}")
            return decode(cls, content)
        except (OSError, ValueError) as error:
            problem = " ".join(str(error).split())
            raise UserError(
                f"cannot read an ablation from {path}: {problem}; run tools/ablate.py again"
            ) from error
