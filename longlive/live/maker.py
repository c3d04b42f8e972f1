"""The thread that runs the rollout, and the callback through which it takes orders."""

# Shape suffixes: B batch, T frames, C channels, H W rows and columns.

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor

from longlive.live.delivery import BlockTicket, Delivery
from longlive.live.live_prompts import LivePrompts
from longlive.live.live_video import Jump, LiveVideo
from longlive.live.playout import Playout
from longlive.live.protocol import Ended, Error, ServerMessage
from longlive.live.recipes import Setup
from longlive.live.snapshots import Place, SnapshotStore
from longlive.live.text_ahead import TextAhead
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback, WrapOrder
from longlive.rollout.snapshot import (
    BEFORE_THE_FIRST,
    RewindableDecoder,
    RolloutSnapshot,
    restore_snapshot,
    take_snapshot,
)
from longlive.rollout.state import RolloutState
from longlive.rollout.transitions import Transition

log = logging.getLogger(__name__)

_GPU_INTERVAL = 4
"""Blocks from one snapshot to the next; those between are made again if need be."""


class _Leave(Exception):
    """Ends the rollout: the engine is closed, or needs one that is built otherwise."""


class _Gate(RolloutCallback):
    """Hands what happens in the rollout to its maker."""

    # Last, so that between two blocks all others have seen the one before.
    wrap_order: ClassVar[WrapOrder] = WrapOrder.STREAM

    def __init__(self, maker: "Maker") -> None:
        self._maker = maker

    def on_rollout_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._maker.enter(state)

    def on_denoise_step_end(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        x0_BFCHW: Tensor,
    ) -> None:
        if state.is_last_border:
            self._maker.close_block()

    def on_frames_ready(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        frames_BTCHW: Tensor,
    ) -> None:
        self._maker.show(frames_BTCHW)

    def on_block_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._maker.leave_block(state)


class Maker:
    """Makes blocks while there is room for their frames.

    Args:
        model: With its weights.
        callbacks: Optimizations.
        changed: The engine's lock.
        video: What is asked for.
        playout: Where there is room or not.
        delivery: Takes the frames.
        text: Encodes prompts.
        snapshots: States to go back to.
        emit: Is told what happens.
    """

    def __init__(  # noqa: PLR0913 - the parts of an engine, which alone builds it.
        self,
        model: LongLive,
        callbacks: Iterable[pl.Callback],
        changed: threading.Condition,
        video: LiveVideo,
        playout: Playout,
        delivery: Delivery,
        text: TextAhead,
        snapshots: SnapshotStore,
        emit: Callable[[ServerMessage], None],
    ) -> None:
        self._model = model
        self._base_spec = model.spec
        self._device = text.device
        self._callbacks = tuple(callbacks)
        self._changed = changed
        self._video = video
        self._playout = playout
        self._delivery = delivery
        self._text = text
        self._snapshots = snapshots
        self._emit = emit
        self._setup: Setup | None = None
        self._decoder: RewindableDecoder | None = None
        self._fresh: RolloutSnapshot | None = None
        self._ticket: BlockTicket | None = None
        self._state: RolloutState | None = None
        # Copies on a GPU are gigabytes, and make the transformer wait for a decoder beside it.
        self._every = _GPU_INTERVAL if self._device.type == "cuda" else 1
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="rollout", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the rollout and the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    # ---- The thread ----

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._is_closed and self._video.jump is None:
                    self._changed.wait()
                if self._is_closed:
                    return
                setup = self._video.setup
            assert setup is not None
            try:
                if self._device.type == "cuda":
                    torch.cuda.set_device(self._device)
                self._roll(setup)
            except _Leave:
                log.debug("the rollout is left")
            except Exception as error:
                log.exception("the rollout failed")
                self._fail(error)
            finally:
                self._setup = self._decoder = self._fresh = self._ticket = self._state = None
                self._snapshots.clear()

    def _roll(self, setup: Setup) -> None:
        self._setup = setup
        if setup.student is not None and setup.student != self._model.student:
            # Whoever describes a session sees weights and name of one student, never of two.
            with self._changed:
                self._model.use_student(setup.student)
        self._model.spec = setup.apply(self._base_spec, self._model.shift)
        stream = self._model.stream(
            LivePrompts(
                self._begin_block,
                self._expected_transition,
                self._preempted_block,
                self._model.block_latent_frames,
            ),
            seed=self._seed_of,
            latent_frames=None,
            callbacks=[*self._callbacks, _Gate(self)],
            embed=self._text,
        )
        self._decoder = stream.decoder if isinstance(stream.decoder, RewindableDecoder) else None
        for block in stream:
            log.debug("block %d is made", block.index)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._video.is_playing = False
            self._video.jump = None
            self._playout.clear()
            state = self._video.state
            self._changed.notify_all()
        reason = " ".join(str(error).split()) or type(error).__name__
        self._emit(Error("failed", f"the model failed: {reason}; start again"))
        self._emit(Ended("failed", "the video ended because the model failed"))
        self._emit(state)

    def _seed_of(self, block: int) -> int:
        with self._changed:
            tree = self._video.tree
            return 0 if tree is None else tree.seed_at(tree.current, block)

    # ---- What happens in the rollout ----

    def enter(self, state: RolloutState) -> None:
        """No block has begun: keep this state for every new video."""
        self._state = state
        state.block_index = BEFORE_THE_FIRST
        self._ticket = None
        if self._decoder is not None:
            self._fresh = take_snapshot(state, self._decoder)
        self._wait(state)

    def leave_block(self, state: RolloutState) -> None:
        """A block is over: keep the state, and wait until the next may begin."""
        self._keep(state)
        self._wait(state)

    def _begin_block(self, block: int) -> tuple[str, Transition] | None:
        """The prompt that begins with a block, if one does; from here on the block is under way."""
        with self._changed:
            video, tree = self._video, self._video.tree
            if tree is None:
                raise _Leave
            is_remade = video.is_remaking
            event = video.begin(block)
            video.is_open = event is None and not is_remade and self._can_preempt
            active = event or tree.prompt_at(tree.current, block)
            frame = video.frame_of(block)
            self._ticket = BlockTicket(
                tree=tree,
                generation=self._playout.generation,
                branch=tree.current,
                block=block,
                frame=frame,
                frames=video.frame_of(block + 1) - frame,
                prompt=active.request,
                event=event,
                is_remade=is_remade,
                start_s=time.perf_counter(),
            )
        return None if event is None else (event.prompt, event.transition)

    @property
    def _can_preempt(self) -> bool:
        state = self._state
        # Block 0, which may have steps of its own, begins with a prompt and is never given up.
        return state is not None and state.spec.preempts and len(state.spec.schedule.sigmas) > 1

    def close_block(self) -> None:
        """The loop is about to ask for the last time for a prompt for the block at hand."""
        with self._changed:
            self._video.is_open = False

    def _expected_transition(self, block: int) -> Transition | None:
        with self._changed:
            tree = self._video.tree
            event = None if tree is None else tree.event_at(tree.current, block)
            return None if event is None else event.transition

    def _preempted_block(self) -> int | None:
        with self._changed:
            ticket, video = self._ticket, self._video
            if ticket is None or ticket.event is not None or ticket.is_remade:
                return None
            is_here = video.is_playing and video.jump is None and ticket.tree is video.tree
            is_asked = ticket.tree.event_at(ticket.branch, ticket.block) is not None
            return ticket.block if is_here and is_asked else None

    def show(self, frames_BTCHW: Tensor) -> None:
        """Frames of the block at hand, or a part of them."""
        ticket = self._ticket
        if ticket is not None and not ticket.is_remade:
            self._delivery.send(frames_BTCHW, ticket)

    # ---- Between two blocks ----

    def _keep(self, state: RolloutState) -> None:
        ticket = self._ticket
        # After going back the block at hand is not the one that was made last.
        if self._decoder is None or ticket is None or ticket.block != state.block_index:
            return
        with self._changed:
            tree, done = ticket.tree, state.block_index
            is_current = ticket.generation == self._playout.generation
            if tree is not self._video.tree or not (ticket.is_finished or is_current):
                return
            place = Place(tree.owner(ticket.branch, done).id, done + 1)
            pin = done + 1 in self._video.pins
            is_due = pin or (done + 1) % self._every == 0
            if place in self._snapshots or not is_due:
                if pin:
                    self._snapshots.pin(place)
                return
        self._snapshots.put(place, take_snapshot(state, self._decoder), pin=pin)

    def _wait(self, state: RolloutState) -> None:
        """Wait until a block may begin, and go where the viewer wants to be meanwhile."""
        while True:
            with self._changed:
                while not self._has_work():
                    self._changed.wait()
                jump = self._video.jump
                if self._is_closed or self._needs_another_rollout():
                    raise _Leave
            if jump is None:
                # It may have been asked to be kept while there was no room for the next block.
                self._keep(state)
                return
            self._go(state, jump)

    def _has_work(self) -> bool:
        video = self._video
        if self._is_closed or video.jump is not None:
            return True
        return video.may_begin and (video.is_remaking or self._playout.has_room)

    def _needs_another_rollout(self) -> bool:
        jump = self._video.jump
        if jump is None:
            return False
        is_elsewhere = self._ticket is not None
        return self._video.setup != self._setup or (self._fresh is None and is_elsewhere)

    def _go(self, state: RolloutState, jump: Jump) -> None:
        if jump.is_new_video:
            self._snapshots.clear()
        with self._changed:
            snapshot = self._nearest(jump.block)
        if snapshot is not None and self._decoder is not None:
            restore_snapshot(state, self._decoder, snapshot)
        with self._changed:
            # Meanwhile the viewer may have gone elsewhere again; then this was in vain.
            if self._video.jump is jump:
                self._video.arrive(state.block_index)

    def _nearest(self, block: int) -> RolloutSnapshot | None:
        tree = self._video.tree
        assert tree is not None
        for candidate in range(block, 0, -1):
            owner = tree.owner(tree.current, candidate - 1).id
            snapshot = self._snapshots.get(Place(owner, candidate))
            if snapshot is not None:
                return snapshot
        return self._fresh
