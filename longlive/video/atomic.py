"""Files that appear under their name only when they are whole.

Everything is first written to a hidden neighbor and then renamed, so a reader never meets half a
file, and a run that dies leaves the previous file alone.
"""

import contextlib
import errno
from pathlib import Path

from longlive.errors import UserError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def part_path(path: Path) -> Path:
    """Where ``path`` is written until it is finished: ``.clip.part.mp4`` beside ``clip.mp4``."""
    return path.with_name(f".{path.stem}.part{path.suffix}")


def make_parent(path: Path) -> None:
    """Make the folder that ``path`` goes into.

    Raises:
        UserError: If the folder cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: all of it, or nothing.

    Raises:
        UserError: If the disk is full or the folder is not writable; ``path`` is as it was.
    """
    make_parent(path)
    part = part_path(path)
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError, kept: str = "") -> UserError:
    """Turn an error of the file system into the line that a user reads.

    Args:
        path: The file that was wanted.
        error: What the system said.
        kept: What is on the disk nevertheless, as a clause: ``"the first 37 frames are kept"``.
    """
    fix = "free some space or choose" if error.errno in _NO_SPACE else "choose"
    reason = (error.strerror or str(error)).lower()
    kept = f", {kept}" if kept else ""
    return UserError(f"cannot write {path}: {reason}{kept}; {fix} another output folder")
