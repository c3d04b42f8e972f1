"""One JSON file for each video that was judged: what a run leaves behind, and starts again from.

A record appears whole or not at all, so a run that is killed loses at most the videos it was
working on. It carries a fingerprint of everything that decides its numbers; one that does not match
is made again.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longlive.errors import UserError
from longlive.video.atomic import write_bytes
from longlive.weights.embedded import embedded_folder

VERSION = 1
"""Of the numbers in a record; raised where a metric changes its meaning."""
STUDY_FILE = "study.json"
RECORDS = "records"
_HASHED_WHOLE_BYTES = 64 * 2**20
_HASHED_PART_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one video.

    Attributes:
        variant: Folder name of the variant that made it; ``videos`` for files that were given.
        key: Its name among the videos of the variant.
        fingerprint: Of all that decides the numbers.
        index: Place of its prompts in the prompt set.
        seed: Of its noise.
        timeline: ``(first frame, prompt)`` in order.
        frames: How many it has; 0 if it was left out.
        size: Rows and columns.
        video: The file, relative to the results, or as it was given; empty if none was kept.
        seconds: Wall-clock time the rollout took, for each of the videos made side by side.
        values: Numbers by name (:data:`longlive.evaluation.measures.NUMBERS`).
        series: Numbers block by block.
        skipped: Measure, and why it has no numbers.
        left_out: Why the video was not judged at all; empty if it was.
    """

    variant: str
    key: str
    fingerprint: str
    index: int
    seed: int
    timeline: tuple[tuple[int, str], ...]
    frames: int = 0
    size: tuple[int, int] = (0, 0)
    video: str = ""
    seconds: float | None = None
    values: dict[str, list[float]] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    left_out: str = ""


class RecordStore:
    """The records of a folder of results.

    Args:
        folder: Of the results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, variant: str, key: str) -> Path:
        """Where a record is, or would be."""
        return self.folder / RECORDS / variant / f"{key}.json"

    def read(self, variant: str, key: str, fingerprint: str) -> Record | None:
        """A record with this fingerprint; None if there is none, or a broken or another one."""
        try:
            content = json.loads(self.path(variant, key).read_bytes())
            if content.pop("version") != VERSION or content["fingerprint"] != fingerprint:
                return None
            content["timeline"] = tuple((int(f), str(p)) for f, p in content["timeline"])
            content["size"] = tuple(content["size"])
            return Record(**content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def write(self, record: Record) -> None:
        """Write a record: all of it, or nothing.

        Raises:
            UserError: If the folder cannot be written.
        """
        content = {"version": VERSION, **asdict(record)}
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        write_bytes(self.path(record.variant, record.key), f"{text}\n".encode())


def fingerprint_of(*parts: Any) -> str:
    """Hash of plain data, the same for the same data."""
    text = json.dumps([VERSION, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def files_fingerprint(path: Path | str | None) -> str:
    """Hash of a file, or of the files of a folder; ``embedded`` is the package's own.

    Of files above 64 MiB the size, the first and the last MiB are hashed.
    """
    if path is None or path == "synthetic":
        return str(path)
    root = embedded_folder() if path == "embedded" else Path(path)
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(root).as_posix() if file != root else file.name
        digest.update(f"{name}\0".encode())
        digest.update(_content_of(file))
    return digest.hexdigest()


def _content_of(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size <= _HASHED_WHOLE_BYTES:
            return hashlib.sha256(file.read_bytes()).digest()
        with file.open("rb") as opened:
            first = opened.read(_HASHED_PART_BYTES)
            opened.seek(-_HASHED_PART_BYTES, 2)
            return hashlib.sha256(str(size).encode() + first + opened.read()).digest()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot read {file}: {reason}; check the path") from error
