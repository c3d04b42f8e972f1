"""The table of a study: each variant's numbers with intervals, and what they cost.

Everything here follows from the study's description and its records, so a run that was interrupted
ends with the same table as one that was not. Times are not part of it.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longlive.errors import UserError
from longlive.evaluation.bootstrap import Estimate, estimate
from longlive.evaluation.measures import NUMBERS, Number
from longlive.evaluation.records import STUDY_FILE, Record, RecordStore
from longlive.video.atomic import write_bytes

TABLE_FILE = "table.json"
FORMAT = "longlive evaluation"


@dataclass(frozen=True, slots=True)
class StudyVariant:
    """A row as a result file describes it.

    Attributes:
        name: In words.
        folder: Name of its records.
        axes: Value of each axis.
        settings: Arguments of the model, defaults included; empty for finished videos.
        callbacks: Classes that changed the rollouts.
        note: What a reader must know.
    """

    name: str
    folder: str
    axes: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    callbacks: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Study:
    """What a run set out to do: ``study.json``.

    Attributes:
        kind: ``rollouts`` or ``videos``.
        variants: Rows, the reference first.
        expected: ``(folder, key, fingerprint)`` of every record.
        prompts: The file, and how many videos it describes.
        weights_kind: ``embedded``, ``synthetic``, ...; empty for finished videos.
        measures: Which were asked for.
        environment: Versions and device.
        not_judged: What was left out before anything was read: name, and why.
    """

    kind: str
    variants: tuple[StudyVariant, ...]
    expected: tuple[tuple[str, str, str], ...]
    prompts: str = ""
    weights_kind: str = ""
    measures: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    not_judged: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write ``study.json``.

        Raises:
            UserError: If it cannot be written.
        """
        content = {"format": FORMAT, "version": 1, **asdict(self)}
        text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
        write_bytes(folder / STUDY_FILE, f"{text}\n".encode())

    @classmethod
    def load(cls, folder: Path) -> "Study":
        """Read ``study.json``.

        Raises:
            UserError: If there is none, or it is broken or of something else.
        """
        path = folder / STUDY_FILE
        try:
            content = json.loads(path.read_bytes())
            if content.pop("format") != FORMAT or content.pop("version") != 1:
                raise UserError(f"{path} is of another version: evaluate again")
            content["variants"] = tuple(
                StudyVariant(**{**v, "callbacks": tuple(v["callbacks"])})
                for v in content["variants"]
            )
            content["expected"] = tuple(tuple(entry) for entry in content["expected"])
            content["measures"] = tuple(content["measures"])
            return cls(**content)
        except OSError as error:
            raise UserError(
                f"no results of an evaluation in {folder}: name a folder that longlive evaluate "
                "wrote"
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is broken ({error}): evaluate again") from error


@dataclass(frozen=True, slots=True)
class Row:
    """One variant.

    Attributes:
        name: In words.
        axes: Value of each axis.
        videos: How many were judged.
        missing: How many are not there yet.
        values: Number and its estimate, as far as there are any.
        differences: The same, paired with the reference: this variant less the reference.
        error_by_block: Latent error of each block against the reference, mean over videos.
        note: What a reader must know.
    """

    name: str
    axes: dict[str, str]
    videos: int
    missing: int
    values: dict[str, Estimate]
    differences: dict[str, Estimate]
    error_by_block: tuple[float, ...]
    note: str


@dataclass(frozen=True, slots=True)
class Table:
    """All variants.

    Attributes:
        rows: The reference first.
        left_out: ``(file or video, reason)`` of what was not judged.
        skipped: Measure and reason, with how many videos it concerns.
    """

    rows: tuple[Row, ...]
    left_out: tuple[tuple[str, str], ...]
    skipped: dict[str, int]

    @property
    def numbers(self) -> dict[str, Number]:
        """The numbers that any row has, in their order."""
        return {name: n for name, n in NUMBERS.items() if any(name in r.values for r in self.rows)}

    def save(self, folder: Path) -> Path:
        """Write ``table.json``.

        Raises:
            UserError: If it cannot be written.
        """
        path = folder / TABLE_FILE
        write_bytes(path, (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode())
        return path


def records_of(folder: Path, study: Study) -> dict[str, list[Record]]:
    """The records that a study expects and that are there, by variant folder."""
    store = RecordStore(folder)
    found: dict[str, list[Record]] = {variant.folder: [] for variant in study.variants}
    for variant, key, fingerprint in study.expected:
        if (record := store.read(variant, key, fingerprint)) is not None:
            found[variant].append(record)
    return found


def build_table(folder: Path, study: Study) -> Table:
    """Make the table of a folder of results from its records."""
    records = records_of(folder, study)
    expected = Counter(variant for variant, _, _ in study.expected)
    judged = {name: [r for r in some if not r.left_out] for name, some in records.items()}
    reference = judged[study.variants[0].folder] if len(study.variants) > 1 else []
    rows = tuple(
        Row(
            name=variant.name,
            axes=variant.axes,
            videos=len(judged[variant.folder]),
            missing=expected[variant.folder] - len(records[variant.folder]),
            values=_estimates(judged[variant.folder]),
            differences=_differences(judged[variant.folder], reference) if number else {},
            error_by_block=_by_block(judged[variant.folder]),
            note=variant.note,
        )
        for number, variant in enumerate(study.variants)
    )
    everything = [record for some in records.values() for record in some]
    left_out = [(r.video or f"{r.variant}/{r.key}", r.left_out) for r in everything if r.left_out]
    skipped = Counter(
        f"{measure}: {reason}"
        for record in everything
        for measure, reason in record.skipped.items()
    )
    return Table(
        rows, (*study.not_judged.items(), *sorted(left_out)), dict(sorted(skipped.items()))
    )


def _estimates(records: Sequence[Record]) -> dict[str, Estimate]:
    found = {}
    for name, number in NUMBERS.items():
        by_prompt = _by_prompt({(r.index, r.seed): r.values.get(name, []) for r in records})
        if (value := estimate(by_prompt, number.pool)) is not None:
            found[name] = value
    return found


def _differences(records: Sequence[Record], reference: Sequence[Record]) -> dict[str, Estimate]:
    """Means of the differences of videos with the same prompt and seed."""
    others = {(record.index, record.seed): record.values for record in reference}
    found = {}
    for name, number in NUMBERS.items():
        if number.pool != "mean":
            continue
        pairs = {
            (r.index, r.seed): [_mean(r.values[name]) - _mean(others[r.index, r.seed][name])]
            for r in records
            if name in r.values and name in others.get((r.index, r.seed), {})
        }
        if (value := estimate(_by_prompt(pairs))) is not None:
            found[name] = value
    return found


def _by_prompt(
    videos: Mapping[tuple[int, int], Sequence[float]],
) -> dict[int, list[Sequence[float]]]:
    groups: dict[int, list[Sequence[float]]] = {}
    for (index, _), values in sorted(videos.items()):
        groups.setdefault(index, []).append(values)
    return groups


def _by_block(records: Sequence[Record]) -> tuple[float, ...]:
    series = [r.series["latent_error_by_block"] for r in records if r.series]
    blocks = min((len(errors) for errors in series), default=0)
    return tuple(_mean([errors[block] for errors in series]) for block in range(blocks))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
