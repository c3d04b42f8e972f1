"""Frames on their way from the device to the playout buffer, and their thumbnails."""

# Shape suffixes: B batch, T frames, C channels, H W rows and columns.

import base64
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longlive.data.sessions import BranchTree, PromptEvent
from longlive.live.live_video import LiveVideo
from longlive.live.playout import Frame, Playout
from longlive.live.protocol import BlockDone, PictureFlag, PromptMark, ServerMessage
from longlive.live.statistics import Statistics
from longlive.live.thumbnails import thumbnail
from longlive.video.frames import to_uint8
from longlive.video.to_host import HostTransfer

log = logging.getLogger(__name__)

_PIECES_UNDER_WAY = 8


@dataclass(slots=True)
class BlockTicket:
    """A block under way, and where its frames belong.

    Attributes:
        tree: The video's branches.
        generation: Of the playout buffer when the block began.
        branch: Where.
        block: Likewise.
        frame: Its first frame.
        frames: How many it has.
        prompt: Id of the request whose prompt it shows.
        event: The prompt that begins with it, if one does.
        is_remade: Whether it was made before, and only leads to where the viewer went.
        start_s: When it began.
        sent: Frames sent so far.
        is_finished: Whether it belongs to the video for good.
        thumbnail: Of its first frame, once there is one.
    """

    tree: BranchTree
    generation: int
    branch: int
    block: int
    frame: int
    frames: int
    prompt: int
    event: PromptEvent | None
    is_remade: bool
    start_s: float
    sent: int = 0
    is_finished: bool = False
    thumbnail: str | None = None


class Delivery:
    """Brings frames to the host and puts them into the playout buffer, in a thread of its own.

    Args:
        changed: The engine's lock.
        video: What is asked for.
        playout: Where they go.
        emit: Is told of every block whose frames have arrived.
        statistics: Is told what it cost.
    """

    def __init__(
        self,
        changed: threading.Condition,
        video: LiveVideo,
        playout: Playout,
        emit: Callable[[ServerMessage], None],
        statistics: Statistics,
    ) -> None:
        self._changed = changed
        self._video = video
        self._playout = playout
        self._emit = emit
        self._statistics = statistics
        self._transfer = HostTransfer(capacity=_PIECES_UNDER_WAY, name="frames to host")

    def send(self, frames_BTCHW: Tensor, ticket: BlockTicket) -> None:
        """Queue the next frames of a block; the current stream makes them."""
        first, count = ticket.sent, frames_BTCHW.shape[1]
        ticket.sent += count
        with self._changed:
            if ticket.generation != self._playout.generation:
                return
            self._playout.expect(count)
            event = ticket.event
            if first == 0 and event is not None:
                place = (ticket.branch, ticket.block, ticket.frame)
                self._emit(PromptMark(event.request, *place, event.prompt, event.transition))
            if ticket.sent >= ticket.frames:
                # Under the lock, so that no order can come between: now it can be gone back to.
                self._video.finish(ticket.block)
                ticket.is_finished = True
        # 8 bits are made where the frames are: a quarter of the bytes to copy.
        x_THWC = to_uint8(frames_BTCHW[0].detach()).permute(0, 2, 3, 1)
        clock = _CopyClock(x_THWC.device)
        self._transfer.send(x_THWC, lambda host: self._receive(host, ticket, first, clock))
        clock.stop()

    def close(self) -> None:
        """Wait for what is under way."""
        self._transfer.finish()

    def _receive(
        self, x_THWC: Tensor, ticket: BlockTicket, first: int, clock: "_CopyClock"
    ) -> None:
        try:
            self._put(x_THWC, ticket, first, clock)
        except Exception:
            # The transfer would take nothing after an exception.
            log.exception("a block's frames were lost")

    def _put(self, x_THWC: Tensor, ticket: BlockTicket, first: int, clock: "_CopyClock") -> None:
        pixels_THWC = x_THWC.numpy()
        frames = [
            Frame(
                pixels_HWC,
                ticket.branch,
                ticket.block,
                ticket.frame + first + offset,
                ticket.prompt,
                PictureFlag.FIRST_OF_PROMPT
                if ticket.event is not None and first + offset == 0
                else PictureFlag(0),
            )
            for offset, pixels_HWC in enumerate(pixels_THWC)
        ]
        with self._changed:
            if self._playout.put(ticket.generation, frames):
                self._changed.notify_all()
        self._statistics.copied(clock.milliseconds())
        if first == 0:
            ticket.thumbnail = base64.b64encode(thumbnail(pixels_THWC[0])).decode()
        if first + len(frames) >= ticket.frames:
            self._report(ticket)

    def _report(self, ticket: BlockTicket) -> None:
        seconds = time.perf_counter() - ticket.start_s
        with self._changed:
            self._statistics.made_block(seconds)
            if ticket.is_finished and ticket.tree is self._video.tree:
                place = (ticket.branch, ticket.block, ticket.frame, ticket.frames, ticket.prompt)
                self._emit(BlockDone(*place, round(seconds, 4), ticket.thumbnail))
            self._changed.notify_all()


class _CopyClock:
    """Times a copy to the host, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        if self._is_cuda:
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._start.record()
        else:
            self._start_s = self._end_s = time.perf_counter()

    def stop(self) -> None:
        if self._is_cuda:
            self._end.record()
        else:
            self._end_s = time.perf_counter()

    def milliseconds(self) -> float:
        """What it took; called in the thread that has waited for the copy."""
        if not self._is_cuda:
            return 1000 * (self._end_s - self._start_s)
        self._end.synchronize()
        return self._start.elapsed_time(self._end)
