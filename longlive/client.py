"""A viewer in Python: talks to ``longlive serve`` and hands over what comes back.

async with await connect("ws://127.0.0.1:7860") as live:
    await live.start("a large red circle bounces over night", seed=7)
    async for picture in live.pictures():
        print(picture.header.block, picture.header.frame, len(picture.payload))

The protocol is described in ``docs/live-protocol.md``. Needs the package websockets, which comes
with ``longlive[ui]``.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlencode

from longlive.errors import UserError
from longlive.live import protocol
from longlive.live.protocol import (
    Ack,
    Back,
    ChangePrompt,
    Error,
    Export,
    Files,
    Hello,
    Leave,
    Pause,
    PictureFlag,
    PictureHeader,
    Record,
    RecordStop,
    Resume,
    Shown,
    Snapshot,
    Start,
    Stop,
    TransportName,
    Welcome,
)
from longlive.rollout.transitions import Transition

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

_SHOWN_EVERY = 4
Answer = TypeVar("Answer", bound=protocol.ServerMessage)


@dataclass(frozen=True, slots=True)
class Picture:
    """One binary message.

    Attributes:
        header: What it shows.
        payload: H.264, MP4 or JPEG.
        received_s: When it came, on ``time.perf_counter``.
    """

    header: PictureHeader
    payload: bytes
    received_s: float


class LiveClient:
    """One connection to a server; made by :func:`connect`.

    Every picture is reported as shown when it is taken from :meth:`pictures`.

    Attributes:
        welcome: What the server said first.
        messages: All that it has said, in order.
        sent_s: When each request was sent, by id.
    """

    def __init__(self, socket: "ClientConnection") -> None:
        self._socket = socket
        self._id = 0
        self._pictures: asyncio.Queue[Picture | None] = asyncio.Queue()
        self._news = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None
        self.welcome: Welcome | None = None
        self.messages: list[protocol.ServerMessage] = []
        self.sent_s: dict[int, float] = {}
        self.received_s: list[float] = []

    async def start(self, prompt: str, **settings: Any) -> Ack:
        """Begin a video; settings are those of :class:`longlive.live.protocol.Start`."""
        return await self._ask(lambda number: Start(number, prompt, **settings))

    async def prompt(self, prompt: str, transition: Transition | None = None) -> Ack:
        """Let another prompt begin with the next block."""
        return await self._ask(lambda number: ChangePrompt(number, prompt, transition))

    async def back(self, branch: int, block: int, **settings: Any) -> Ack:
        """Go back; settings are those of :class:`longlive.live.protocol.Back`."""
        return await self._ask(lambda number: Back(number, branch, block, **settings))

    async def pause(self) -> Ack:
        """Freeze the picture."""
        return await self._ask(Pause)

    async def resume(self) -> Ack:
        """Go on."""
        return await self._ask(Resume)

    async def stop(self) -> Ack:
        """End the video."""
        return await self._ask(Stop)

    async def snapshot(self) -> Ack:
        """Keep the state before the next block."""
        return await self._ask(Snapshot)

    async def record(self) -> Ack:
        """Record from here on."""
        return await self._ask(Record)

    async def record_stop(self) -> Files:
        """Complete the recording, and say where it is."""
        ack = await self._ask(RecordStop)
        return await self.wait_for(Files, lambda files: files.id == ack.id)

    async def export(self) -> Files:
        """Write the session, and say where it is."""
        ack = await self._ask(Export)
        return await self.wait_for(Files, lambda files: files.id == ack.id)

    async def pictures(self) -> AsyncIterator[Picture]:
        """Pictures as they come, until the connection ends."""
        while (picture := await self._pictures.get()) is not None:
            header = picture.header
            if header.serial % _SHOWN_EVERY == 0 or header.flags & PictureFlag.FIRST_OF_PROMPT:
                await self.send(Shown(header.serial))
            yield picture

    async def wait_for(
        self,
        kind: type[Answer],
        is_meant: Callable[[Answer], bool] = lambda message: True,
        timeout_s: float = 60.0,
        since: int = 0,
    ) -> Answer:
        """The first message of a kind, one that came already or the next one.

        Args:
            kind: Which kind.
            is_meant: Which of them.
            timeout_s: How long to wait.
            since: Index in ``messages`` from which to look.

        Raises:
            UserError: If the connection ends before, or a fatal error comes.
            TimeoutError: If none comes in time.
        """
        async with asyncio.timeout(timeout_s), self._news:
            while True:
                for message in self.messages[since:]:
                    if isinstance(message, kind) and is_meant(message):
                        return message
                if self._reader is not None and self._reader.done():
                    raise UserError(f"the server ended the connection{self._last_words()}")
                await self._news.wait()

    async def send(self, message: protocol.ClientMessage) -> None:
        """Send any message, without waiting for an answer."""
        number = getattr(message, "id", None)
        if number is not None:
            self._id = max(self._id, number)
            self.sent_s[number] = time.perf_counter()
        await self._socket.send(protocol.to_json(message))

    async def close(self, *, leave: bool = True) -> None:
        """End the connection; with ``leave`` also the session, at once."""
        from websockets.exceptions import ConnectionClosed

        try:
            if leave:
                await self.send(Leave())
            await self._socket.close()
        except ConnectionClosed:
            pass
        if self._reader is not None:
            await self._reader

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _ask(self, request: Callable[[int], protocol.ClientMessage]) -> Ack:
        number = self._id + 1
        since = len(self.messages)
        await self.send(request(number))
        answer = await self.wait_for(
            Ack | Error,  # type: ignore[arg-type]
            lambda message: message.id == number,
            since=since,
        )
        if isinstance(answer, Error):
            raise UserError(answer.message)
        return answer

    async def _open(self, transports: Sequence[TransportName], session: str | None) -> None:
        self._reader = asyncio.create_task(self._read(), name="live client")
        await self.send(Hello(protocol.VERSION, tuple(transports), session))
        self.welcome = await self.wait_for(Welcome)
        self._id = self.welcome.last_id

    async def _read(self) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            async for data in self._socket:
                now = time.perf_counter()
                if isinstance(data, bytes):
                    self._pictures.put_nowait(Picture(*protocol.unpack_picture(data), now))
                    continue
                async with self._news:
                    self.messages.append(protocol.parse_server(data))
                    self.received_s.append(now)
                    self._news.notify_all()
        except ConnectionClosed:
            pass
        finally:
            self._pictures.put_nowait(None)
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        asyncio.ensure_future(self._notify())

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()

    def _last_words(self) -> str:
        errors = [message.message for message in self.messages if isinstance(message, Error)]
        return f": {errors[-1]}" if errors else ""


async def connect(
    address: str = "ws://127.0.0.1:7860",
    *,
    token: str = "",
    transports: Sequence[TransportName] = ("webcodecs",),
    session: str | None = None,
) -> LiveClient:
    """Open a connection and say hello.

    Args:
        address: Of the server.
        token: Where the server wants one.
        transports: What to ask for, best first.
        session: Token of an earlier welcome, to go on with that session.

    Raises:
        UserError: If there is no server, or it refuses.
    """
    try:
        from websockets.asyncio.client import connect as connect_socket
        from websockets.exceptions import InvalidHandshake
    except ImportError as error:
        raise UserError("the client needs websockets: pip install 'longlive[ui]'") from error
    query = f"?{urlencode({'token': token})}" if token else ""
    try:
        socket = await connect_socket(
            f"{address.rstrip('/')}{protocol.PATH}{query}", max_size=2**24, compression=None
        )
    except (OSError, InvalidHandshake) as error:
        raise UserError(f"cannot reach {address}: {error}; is longlive serve running?") from error
    client = LiveClient(socket)
    try:
        await client._open(transports, session)
    except BaseException:
        await client.close(leave=False)
        raise
    return client
