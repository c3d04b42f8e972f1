"""A nano model, and engines that are closed again."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from nano_model import SETTINGS, write_nano_model
from torch import Tensor

from longlive.live.engine import SessionEngine
from longlive.live.playout import Frame
from longlive.live.protocol import ServerMessage
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback


class Latents(RolloutCallback):
    """Keeps the latents of every block by the branch and block they were made for."""

    def __init__(self) -> None:
        self.engine: SessionEngine | None = None
        self.made: dict[tuple[int, int], Tensor] = {}

    def on_latents_ready(self, trainer, pl_module, state, x0_BFCHW) -> None:
        assert self.engine is not None
        with self.engine.changed:
            tree = self.engine.video.tree
            if tree is not None and self.engine.video.jump is None:
                owner = tree.owner(tree.current, state.block_index).id
                self.made[owner, state.block_index] = x0_BFCHW.clone()


class Played:
    """An engine and what it does.

    Attributes:
        engine: The engine.
        latents: By branch and block.
        messages: What it says.
    """

    def __init__(
        self, model: LongLive, *, callbacks: Sequence[RolloutCallback] = (), **options: Any
    ) -> None:
        self.latents = Latents()
        self.messages: list[ServerMessage] = []
        self.engine = SessionEngine(
            model, callbacks=[*callbacks, self.latents], emit=self.messages.append, **options
        )
        self.latents.engine = self.engine

    def watch(self, frames: int, timeout_s: float = 30) -> list[Frame]:
        """Take frames as a viewer would who has all the time."""
        taken: list[Frame] = []
        with self.engine.changed:
            while len(taken) < frames:
                frame = self.engine.take_frame()
                if frame is not None:
                    taken.append(frame)
                elif not self.engine.changed.wait(timeout_s):
                    raise TimeoutError(f"{len(taken)} of {frames} frames came")
        return taken

    def watch_blocks(self, blocks: int) -> list[Frame]:
        """Take frames until those of so many blocks have come."""
        taken = self.watch(1)
        while len({(frame.branch, frame.block) for frame in taken}) <= blocks:
            taken += self.watch(1)
        return taken[:-1]

    def wait(self, is_done: Callable[[], bool], timeout_s: float = 30) -> None:
        """Wait until something holds."""
        end_s = time.monotonic() + timeout_s
        while not is_done():
            assert time.monotonic() < end_s, "it never came"
            time.sleep(0.005)

    def said(self, kind: type) -> list[Any]:
        return [message for message in self.messages if isinstance(message, kind)]


MODEL_OPTIONS = (
    *("guidance", "denoising_steps", "first_denoising_steps", "first_frame_alone"),
    *("weights", "student"),
)


@pytest.fixture(scope="session")
def nano(tmp_path_factory) -> Path:
    return write_nano_model(tmp_path_factory.mktemp("nano"))


@pytest.fixture(scope="session")
def nano_settings(nano) -> dict[str, Any]:
    return {**SETTINGS, "weights": str(nano), "latent_frames": 12}


@pytest.fixture
def play(nano_settings) -> Iterator[Callable[..., Played]]:
    """Makes engines; options that a model takes go to it."""
    made: list[Played] = []

    def make(**options: Any) -> Played:
        model_options = {key: options.pop(key) for key in list(options) if key in MODEL_OPTIONS}
        model = LongLive(**{**nano_settings, **model_options})
        made.append(Played(model, **options))
        return made[-1]

    before = threading.active_count()
    yield make
    for played in made:
        played.engine.close()
    # The workers of a web server's files take a moment to see that it is gone.
    end_s = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end_s:
        time.sleep(0.01)
    assert threading.active_count() <= before, threading.enumerate()
