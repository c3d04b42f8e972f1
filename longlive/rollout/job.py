"""Which video a rollout makes, and with whose weights; its module says so to who watches."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class RolloutJob:
    """What tells one video of a run from the others.

    Attributes:
        index: Place among the videos of the run.
        seed: The video's seed.
        weights_kind: What makes it, in a word: ``"synthetic"``, ``"embedded"``, ``"released"``.
        weights_source: Where the weights came from: a file, a repository.
    """

    index: int
    seed: int
    weights_kind: str
    weights_source: str


UNKNOWN_JOB = RolloutJob(index=0, seed=0, weights_kind="unknown", weights_source="")


@runtime_checkable
class HasJob(Protocol):
    """A module that says what it is making; it sets ``job`` before a rollout starts."""

    job: RolloutJob | None


def job_of(pl_module: object) -> RolloutJob:
    """What ``pl_module`` is making, or ``UNKNOWN_JOB`` if it does not say."""
    job = pl_module.job if isinstance(pl_module, HasJob) else None
    return UNKNOWN_JOB if job is None else job
