"""The videos of an evaluation: prompts of a file, each with several seeds, in groups."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from longlive.data.prompt_files import read_prompt_file
from longlive.data.prompts import PromptDataModule, PromptScript, share_of
from longlive.errors import UserError

SEED_STRIDE = 100_000
"""Between the seeds of one prompt; no prompt file has as many videos."""


@dataclass(frozen=True, slots=True)
class Task:
    """Videos that one variant makes in one go.

    Attributes:
        variant: Index of the variant.
        scripts: What to make.
    """

    variant: int
    scripts: tuple[PromptScript, ...]


@runtime_checkable
class HasVariants(Protocol):
    """A module that runs each group of prompts several times."""

    @property
    def variant_count(self) -> int:
        """How often."""
        ...


class EvaluationPrompts(PromptDataModule):
    """Prompts to evaluate, on every rank its share.

    Variant by variant, so that one model at a time is in memory. A group of prompts is on the same
    rank in every variant, which is where its reference rollout is.

    Args:
        prompts_file: Prompt set; see ``longlive.data.prompt_files``.
        seeds: Each makes one video of every prompt. Video ``i`` of seed ``s`` has the noise of seed
            ``100000 s + i``.
        limit: How many of the file's videos are taken, evenly spread; all by default.
        batch: How many are made side by side.
        names_file: What the videos are named after, a line for each of the file's videos, where
            that is not their own prompt: VBench's prompts beside their extended form.

    Raises:
        UserError: If there is no file, no seed, or a number is not positive.
    """

    def __init__(
        self,
        prompts_file: Path | None = None,
        seeds: list[int] | None = None,
        limit: int | None = None,
        batch: int = 1,
        names_file: Path | None = None,
    ) -> None:
        if prompts_file is None:
            raise UserError("there is nothing to evaluate: give a prompt set with --prompts FILE")
        super().__init__(prompts_file=Path(prompts_file))
        self.seeds = [0] if seeds is None else seeds
        self.limit = limit
        self.batch = batch
        self.names_file = names_file
        self._names: tuple[str, ...] = ()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"seeds must be different and from 0 on, got {self.seeds}")
        for name, value in (("limit", limit), ("batch", batch)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        taken = self.scripts
        if self.names_file is not None:
            entries = read_prompt_file(Path(self.names_file))
            if len(entries) != len(taken):
                raise UserError(
                    f"{self.names_file} has {len(entries)} lines for the {len(taken)} videos of "
                    f"{self.prompts_file}: give one name for each"
                )
            self._names = tuple(entry.prompts[0] for entry in entries)
        if self.limit is not None and self.limit < len(taken):
            taken = tuple(taken[i * len(taken) // self.limit] for i in range(self.limit))
        self.scripts = tuple(
            PromptScript(s.index, s.prompts, s.switch_latent_frames, SEED_STRIDE * seed + s.index)
            for seed in self.seeds
            for s in taken
        )

    def name_of(self, script: PromptScript) -> str:
        """What a video is named after: its own first prompt, unless a file says otherwise."""
        return self._names[script.index] if self._names else script.prompts[0]

    @property
    def groups(self) -> list[tuple[PromptScript, ...]]:
        """All videos, in groups that switch prompts at the same places."""
        by_plan: dict[Any, list[PromptScript]] = {}
        for script in self.scripts:
            plan = len(script.prompts), script.switch_latent_frames
            by_plan.setdefault(plan, []).append(script)
        return [
            tuple(scripts[start : start + self.batch])
            for scripts in by_plan.values()
            for start in range(0, len(scripts), self.batch)
        ]

    def test_dataloader(self) -> "Tasks":
        trainer = self.trainer
        rank, ranks = share_of(trainer)
        module = trainer.lightning_module if trainer else None
        variants = module.variant_count if isinstance(module, HasVariants) else 1
        mine = self.groups[rank::ranks]
        return Tasks([Task(variant, group) for variant in range(variants) for group in mine])

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        # Nothing in it is a tensor, and Lightning refuses frozen dataclasses.
        return batch


class Tasks:
    """The tasks of one rank; not a ``DataLoader``, which would repeat some to even out the ranks.

    Without any it holds one None: Lightning would leave out the end of the run, for which the other
    ranks wait.
    """

    def __init__(self, tasks: Sequence[Any]) -> None:
        self._tasks = tasks or (None,)

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tasks)
