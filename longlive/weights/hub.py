"""Fetch published weights from the Hugging Face hub, and check that they arrived whole.

The hub's client brings the transfer: a cut connection is picked up where it broke, files that are
in its cache (``HF_HOME``) are copied, and its token, endpoint and offline settings hold. Here is
what it lacks: a question that fails at once when there is no network, the check of every byte
against the hub's own sums, and messages of one line.

A program that is stopped keeps the files it has finished and starts the unfinished one again.
"""

import fnmatch
import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from longlive.errors import UserError
from longlive.weights.hub_errors import Errand, explain, is_unreachable
from longlive.weights.layouts import format_size

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 10.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """Some files of one repository, and the folder they go to.

    Attributes:
        repo: Owner and name.
        folder: Below the models folder.
        patterns: Shell patterns of the wanted files.
    """

    repo: str
    folder: str
    patterns: tuple[str, ...]

    def wants(self, file: str) -> bool:
        return any(fnmatch.fnmatchcase(file, pattern) for pattern in self.patterns)


_TRANSFORMER = ("config.json", "diffusion_pytorch_model*")
_AROUND_IT = ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/*")
_WAN_REPO = "Wan-AI/Wan2.1-T2V-1.3B"
_WAN_FOLDER = "Wan2.1-T2V-1.3B"

DOWNLOADS: dict[str, tuple[Source, ...]] = {
    "longlive-1.3b": (
        Source(
            "Efficient-Large-Model/LongLive-1.3B",
            "LongLive-1.3B",
            ("models/longlive_base.pt", "models/lora.pt"),
        ),
        Source(_WAN_REPO, _WAN_FOLDER, ("config.json", *_AROUND_IT)),
    ),
    "wan-1.3b": (Source(_WAN_REPO, _WAN_FOLDER, (*_TRANSFORMER, *_AROUND_IT)),),
    "wan-14b": (Source("Wan-AI/Wan2.1-T2V-14B", "Wan2.1-T2V-14B", _TRANSFORMER),),
}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What the hub says about a file.

    Attributes:
        name: Path in the repository.
        size_bytes: Size of the content; None if the hub does not tell.
        sha256: Of the content of a large file.
        git_sha1: Of a small file, as git names its blob.
    """

    name: str
    size_bytes: int | None
    sha256: str | None
    git_sha1: str | None

    def fault(self, path: Path) -> str | None:
        """Return what is wrong with the copy at ``path``, None if it is whole."""
        if not path.is_file():
            return "absent"
        size = path.stat().st_size
        if self.size_bytes is not None and size != self.size_bytes:
            return f"{size} bytes instead of {self.size_bytes}"
        if self.sha256 and (found := _digest(path, hashlib.sha256())) != self.sha256:
            return f"SHA-256 {found[:12]} instead of {self.sha256[:12]}"
        if self.git_sha1 and not self.sha256:
            blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            if (found := _digest(path, blob)) != self.git_sha1:
                return f"git hash {found[:12]} instead of {self.git_sha1[:12]}"
        return None


def download(
    name: str, folder: str | Path, endpoint: str | None = None, revision: str | None = None
) -> list[Path]:
    """Fetch everything a model needs and that is not there yet, and check all of it.

    Args:
        name: A key of ``DOWNLOADS``.
        folder: Models folder; each repository gets a folder in it.
        endpoint: Address of the hub or of a mirror; the client's setting by default.
        revision: Branch, tag or commit of the first repository; ``main`` by default.

    Returns:
        The files, in the order of the repositories.

    Raises:
        UserError: If the name is unknown, the hub cannot be reached and files are missing, the
            disk is too small, or a file arrives damaged twice.
    """
    if name not in DOWNLOADS:
        raise UserError(f"nothing to download is called {name!r}; choose from {_names()}")
    folder = Path(folder)
    paths: list[Path] = []
    for index, source in enumerate(DOWNLOADS[name]):
        hub = _Hub(source, folder / source.folder, endpoint, None if index else revision)
        paths += hub.fetch_all()
    return paths


def _names() -> str:
    return ", ".join(DOWNLOADS)


class _Hub:
    """One repository at one revision, mirrored into one folder."""

    def __init__(
        self, source: Source, folder: Path, endpoint: str | None, revision: str | None
    ) -> None:
        self.source = source
        self.folder = folder
        self.endpoint = endpoint
        self.revision = revision or "main"

    def fetch_all(self) -> list[Path]:
        try:
            commit, files = self._list()
        except Exception as error:  # Whatever the client's HTTP library of the day raises.
            return self._do_without(error)
        faulty = [file for file in files if file.fault(self.folder / file.name)]
        self._check_space(faulty)
        for file in faulty:
            self._fetch(file, commit)
        return [self.folder / file.name for file in files]

    def _list(self) -> tuple[str, list[RemoteFile]]:
        from huggingface_hub import HfApi

        # Asked first because it is the one call that does not wait and try again for half a minute.
        info = HfApi(endpoint=self.endpoint).model_info(
            self.source.repo,
            revision=self.revision,
            files_metadata=True,
            timeout=ANSWER_TIMEOUT_S,
        )
        files = [
            RemoteFile(
                name=sibling.rfilename,
                size_bytes=sibling.lfs.size if sibling.lfs else sibling.size,
                sha256=sibling.lfs.sha256 if sibling.lfs else None,
                git_sha1=sibling.blob_id,
            )
            for sibling in info.siblings or ()
            if self.source.wants(sibling.rfilename)
        ]
        absent = [p for p in self.source.patterns if not fnmatch.filter([f.name for f in files], p)]
        if absent or info.sha is None:
            raise UserError(
                f"{self.source.repo} at {self.revision} has no {', '.join(absent)}; "
                "choose another revision"
            )
        return info.sha, files

    def _fetch(self, file: RemoteFile, commit: str) -> None:
        from huggingface_hub import hf_hub_download

        path = self.folder / file.name
        log.info("fetching %s, %s", path, format_size(file.size_bytes or 0))
        for attempt in range(2):
            try:
                hf_hub_download(
                    self.source.repo,
                    file.name,
                    revision=commit,
                    local_dir=self.folder,
                    endpoint=self.endpoint,
                    # The client trusts its notes about a file that is there, and its cache.
                    force_download=attempt > 0 or path.exists(),
                )
            except Exception as error:  # See fetch_all.
                raise UserError(self._reason(error, f"fetching {file.name}")) from error
            fault = file.fault(path)
            if fault is None:
                return
            log.warning("%s arrived damaged: %s", path, fault)
            path.unlink(missing_ok=True)
        raise UserError(
            f"{file.name} of {self.source.repo} arrived damaged twice ({fault}); "
            "try again later, or from another network or mirror"
        )

    def _check_space(self, files: list[RemoteFile]) -> None:
        needed = sum(file.size_bytes or 0 for file in files)
        place = next(
            p for p in (self.folder.absolute(), *self.folder.absolute().parents) if p.exists()
        )
        free = shutil.disk_usage(place).free
        if needed > free:
            raise UserError(
                f"{self.source.repo} needs {format_size(needed)} in {self.folder} and "
                f"{format_size(free)} are free; make room, or choose another folder"
            )

    def _do_without(self, error: Exception) -> list[Path]:
        """Make do with the files that are there, if the hub is out of reach and none is missing."""
        if isinstance(error, UserError):
            raise error
        found = {pattern: sorted(self.folder.glob(pattern)) for pattern in self.source.patterns}
        missing = [pattern for pattern, paths in found.items() if not paths]
        reason = self._reason(error, "asking for its files")
        if missing or not is_unreachable(error):
            lack = f"; missing in {self.folder}: {', '.join(missing)}" if missing else ""
            raise UserError(reason + lack) from error
        log.warning("%s; the files in %s are used unchecked", reason, self.folder)
        return [path for paths in found.values() for path in paths]

    def _reason(self, error: Exception, action: str) -> str:
        errand = Errand(self.source.repo, self.revision, self.endpoint, str(self.folder), action)
        return explain(error, errand)


def _digest(path: Path, digest: "hashlib._Hash") -> str:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
