"""The ways of running a loaded model that a viewer can choose from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from longlive.errors import UserError
from longlive.live.protocol import RecipeOffer
from longlive.rollout.state import RolloutSpec
from longlive.schedule import DenoisingSchedule

STANDARD = "standard"
FAST = "fast"
_SHARE_OF_PLAY = 0.7
"""What is left of a block's playing time goes to encoding, to prompts, each of which costs a
recache and the block that it interrupts, and to whatever else a machine does."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a rollout is built for; a change means a new one.

    Attributes:
        denoising_steps: As the model's setting of that name.
        guidance: Likewise.
        student: Likewise.
    """

    denoising_steps: tuple[int, ...] | int
    guidance: float
    student: str | None = None

    def apply(self, spec: RolloutSpec, shift: float) -> RolloutSpec:
        """The spec of an endless rollout that is made so.

        Absolute positions have an end and a live video has none.
        """
        steps = self.denoising_steps
        schedule = (
            DenoisingSchedule.uniform(steps, shift=shift)
            if isinstance(steps, int)
            else DenoisingSchedule.from_steps(list(steps), shift=shift)
        )
        return replace(spec, schedule=schedule, guidance=self.guidance, positions="relative")

    def settings(self) -> dict[str, Any]:
        """What to set of a model that makes the same in batch."""
        steps = self.denoising_steps
        return {
            "denoising_steps": steps if isinstance(steps, int) else list(steps),
            "guidance": self.guidance,
            "student": self.student,
            "positions": "relative",
        }


class Recipes:
    """Fewer steps are faster and coarser; without guidance an undistilled model is twice as fast.

    A student that was distilled for so few steps takes them, where there is one.

    Args:
        denoising_steps: As configured.
        guidance: As configured.
        student: As configured.
        students: Steps of the students whose weights can take the place of its own.
    """

    def __init__(
        self,
        denoising_steps: list[int] | int,
        guidance: float,
        student: str | None = None,
        students: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self._steps = denoising_steps
        self._guidance = guidance
        self._student = student
        self._students: dict[int, tuple[str, tuple[int, ...]]] = {}
        for name, steps in (students or {}).items():
            self._students.setdefault(len(steps), (name, steps))
        self._default_steps: int | None = None

    @property
    def most_steps(self) -> int:
        """Steps as configured."""
        return self._steps if isinstance(self._steps, int) else len(self._steps)

    def offers(self) -> tuple[RecipeOffer, ...]:
        """What a viewer is told; the first is the default."""
        most = self.most_steps
        every = range(most, 0, -1) if most <= 8 else [most * part // 8 for part in range(8, 0, -1)]
        steps = tuple(dict.fromkeys(every))
        half = max(1, most // 2)
        fast = (half, *(count for count in steps if count < half))
        if self._default_steps is not None:
            steps = tuple(sorted(steps, key=lambda count: count != self._default_steps))
        without = ", no guidance" if self._guidance != 1 else ""
        return (
            RecipeOffer(STANDARD, "as configured", steps),
            RecipeOffer(FAST, f"half the steps{without}", fast),
        )

    def fit(self, seconds: float, block_seconds: float) -> int | None:
        """Make fewer steps the default if those that are it are too slow for this machine.

        Not all of a block's time is in its steps, so it is measured again with what this returns.

        Args:
            seconds: Time that a block takes with the default steps.
            block_seconds: Time that it plays.

        Returns:
            The new default; None if the old one is fast enough, or has one step.
        """
        limit = _SHARE_OF_PLAY * block_seconds
        now = self._default_steps or self.most_steps
        fewer = [count for count in self.offers()[0].steps if count < now]
        if seconds <= limit or not fewer:
            return None
        fitting = [count for count in fewer if seconds * count / now <= limit]
        self._default_steps = max(fitting, default=min(fewer))
        return self._default_steps

    def setup(self, name: str | None, steps: int | None) -> Setup:
        """Choose a recipe.

        Raises:
            UserError: If there is none of that name, or not with so many steps.
        """
        offers = {offer.name: offer for offer in self.offers()}
        offer = offers.get(name or STANDARD)
        if offer is None:
            raise UserError(f"there is no recipe {name!r}; choose {' or '.join(offers)}")
        count = offer.steps[0] if steps is None else steps
        if count not in offer.steps:
            known = ", ".join(map(str, offer.steps))
            raise UserError(f"{offer.name} does not go with {count} steps; choose one of {known}")
        guidance = self._guidance if offer.name == STANDARD else 1.0
        if isinstance(self._steps, int):
            return Setup(count, guidance, self._student)
        if count != self.most_steps and count in self._students:
            student, own_steps = self._students[count]
            return Setup(own_steps, guidance, student)
        return Setup(self._some_of(self._steps, count), guidance, self._student)

    @staticmethod
    def _some_of(steps: list[int], count: int) -> tuple[int, ...]:
        # The first one is the highest noise level, which a block must begin with.
        return tuple(steps[round(index * len(steps) / count)] for index in range(count))
