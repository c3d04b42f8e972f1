"""A folder of finished videos, and which prompts each of them was made for."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from longlive.data.prompt_files import PromptEntry, read_prompt_file
from longlive.errors import UserError
from longlive.evaluation.prompts import Tasks
from longlive.geometry import frames_of
from longlive.video.read import frame_size
from longlive.video.sidecar import read_sidecar

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi")
_NUMBER = re.compile(r"(\d{4,})(?:-|$)")
_SEED = re.compile(r"-s(\d+)$")
_SAMPLE = re.compile(r"-\d+$")


@dataclass(frozen=True, slots=True)
class GivenVideo:
    """One file to judge.

    Attributes:
        path: Where it is.
        index: Place of its prompts in the prompt file; among the videos where there is none.
        seed: As its name or record says; 0 if neither does.
        prompts: In order.
        switch_latent_frames: Where each prompt after the first begins, in latent frames; None for
            equal shares of the video.
    """

    path: Path
    index: int
    seed: int
    prompts: tuple[str, ...]
    switch_latent_frames: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Gathered:
    """What is in a folder.

    Attributes:
        videos: Those that can be judged.
        left_out: Others, and prompts without a video: name, and why.
    """

    videos: tuple[GivenVideo, ...]
    left_out: dict[str, str]


def gather(folder: Path, prompts_file: Path | None) -> Gathered:
    """Match the videos of a folder with prompts.

    With a prompt file a video belongs to the line whose prompt it is named after
    (``PROMPT-3.mp4``, VBench's way), or whose number its name begins with (``0007-...``, counted
    from 0, as ``longlive predict`` names files). Without one, the JSON beside a video says what it
    shows. What has no prompt, cannot be opened, or has another size than most is left out.

    Raises:
        UserError: If there is no folder, or no video in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name one with finished videos")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    paths = [path for path in paths if not path.name.startswith(".")]
    if not paths:
        raise UserError(f"{folder} has no videos ({', '.join(SUFFIXES)}): name another folder")
    entries = None if prompts_file is None else read_prompt_file(prompts_file)
    left_out: dict[str, str] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    for path in paths:
        try:
            sizes[path] = frame_size(path)
        except UserError as error:
            left_out[path.name] = _reason(error, path)
    usual = Counter(sizes.values()).most_common(1)[0][0] if sizes else (0, 0)
    videos = []
    for index, (path, size) in enumerate(sizes.items()):
        try:
            _check_size(size, usual)
            videos.append(_from_record(path, index) if entries is None else _matched(path, entries))
        except UserError as error:
            left_out[path.name] = _reason(error, path)
    return Gathered(tuple(videos), left_out | _without_video(entries or [], videos))


def _check_size(size: tuple[int, int], usual: tuple[int, int]) -> None:
    if size != usual:
        raise UserError(
            f"{size[1]}x{size[0]} pixels, and most of the others have {usual[1]}x{usual[0]}: judge "
            "it in a folder of its own"
        )


def _matched(path: Path, entries: Sequence[PromptEntry]) -> GivenVideo:
    stem = path.stem
    named = _SAMPLE.sub("", stem)
    index = next((n for n, e in enumerate(entries) if e.prompts[0] in (stem, named)), None)
    if index is None and (number := _NUMBER.match(stem)):
        index = int(number[1])
        if index >= len(entries):
            raise UserError(
                f"no prompt: its name says number {index}, and the last in the file is "
                f"{len(entries) - 1}"
            )
    if index is None:
        raise UserError(
            "no prompt: its name is no prompt of the file and begins with no number of one"
        )
    seed = _SEED.search(stem)
    entry = entries[index]
    return GivenVideo(
        path, index, int(seed[1]) if seed else 0, entry.prompts, entry.switch_latent_frames
    )


def _from_record(path: Path, index: int) -> GivenVideo:
    record = read_sidecar(path)
    try:
        shown = [(int(p["latent_frame"]), str(p["prompt"])) for p in record["prompts"]]
        seed = int(record["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            "no prompt: the JSON beside it says none; give a file of prompts"
        ) from error
    if not shown:
        raise UserError("no prompt: the JSON beside it says none; give a file of prompts")
    return GivenVideo(path, index, seed, tuple(p for _, p in shown), tuple(f for f, _ in shown[1:]))


def _without_video(entries: Sequence[PromptEntry], videos: Sequence[GivenVideo]) -> dict[str, str]:
    there = {video.index for video in videos}
    return {
        entry.place: f"no video of prompt {index}: {entry.prompts[0][:80]}"
        for index, entry in enumerate(entries)
        if index not in there
    }


def _reason(error: UserError, path: Path) -> str:
    """What is wrong, without the name of the file before it."""
    return " ".join(str(error).split()).removeprefix(f"{path} ")


def timeline_of(video: GivenVideo, frames: int) -> tuple[tuple[int, str], ...]:
    """First frame of each prompt in a video of so many frames.

    Raises:
        UserError: If the video ends before a prompt begins.
    """
    count = len(video.prompts)
    if video.switch_latent_frames is None:
        starts = [frames * number // count for number in range(count)]
    else:
        starts = [0, *(frames_of(latent) for latent in video.switch_latent_frames)]
    if len(starts) != count or starts[-1] >= frames:
        raise UserError(
            f"{frames} frames, and its last prompt begins at frame {starts[-1]}: give the prompts "
            "it was made for"
        )
    return tuple(zip(starts, video.prompts, strict=True))


class VideoFolder(pl.LightningDataModule):
    """Finished videos to judge, on every rank its share.

    Args:
        folder: With the videos.
        prompts_file: What they were made for; see :func:`gather`. By default the JSON beside each.

    Raises:
        UserError: If no folder is given. Reading happens in ``setup``.
    """

    def __init__(self, folder: Path | None = None, prompts_file: Path | None = None) -> None:
        super().__init__()
        if folder is None:
            raise UserError("there is nothing to judge: give a folder with --videos FOLDER")
        self.folder = Path(folder)
        self.prompts_file = None if prompts_file is None else Path(prompts_file)
        self.gathered = Gathered((), {})

    def setup(self, stage: str) -> None:
        self.gathered = gather(self.folder, self.prompts_file)

    def test_dataloader(self) -> Tasks:
        rank, ranks = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        return Tasks(self.gathered.videos[rank::ranks])

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        # Nothing in it is a tensor, and Lightning refuses frozen dataclasses.
        return batch
