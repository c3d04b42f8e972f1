"""What waits to be sent over a connection, and never much of it."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from longlive.live.statistics import Statistics

MAX_TEXT_BYTES = 8 * 2**20
"""A whole timeline with its thumbnails fits; what a viewer leaves unread for minutes does not."""


class Overflow(Exception):
    """The viewer does not read."""


class Outbox:
    """Text first, pictures after it. Used by the event loop's thread alone.

    Pictures are bounded by whoever sends them, text is by bytes.

    Args:
        statistics: Is told how long pictures wait.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._texts: deque[str] = deque()
        self._text_bytes = 0
        self._pictures: deque[tuple[float, bytes]] = deque()
        self._has_some = asyncio.Event()
        self._is_closing = False

    def put_text(self, text: str) -> None:
        """Queue a message."""
        self._texts.append(text)
        self._text_bytes += len(text)
        self._has_some.set()

    def put_picture(self, data: bytes) -> None:
        """Queue a picture behind all text."""
        self._pictures.append((time.perf_counter(), data))
        self._has_some.set()

    def close(self) -> None:
        """End :meth:`run` once the texts have left."""
        self._is_closing = True
        self._has_some.set()

    async def run(
        self,
        send_text: Callable[[str], Awaitable[None]],
        send_bytes: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Send until closed.

        Raises:
            Overflow: If too much text waits.
        """
        while True:
            await self._has_some.wait()
            self._has_some.clear()
            while self._texts or self._pictures:
                if self._text_bytes > MAX_TEXT_BYTES:
                    raise Overflow
                if self._texts:
                    text = self._texts.popleft()
                    self._text_bytes -= len(text)
                    await send_text(text)
                    continue
                queued_s, data = self._pictures.popleft()
                await send_bytes(data)
                self._statistics.queued(1000 * (time.perf_counter() - queued_s))
            if self._is_closing:
                return

    @property
    def is_overfull(self) -> bool:
        """Whether the viewer leaves too much unread."""
        return self._text_bytes > MAX_TEXT_BYTES
