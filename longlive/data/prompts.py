"""What to predict: one script of prompts for each video."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from longlive.data.prompt_files import PromptEntry, read_prompt_file
from longlive.data.sessions import BranchVideo, SessionFile, read_session
from longlive.errors import UserError
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.transitions import Transition


@dataclass(frozen=True, slots=True)
class PromptScript:
    """The prompts of one video.

    Attributes:
        index: Place among the videos of the run.
        prompts: In order.
        switch_latent_frames: Where each prompt after the first is wanted; ``None`` for equal
            shares of the video, whatever its length.
        seed: The video's own seed.
        transitions: How each prompt after the first begins; a switch for all if empty.
        later_seeds: First block and seed of each stretch that has another seed, in order.
        latent_frames: Its length; ``None`` for that of the configuration.
        weights_hash: Of the weights that must make it; ``None`` for any.
    """

    index: int
    prompts: tuple[str, ...]
    switch_latent_frames: tuple[int, ...] | None
    seed: int
    transitions: tuple[Transition, ...] = ()
    later_seeds: tuple[tuple[int, int], ...] = ()
    latent_frames: int | None = None
    weights_hash: str | None = None

    def seed_of(self, block: int) -> int:
        """The seed of a block's noise."""
        seeds = (seed for first, seed in reversed(self.later_seeds) if first <= block)
        return next(seeds, self.seed)

    def timeline(self, latent_frames: int, block_latent_frames: int) -> PromptTimeline:
        """Place the prompts in a video of ``latent_frames``.

        Raises:
            UserError: If the switches do not fit the prompts, or a prompt would never be shown.
        """
        if self.switch_latent_frames is None:
            timeline = PromptTimeline.spread(self.prompts, latent_frames)
        else:
            timeline = PromptTimeline(self.prompts, self.switch_latent_frames, self.transitions)
        timeline.plan(latent_frames, block_latent_frames)
        return timeline


class PromptDataModule(pl.LightningDataModule):
    """Gives ``predict_step`` one ``PromptScript`` at a time, on every rank its share.

    Video ``i`` has the seed ``seed + i``: videos of one prompt file differ, and each is the same
    however many ranks or other videos there are.

    Args:
        prompt: One video. A list holds the prompts of that one video in order, not several videos.
        prompts_file: Many videos, or a timeline; see ``longlive.data.prompt_files``.
        switch_latent_frames: Where each prompt after the first is wanted, in latent frames. Applies
            to every video whose line does not say so itself. Without either, the prompts get equal
            shares.
        seed: Of the first video.
        session_file: A session of ``longlive serve``, in place of prompts: one video for each of
            its branches, each with its own seed and length.

    Raises:
        UserError: If not exactly one of ``prompt``, ``prompts_file`` and ``session_file`` is given.
            Reading happens
            in ``setup``, which raises for a missing or malformed file and for switches that do not
            fit the prompts.
    """

    def __init__(
        self,
        prompt: str | list[str] | None = None,
        prompts_file: Path | None = None,
        switch_latent_frames: list[int] | None = None,
        seed: int = 0,
        session_file: Path | None = None,
    ) -> None:
        super().__init__()
        if session_file is not None and (prompt is not None or prompts_file is not None):
            raise UserError("a session brings its own prompts; leave the others out")
        if prompt is not None and prompts_file is not None:
            raise UserError("both a prompt and a file of prompts are given; leave one out")
        if prompt is None and prompts_file is None and session_file is None:
            raise UserError("there is nothing to show; give a prompt or a file of prompts")
        self.prompt = prompt
        self.prompts_file = prompts_file
        self.switch_latent_frames = switch_latent_frames
        self.seed = seed
        self.session_file = session_file
        self.scripts: tuple[PromptScript, ...] = ()

    def setup(self, stage: str) -> None:
        if self.session_file is not None:
            session = read_session(Path(self.session_file))
            videos = enumerate(session.tree.videos())
            self.scripts = tuple(_script_of(index, session, video) for index, video in videos)
            return
        if self.prompts_file is not None:
            entries = read_prompt_file(Path(self.prompts_file))
        else:
            prompts = (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt or ())
            entries = [PromptEntry("", prompts)]
        self.scripts = tuple(self._script(index, entry) for index, entry in enumerate(entries))

    def _script(self, index: int, entry: PromptEntry) -> PromptScript:
        switches = entry.switch_latent_frames
        if switches is None and self.switch_latent_frames is not None:
            switches = tuple(self.switch_latent_frames)
        # Without switches any would do: what depends on the length is checked once it is known.
        stand_in = tuple(range(1, len(entry.prompts)))
        try:
            PromptTimeline(entry.prompts, stand_in if switches is None else switches)
        except UserError as error:
            place = f"{entry.place}: " if entry.place else ""
            raise UserError(f"{place}{error}") from error
        return PromptScript(index, entry.prompts, switches, self.seed + index)

    def predict_dataloader(self) -> "_Shares":
        rank, ranks = share_of(self.trainer)
        return _Shares(self.scripts[rank::ranks])

    def transfer_batch_to_device(
        self, batch: PromptScript, device: Any, dataloader_idx: int
    ) -> PromptScript:
        # Lightning looks for tensors inside dataclasses, and refuses frozen ones.
        return batch


def share_of(trainer: pl.Trainer | None) -> tuple[int, int]:
    """Which share of the videos a process makes, and of how many.

    Processes that make one video together have the same share; the strategy knows which they are.
    """
    shares = getattr(trainer.strategy, "distributed_sampler_kwargs", {}) if trainer else {}
    return shares.get("rank", 0), shares.get("num_replicas", 1)


class _Shares:
    """The scripts of one rank.

    Not a ``DataLoader``: Lightning would advise worker processes for it, and give the last rank a
    repeated or missing video where the scripts do not divide evenly.
    """

    def __init__(self, scripts: Sequence[PromptScript]) -> None:
        self._scripts = scripts

    def __len__(self) -> int:
        return len(self._scripts)

    def __iter__(self) -> Iterator[PromptScript]:
        return iter(self._scripts)


def _script_of(index: int, session: SessionFile, video: BranchVideo) -> PromptScript:
    """The video of one branch of a session."""
    block = session.block_latent_frames
    _, *later = video.prompts
    (_, seed), *later_seeds = video.seeds
    return PromptScript(
        index=index,
        prompts=tuple(event.prompt for event in video.prompts),
        switch_latent_frames=tuple(event.block * block for event in later),
        seed=seed,
        transitions=tuple(event.transition for event in later),
        later_seeds=tuple(later_seeds),
        latent_frames=video.blocks * block,
        weights_hash=session.weights_hash,
    )
