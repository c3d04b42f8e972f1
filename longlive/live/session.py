"""A viewer's session: it outlives a lost connection, and carries out what the viewer asks."""

import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from longlive.live.engine import SessionEngine
from longlive.live.live_video import Effect, OutOfOrder
from longlive.live.protocol import (
    Ack,
    Back,
    BlockDone,
    Branches,
    ChangePrompt,
    ClientMessage,
    Pause,
    PromptMark,
    ProtocolError,
    Resume,
    ServerMessage,
    Shown,
    Snapshot,
    Start,
    Stop,
)

if TYPE_CHECKING:
    from longlive.live.connection import Connection

_KEPT_BLOCKS = 20_000
_KEPT_THUMBNAILS = 600
_REMEMBERED_PROMPTS = 256


class Timeline:
    """What a viewer who comes back is told about the video so far."""

    def __init__(self) -> None:
        self._reset(-1)

    def _reset(self, video: int) -> None:
        self._video = video
        self._branches: Branches | None = None
        self._entries: deque[PromptMark | BlockDone] = deque(maxlen=_KEPT_BLOCKS)
        self._thumbnails: deque[int] = deque()
        self._removed = 0

    def note(self, video: int, message: ServerMessage) -> bool:
        """Keep a message about a video; return whether that is the newest one."""
        if video < self._video:
            return False
        if video > self._video:
            self._reset(video)
        if isinstance(message, Branches):
            self._branches = message
        elif isinstance(message, (PromptMark, BlockDone)):
            self._append(message)
        return True

    def messages(self) -> list[ServerMessage]:
        """All that is kept, in order."""
        first = [] if self._branches is None else [self._branches]
        return [*first, *self._entries]

    def _append(self, message: PromptMark | BlockDone) -> None:
        if len(self._entries) == self._entries.maxlen:
            self._removed += 1
        self._entries.append(message)
        if isinstance(message, BlockDone):
            self._thumbnails.append(self._removed + len(self._entries) - 1)
            if len(self._thumbnails) > _KEPT_THUMBNAILS:
                self._strip(self._thumbnails.popleft() - self._removed)

    def _strip(self, index: int) -> None:
        if index >= 0:
            entry = self._entries[index]
            if isinstance(entry, BlockDone):
                self._entries[index] = replace(entry, thumbnail=None)


class Session:
    """One viewer. Used by the event loop's thread; the pacer's calls only ``next_serial``.

    Args:
        engine: Carries out what is asked, while the session has the model.

    Attributes:
        token: With which a new connection goes on with it.
        connection: Through which the viewer can be reached, if any.
        last_id: The highest id of a request so far.
        serial: Of the next frame.
        shown: Serial number of the last frame that was shown.
        timeline: Of its video.
    """

    def __init__(self, engine: SessionEngine) -> None:
        self.token = secrets.token_urlsafe(24)
        self.connection: Connection | None = None
        self.last_id = 0
        self.serial = 0
        self.shown = -1
        self.timeline = Timeline()
        self.active_s = time.monotonic()
        self._engine = engine
        self._asked_s: OrderedDict[int, float] = OrderedDict()
        self._first_serials: OrderedDict[int, int] = OrderedDict()

    def take_id(self, message: ClientMessage) -> int:
        """Note the id of a request.

        Raises:
            ProtocolError: If it does not ascend.
        """
        number: int = getattr(message, "id", 0)
        if number <= self.last_id:
            raise ProtocolError(
                f"the id {number} came after {self.last_id}; ids must ascend", "out_of_order"
            )
        self.last_id = number
        return number

    def obey(self, message: ClientMessage) -> Ack:
        """Carry out a request about the video.

        Raises:
            ProtocolError: If it cannot be.
        """
        number = self.take_id(message)
        self.active_s = time.monotonic()
        orders: dict[type, Callable[[], Effect]] = {
            Pause: self._engine.pause,
            Resume: self._engine.resume,
            Stop: self._engine.stop,
            Snapshot: self._engine.snapshot,
        }
        try:
            if isinstance(message, Start):
                effect = self._engine.start(message)
            elif isinstance(message, Back):
                effect = self._engine.back(message)
            elif isinstance(message, ChangePrompt):
                effect = self._engine.change_prompt(
                    message.prompt, request=number, transition=message.transition
                )
            else:
                effect = orders[type(message)]()
        except OutOfOrder as error:
            raise ProtocolError(str(error), "out_of_order") from error
        if getattr(message, "prompt", None) is not None and not effect.unchanged:
            self._remember(self._asked_s, number, time.perf_counter())
        return self.acknowledge(message, effect)

    def acknowledge(self, message: ClientMessage, effect: Effect) -> Ack:
        """The answer to a request."""
        number: int = getattr(message, "id", 0)
        return Ack(
            number,
            message.type,
            effect.branch,
            effect.block,
            effect.frame,
            effect.replaces,
            effect.unchanged,
        )

    def next_serial(self, prompt: int) -> int:
        """Number a frame that shows the prompt of a request."""
        serial = self.serial
        self.serial += 1
        if prompt in self._asked_s:
            self._first_serials.setdefault(prompt, serial)
        return serial

    def see(self, message: Shown) -> None:
        """The viewer has shown frames.

        Raises:
            ProtocolError: If they were never sent.
        """
        if message.serial >= self.serial:
            raise ProtocolError(
                f"frame {message.serial} was never sent; {self.serial} were", "bad_value"
            )
        self.shown = max(self.shown, message.serial)
        for prompt, serial in list(self._first_serials.items()):
            if serial <= self.shown:
                del self._first_serials[prompt]
                asked_s = self._asked_s.pop(prompt, None)
                if asked_s is not None:
                    self._engine.statistics.prompt_seen(time.perf_counter() - asked_s)

    def forget_pictures(self) -> None:
        """What was on its way to a connection that is lost will not be shown."""
        self.shown = self.serial - 1

    @staticmethod
    def _remember(kept: OrderedDict[int, float], key: int, value: float) -> None:
        kept[key] = value
        while len(kept) > _REMEMBERED_PROMPTS:
            kept.popitem(last=False)
