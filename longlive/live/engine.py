"""The session engine: one endless rollout that a viewer steers, beside the Trainer.

The rollout is that of :mod:`longlive.rollout`; no second loop exists. Between two blocks, in
``on_block_end``, the engine keeps the state, waits while the playout buffer is full, and goes back
where it was told to; when a block begins it tells the loop which prompt begins with it. A new
video, too, is a way back: to before block 0, so that compiled and captured calls serve every video.

Commands may come from any thread. Each returns where it takes effect; that is exact, because a
block begins under the same lock.
"""

import copy
import logging
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch

from longlive.data.sessions import PromptEvent
from longlive.errors import UserError
from longlive.geometry import FPS, frames_of
from longlive.live.delivery import Delivery
from longlive.live.live_video import Effect, LiveVideo
from longlive.live.maker import Maker
from longlive.live.playout import Frame, Playout
from longlive.live.protocol import (
    MAX_BUFFER_FRAMES,
    Back,
    Ended,
    ModelOffer,
    ServerMessage,
    Start,
)
from longlive.live.recipes import Recipes
from longlive.live.session_record import CallbackConfig, session_record
from longlive.live.snapshots import SnapshotStore
from longlive.live.statistics import Statistics
from longlive.live.text_ahead import TextAhead
from longlive.modules.components import Components
from longlive.modules.longlive import DENOISING_STEPS, LongLive
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.transitions import SWITCH, Transition
from longlive.weights.embedded import steps_of_alike

log = logging.getLogger(__name__)

_CPU_SNAPSHOT_MIB = 256
_GPU_SHARE = 0.25
_MEBI = 2**20
# The last ones see a whole window.
_WARM_BLOCKS = 6
_MEASURED_BLOCKS = 3
# Until the first frames under a new prompt there pass the rest of a block, the recache and a block.
_BLOCKS_OF_A_SWITCH = 3
# For a machine that hesitates. Prompts do not wait for them: old frames give way to the first new.
_SPARE_BLOCKS = 2
_LEAST_BUFFER_FRAMES = 12
_WARM_SECONDS = 900.0


class SessionEngine:
    """Makes one video at a time, and takes orders meanwhile.

    Args:
        model: Its weights are loaded if they are not yet.
        callbacks: Optimizations.
        callback_configs: How they are configured, for session files.
        buffer_frames: Depth of the playout buffer, unless a start says otherwise; by default what
            plays while a prompt changes, as :meth:`warm_up` has found this machine.
        snapshot_mib: What snapshots may hold; by default a quarter of a GPU's free memory, or 256
            MiB on a CPU.
        emit: Is told what happens, in the engine's threads; it must not wait.

    Attributes:
        changed: Lock of the video and the playout buffer; notified when anything changes.
        video: What is asked for, and where the rollout stands.
        playout: Frames that wait to be shown.
        statistics: Times and counts.
        recipes: Ways of running the model.
    """

    def __init__(
        self,
        model: LongLive,
        *,
        callbacks: Iterable[pl.Callback] = (),
        callback_configs: Sequence[CallbackConfig] = (),
        buffer_frames: int | None = None,
        snapshot_mib: float | None = None,
        emit: Callable[[ServerMessage], None] = lambda message: None,
    ) -> None:
        model.prepare().eval()
        callbacks = tuple(callbacks)
        # Before an optimization changes them.
        model.weights_hash()
        parts = cast(Components, model.parts)
        device = next(parts.dit.parameters()).device
        self.model = model
        self.emit = emit
        self._finds_depth = buffer_frames is None
        self.buffer_frames = _LEAST_BUFFER_FRAMES if buffer_frames is None else buffer_frames
        self.changed = threading.Condition(threading.RLock())
        self.video = LiveVideo(model.block_latent_frames)
        self.playout = Playout(self.buffer_frames)
        self.statistics = Statistics()
        steps = model.settings["denoising_steps"]
        self.recipes = Recipes(
            list(DENOISING_STEPS) if steps is None else steps,
            model.spec.guidance,
            model.student,
            _students_of(model, callbacks),
        )
        self._callback_configs = tuple(callback_configs)
        on_gpu = device.type != "cpu"
        self._text = TextAhead(lambda prompt: model.encode([prompt]), device, has_thread=on_gpu)
        self._delivery = Delivery(
            self.changed, self.video, self.playout, lambda said: self.emit(said), self.statistics
        )
        self._maker = Maker(
            model,
            callbacks,
            self.changed,
            self.video,
            self.playout,
            self._delivery,
            self._text,
            SnapshotStore(_budget(snapshot_mib, device)),
            lambda said: self.emit(said),
        )

    # ---- Orders ----

    def start(self, order: Start) -> Effect:
        """Begin a new video; one that plays ends.

        Raises:
            UserError: If there is no such recipe, or the script cannot be followed.
        """
        setup = self.recipes.setup(order.recipe, order.steps)
        events = _events(order)
        with self.changed:
            self.playout.clear()
            self.playout.depth = order.buffer_frames or self.buffer_frames
            self.statistics.new_video()
            self._text.announce(order.prompt)
            effect = self.video.start(
                events, order.seed, setup, transition=order.transition, blocks=order.blocks
            )
            return self._ordered(effect, tells_branches=True)

    def change_prompt(
        self, prompt: str, *, request: int = 0, transition: Transition | None = None
    ) -> Effect:
        """Let a prompt begin with the next block; of several before a block the latest wins.

        Raises:
            UserError: If nothing plays, or the prompt is blank.
        """
        _check_prompt(prompt)
        with self.changed:
            effect = self.video.ask(request, prompt, transition)
            self._text.announce(prompt)
            return effect

    def back(self, order: Back) -> Effect:
        """Go back to the start of a block, and branch there.

        Raises:
            UserError: If there is no such block.
        """
        with self.changed:
            event = None
            if order.prompt is not None:
                chosen = self.video.transition_of(order.transition)
                event = PromptEvent(order.block, order.prompt, chosen, order.id)
                self._text.announce(order.prompt)
            effect = self.video.back(
                order.branch, order.block, prompt=event, seed=order.seed, play=order.play
            )
            self.playout.clear()
            return self._ordered(effect, tells_branches=True)

    def pause(self) -> Effect:
        """Freeze the picture; the buffer still fills.

        Raises:
            UserError: If nothing plays.
        """
        with self.changed:
            return self._ordered(self.video.pause(True))

    def resume(self) -> Effect:
        """Go on after a pause.

        Raises:
            UserError: If nothing plays.
        """
        with self.changed:
            return self._ordered(self.video.pause(False))

    def stop(self) -> Effect:
        """End the video; it can still be exported, and gone back in.

        Raises:
            UserError: If nothing plays.
        """
        with self.changed:
            effect = self.video.stop()
            self.playout.clear()
            self.emit(Ended("stopped", "the video was stopped"))
            return self._ordered(effect)

    def snapshot(self) -> Effect:
        """Keep the state before the next block, so that going back there takes no time.

        Raises:
            UserError: If nothing plays.
        """
        with self.changed:
            return self.video.pin()

    def forget(self) -> None:
        """End and forget the video, for the next viewer."""
        with self.changed:
            if self.video.is_playing:
                self.stop()
            self.video.tree = None
            self.video.jump = None
            self.changed.notify_all()

    # ---- What comes out ----

    def take_frame(self) -> Frame | None:
        """The next frame to show; None if none is ready, or the video is paused."""
        with self.changed:
            if not self.video.is_playing or self.video.is_paused:
                return None
            frame = self.playout.take()
            if frame is not None:
                self.changed.notify_all()
                if not self.video.has_shown:
                    self.video.has_shown = True
                    self.emit(self.video.state)
            elif self.video.is_whole and self.playout.is_empty:
                self.video.is_playing = False
                self.emit(Ended("complete", "the video is complete"))
                self.emit(self.video.state)
            return frame

    def session(self) -> dict[str, Any]:
        """The session so far, as :mod:`longlive.live.session_record` writes it.

        Raises:
            UserError: If no video was started.
        """
        with self.changed:
            setup = self.video.setup
            if self.video.tree is None or setup is None:
                raise UserError("there is no session to write; start a video first")
            if self.model.student != setup.student:
                raise UserError("the video has not begun; try again when it plays")
            tree = copy.deepcopy(self.video.tree)
            return session_record(self.model, tree, setup, self._callback_configs)

    def offer(self, samples: Sequence[str]) -> ModelOffer:
        """What a viewer is told about the model.

        Args:
            samples: Prompts it can show.
        """
        parts = cast(Components, self.model.parts)
        block = self.model.block_latent_frames
        first = frames_of(block)
        return ModelOffer(
            name=f"{parts.kind}, {self.model.size}",
            width=self.model.width_px,
            height=self.model.height_px,
            fps=FPS,
            first_block_frames=first,
            block_frames=frames_of(2 * block) - first,
            recipes=self.recipes.offers(),
            samples=tuple(samples),
        )

    def warm_up(self, prompt: str) -> None:
        """Make blocks that nobody sees, so that the first viewer does not wait for compilers.

        Where they take longer than they play, fewer steps become the default.

        Raises:
            UserError: If the model cannot make one.
        """
        offer = self.offer(())
        plays = offer.block_frames / FPS
        seconds, steps = self._rehearse(prompt), self.recipes.most_steps
        while (fitting := self.recipes.fit(seconds, plays)) is not None:
            log.info(
                "%d steps take %.2f s for %.2f s of video here: %d is the default%s",
                *(steps, seconds, plays, fitting, self._named_student()),
            )
            seconds, steps = self._rehearse(prompt), fitting
        if self._finds_depth:
            blocks = math.ceil(_BLOCKS_OF_A_SWITCH * seconds / plays) + _SPARE_BLOCKS
            frames = max(blocks * offer.block_frames, _LEAST_BUFFER_FRAMES)
            self.buffer_frames = min(frames, MAX_BUFFER_FRAMES)

    def close(self) -> None:
        """End everything; may be called again."""
        self._maker.close()
        self._delivery.close()
        self._text.close()

    def _named_student(self) -> str:
        student = self.recipes.setup(None, None).student
        return "" if student is None else f" (student {student})"

    def _rehearse(self, prompt: str) -> float:
        """Make a few blocks with the default recipe; return the seconds that the last ones took."""
        with self.changed:
            blocks = self.statistics.blocks
            self.start(Start(0, prompt, blocks=_WARM_BLOCKS, buffer_frames=MAX_BUFFER_FRAMES))
            self.changed.wait_for(
                lambda: (
                    self.statistics.blocks - blocks >= _WARM_BLOCKS or not self.video.is_playing
                ),
                _WARM_SECONDS,
            )
            is_made = self.statistics.blocks - blocks >= _WARM_BLOCKS
        self.forget()
        if not is_made:
            raise UserError("the model made no block; see the messages above")
        return self.statistics.last_blocks_ms(_MEASURED_BLOCKS) / 1000

    def _ordered(self, effect: Effect, *, tells_branches: bool = False) -> Effect:
        if tells_branches:
            self.emit(self.video.branches)
        self.emit(self.video.state)
        self.changed.notify_all()
        return effect


def _students_of(
    model: LongLive, callbacks: Iterable[pl.Callback]
) -> dict[str, tuple[int, ...]] | None:
    """Students whose weights can take the place of the model's."""
    if model.student is None or any(map(_replaces_layers, callbacks)):
        return None
    folder = None if model.weights == "embedded" else model.weights
    return steps_of_alike(model.student, folder)


def _replaces_layers(callback: pl.Callback) -> bool:
    return isinstance(callback, RolloutCallback) and callback.replaces_layers


def _events(order: Start) -> list[PromptEvent]:
    """The prompts of a start and its script."""
    _check_prompt(order.prompt)
    events = [PromptEvent(0, order.prompt, SWITCH, order.id)]
    for planned in sorted(order.script, key=lambda planned: planned.block):
        if planned.block <= events[-1].block:
            raise UserError(
                f"the script has two prompts for block {planned.block}; begin at block 1, one each"
            )
        if order.blocks is not None and planned.block >= order.blocks:
            raise UserError(
                f"the script's prompt for block {planned.block} would never be shown: the video "
                f"has {order.blocks} blocks"
            )
        _check_prompt(planned.prompt)
        transition = planned.transition or order.transition
        events.append(PromptEvent(planned.block, planned.prompt, transition, order.id))
    return events


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise UserError("the prompt is empty; describe what the video shows")


def _budget(mebibytes: float | None, device: torch.device) -> int:
    if mebibytes is not None:
        return int(mebibytes * _MEBI)
    if device.type == "cuda":
        return int(_GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return _CPU_SNAPSHOT_MIB * _MEBI
