"""Which prompt is active at a latent frame: planned beforehand, or typed while the video runs.

A rollout looks at its prompts once before each block, and between denoising steps if requests may
interrupt a block; after a block it asks which it may expect. A switch planned for latent frame
``i`` therefore acts at the first block that starts at or after ``i``, and at most one acts per
block: of two that fall due together, the second acts one block later (LongLive, arXiv:2509.22622).
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, Self

from longlive.errors import UserError
from longlive.rollout.transitions import SWITCH, Transition


class Prompts(Protocol):
    """Which prompt becomes active when, as the loop sees it."""

    @property
    def prompt(self) -> str:
        """The active prompt."""
        ...

    @property
    def transition(self) -> Transition:
        """How the active prompt began."""
        ...

    def advance(self, block_start_latent_frame: int, /) -> str | None:
        """Move to a block; return the prompt that becomes active with it, if any.

        The rollout's state still stands at the block before it.
        """
        ...

    def request(self, prompt: str, /) -> None:
        """Ask for a prompt from the next block on; safe to call from any thread."""
        ...

    def expects(self, block_start_latent_frame: int, /) -> Transition | None:
        """How a prompt will begin with that block, if one is known; it may still be withdrawn."""
        ...

    def preempt(self) -> str | None:
        """Let a prompt that was asked for begin with the block at hand; return it, if any.

        Called between two denoising steps of a block, if the rollout preempts. Never gives a second
        prompt to a block, so that a block is begun again at most once, and of a flood of prompts
        each block takes one.
        """
        ...


@dataclass(frozen=True, slots=True)
class PromptTimeline:
    """The prompts of one video and the latent frames at which they are due.

    Attributes:
        prompts: At least one, none blank.
        switch_latent_frames: For each prompt after the first, the latent frame from which it is
            wanted; positive and ascending.
        transitions: For each prompt after the first, how it begins; a switch for all if empty.

    Raises:
        UserError: If a prompt is blank or the latent frames do not fit the prompts.
    """

    prompts: tuple[str, ...]
    switch_latent_frames: tuple[int, ...] = ()
    transitions: tuple[Transition, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError("a video needs a prompt; give one")
        for number, prompt in enumerate(self.prompts, start=1):
            _check_prompt(prompt, f"prompt {number}")
        switches = self.switch_latent_frames
        if len(switches) != len(self.prompts) - 1:
            raise UserError(
                f"{len(switches)} switch latent frames do not fit {len(self.prompts)} prompt(s); "
                "give one for each prompt after the first"
            )
        if self.transitions and len(self.transitions) != len(switches):
            raise UserError(
                f"{len(self.transitions)} transitions do not fit {len(switches)} switch(es); "
                "give one for each, or none"
            )
        if switches and switches[0] < 0:
            raise UserError(f"switch latent frame {switches[0]} is negative; count from 1")
        if switches and switches[0] == 0:
            raise UserError(
                "a switch at latent frame 0 would never show the first prompt; leave that prompt "
                "out, or switch at latent frame 1 or later"
            )
        for before, after in pairwise(switches):
            if after <= before:
                raise UserError(
                    f"switch latent frames must ascend, got {after} after {before}; sort them"
                )

    @classmethod
    def single(cls, prompt: str) -> Self:
        """One prompt from the first block to the last."""
        return cls((prompt,))

    @classmethod
    def switching(cls, prompts: Sequence[str], switch_latent_frames: Sequence[int]) -> Self:
        """Several prompts, each from its latent frame on; the first from the start."""
        return cls(tuple(prompts), tuple(switch_latent_frames))

    @classmethod
    def spread(cls, prompts: Sequence[str], latent_frames: int) -> Self:
        """Several prompts with equal shares of a video of ``latent_frames``.

        Six prompts in 240 latent frames switch at 40, 80, 120, 160 and 200, as in the reference's
        interactive example.

        Raises:
            UserError: If there are more prompts than latent frames.
        """
        if len(prompts) > latent_frames:
            raise UserError(
                f"{len(prompts)} prompts do not fit in {latent_frames} latent frames; ask for a "
                "longer video"
            )
        shares = len(prompts)
        return cls.switching(prompts, [i * latent_frames // shares for i in range(1, shares)])

    def plan(self, latent_frames: int, block_latent_frames: int) -> list[tuple[int, str]]:
        """Work out when each prompt really becomes active in a video of known length.

        Args:
            latent_frames: Length of the video.
            block_latent_frames: Latent frames in a block.

        Returns:
            Latent frame and prompt, one entry for each prompt, in order.

        Raises:
            UserError: If a prompt would never be shown, because no block starts at or after its
                latent frame, or none is left after the switches before it.
        """
        cursor = self.start()
        for block_start in range(0, latent_frames, block_latent_frames):
            cursor.advance(block_start)
        shown = cursor.history
        if len(shown) < len(self.prompts):
            number = len(shown) + 1
            last_start = (latent_frames - 1) // block_latent_frames * block_latent_frames
            due = self.switch_latent_frames[number - 2]
            raise UserError(
                f"prompt {number} would never be shown: no block is left for its switch at latent "
                f"frame {due} (the last of {latent_frames} starts at {last_start}); switch earlier "
                "or ask for a longer video"
            )
        return shown

    def start(self) -> "PromptCursor":
        """Begin a rollout; every rollout needs its own cursor."""
        return PromptCursor(self)


class PromptCursor:
    """Where one rollout stands in its timeline, open to requests from other threads.

    A request takes effect at the next block, or at the one at hand if the rollout preempts. It also
    drops the planned switches that are due by then, since it is the later word; those planned for
    later still come.
    """

    def __init__(self, timeline: PromptTimeline) -> None:
        first, *later = timeline.prompts
        transitions = timeline.transitions or (SWITCH,) * len(later)
        self._planned = deque(zip(timeline.switch_latent_frames, later, transitions, strict=True))
        self._transition = SWITCH
        self._history = [(0, first)]
        self._requested: str | None = None
        self._last_block_start = -1
        self._lock = threading.Lock()

    @property
    def prompt(self) -> str:
        """The active prompt."""
        return self.history[-1][1]

    @property
    def transition(self) -> Transition:
        """How the active prompt began."""
        return self._transition

    @property
    def history(self) -> list[tuple[int, str]]:
        """Latent frame and prompt of each switch so far, the first prompt at 0 included."""
        with self._lock:
            return list(self._history)

    def request(self, prompt: str) -> None:
        """Ask for a prompt from the next block on; of several requests the latest wins.

        Safe to call from any thread. Asking for the prompt that is active changes nothing, but
        withdraws a request that has not taken effect.

        Raises:
            UserError: If the prompt is blank.
        """
        _check_prompt(prompt, "the prompt")
        with self._lock:
            self._requested = prompt

    def advance(self, block_start_latent_frame: int) -> str | None:
        """Move to the block that starts at ``block_start_latent_frame``; call once per block.

        Returns:
            The prompt to switch to, or ``None`` to go on with the active one.

        Raises:
            ValueError: If the block does not start after the one before it.
        """
        with self._lock:
            if block_start_latent_frame <= self._last_block_start:
                raise ValueError(
                    f"block at latent frame {block_start_latent_frame} does not come after the "
                    f"block at {self._last_block_start}"
                )
            self._last_block_start = block_start_latent_frame
            prompt = self._take(block_start_latent_frame)
            if prompt is not None:
                if block_start_latent_frame == 0:
                    self._history.clear()
                self._history.append((block_start_latent_frame, prompt))
            return prompt

    def expects(self, block_start_latent_frame: int) -> Transition | None:
        """How a prompt will begin with that block, if one is known; it may still be withdrawn."""
        with self._lock:
            if self._requested not in (None, self._history[-1][1]):
                return SWITCH
            if self._planned and self._planned[0][0] <= block_start_latent_frame:
                return self._planned[0][2]
            return None

    def preempt(self) -> str | None:
        """Let the requested prompt begin with the block at hand; return it, if any.

        A block that has begun with a prompt takes no other one, the very first block included.
        """
        with self._lock:
            block_start, (began, active) = self._last_block_start, self._history[-1]
            if began == block_start or self._requested in (None, active):
                return None
            prompt = self._take(block_start)
            assert prompt is not None
            self._history.append((block_start, prompt))
            return prompt

    def _take(self, block_start: int) -> str | None:
        requested, self._requested = self._requested, None
        if requested is None or requested == self._history[-1][1]:
            is_due = bool(self._planned) and self._planned[0][0] <= block_start
            if not is_due:
                return None
            _, planned, self._transition = self._planned.popleft()
            return planned
        while self._planned and self._planned[0][0] <= block_start:
            self._planned.popleft()
        self._transition = SWITCH
        return requested


def _check_prompt(prompt: str, name: str) -> None:
    if not prompt.strip():
        raise UserError(f"{name} is empty; describe what the video shows")
