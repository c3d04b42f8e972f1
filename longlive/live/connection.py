"""One WebSocket: reads what a viewer says, and sends what there is to see and to know."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from longlive.errors import UserError
from longlive.live import protocol
from longlive.live.encoders import Picture, PictureEncoder
from longlive.live.outbox import Outbox, Overflow
from longlive.live.playout import Frame
from longlive.live.protocol import (
    Error,
    Export,
    Hello,
    Leave,
    PictureHeader,
    ProtocolError,
    Record,
    RecordStop,
    ServerMessage,
    Shown,
    TransportName,
)
from longlive.live.session import Session

if TYPE_CHECKING:
    from longlive.live.host import LiveHost

log = logging.getLogger(__name__)

HELLO_SECONDS = 10.0
MOST_BAD_MESSAGES = 100
BURST_MESSAGES = 3000
MESSAGES_PER_SECOND = 500.0
_POLICY, _GOING_AWAY, _REGULAR = 1008, 1001, 1000


class _Allowance:
    """How many messages may still come: a burst, filled up at a steady rate."""

    def __init__(self) -> None:
        self._left = float(BURST_MESSAGES)
        self._filled_s = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        gained = (now - self._filled_s) * MESSAGES_PER_SECOND
        self._left = min(BURST_MESSAGES, self._left + gained)
        self._filled_s = now
        self._left -= 1
        return self._left >= 0


class Connection:
    """A viewer's connection, from handshake to end.

    Args:
        socket: The WebSocket, not accepted yet.
        host: Knows sessions, queue and model.

    Attributes:
        session: Whose it is, after ``hello``.
    """

    def __init__(self, socket: WebSocket, host: "LiveHost") -> None:
        self.session: Session | None = None
        self._socket = socket
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(host.engine.statistics)
        self._encoder: PictureEncoder | None = None
        self._video: protocol.Video | None = None
        self._bad_messages = 0
        self._allowance = _Allowance()
        self._code = _REGULAR
        self._tasks: list[asyncio.Task[None]] = []

    # ---- For the host ----

    def tell(self, message: ServerMessage) -> None:
        """Queue a message."""
        self._outbox.put_text(protocol.to_json(message))
        if self._outbox.is_overfull:
            log.warning("a viewer does not read; its connection is closed")
            self._cancel()

    def end(self, message: ServerMessage | None = None, code: int = _REGULAR) -> None:
        """Say a last word, and close."""
        if message is not None:
            self.tell(message)
        self._code = code
        self._outbox.close()

    # ---- For the pacer, in its thread ----

    @property
    def encoder(self) -> PictureEncoder:
        """Of this connection's pictures."""
        assert self._encoder is not None, "before hello"
        return self._encoder

    @property
    def has_credit(self) -> bool:
        """Whether the viewer has taken enough of what was sent."""
        session = self.session
        if session is None:
            return False
        return session.serial - 1 - session.shown < protocol.FRAMES_IN_FLIGHT

    def send(self, frame: Frame, pictures: list[Picture]) -> None:
        """Number a frame's pictures and queue them."""
        session = self.session
        if session is None:
            return
        serial = session.next_serial(frame.prompt)
        packed = [
            protocol.pack_picture(
                PictureHeader(
                    kind=picture.kind,
                    flags=picture.flags,
                    serial=serial,
                    branch=frame.branch,
                    block=frame.block,
                    frame=frame.frame,
                    prompt=frame.prompt,
                    time_us=picture.time_us,
                ),
                picture.payload,
            )
            for picture in pictures
        ]
        self._loop.call_soon_threadsafe(self._put_pictures, self.encoder.video, packed)

    def _put_pictures(self, video: protocol.Video | None, packed: list[bytes]) -> None:
        if video is not None and video != self._video:
            self._video = video
            self.tell(video)
        for data in packed:
            self._outbox.put_picture(data)

    # ---- The connection's life ----

    async def run(self) -> None:
        """Serve the viewer until one side ends it."""
        await self._socket.accept()
        self._tasks = [
            asyncio.create_task(self._read(), name="read"),
            asyncio.create_task(self._write(), name="write"),
        ]
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._tasks[0].done() and not self._tasks[1].done() and self._code != _REGULAR:
                # The reader has refused the viewer: let its last words leave.
                self._outbox.close()
                await asyncio.wait(self._tasks[1:], timeout=2)
        finally:
            self._cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._host.lost(self)
            await self._close()

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _close(self) -> None:
        if self._socket.application_state is WebSocketState.CONNECTED:
            try:
                await asyncio.wait_for(self._socket.close(self._code), 2)
            except (RuntimeError, TimeoutError, OSError, WebSocketDisconnect):
                log.debug("the connection was gone already")

    async def _write(self) -> None:
        try:
            await self._outbox.run(self._socket.send_text, self._socket.send_bytes)
        except (WebSocketDisconnect, RuntimeError, OSError, Overflow):
            log.debug("a connection broke while it was written to")

    async def _read(self) -> None:
        try:
            await self._greet()
            while True:
                message = await self._next()
                if message is not None and not self._obey(message):
                    return
        except WebSocketDisconnect:
            log.debug("a viewer has left")
        except _Refused:
            log.debug("a viewer was refused")

    async def _greet(self) -> None:
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                while self.session is None:
                    message = await self._next()
                    if isinstance(message, Hello):
                        self._welcome(message)
                    elif message is not None:
                        self._complain(
                            ProtocolError("say hello first", "out_of_order"), _id_of(message)
                        )
        except TimeoutError:
            self._refuse("out_of_order", f"no hello came within {HELLO_SECONDS:.0f} s")

    def _welcome(self, hello: Hello) -> None:
        if hello.version != protocol.VERSION:
            self._refuse(
                "version",
                f"version {hello.version} of the protocol was asked for and {protocol.VERSION} is "
                "spoken here; reload the page",
            )
        if not hello.transports:
            self._refuse("bad_value", "name at least one transport: webcodecs, mse or jpeg")
        transport: TransportName = hello.transports[0]
        self._encoder = PictureEncoder(transport)
        try:
            self._host.join(self, hello.session, transport)
        except ProtocolError as error:
            self._refuse(error.code, str(error))

    async def _next(self) -> protocol.ClientMessage | None:
        """The next message; None for one that is refused."""
        received = await self._socket.receive()
        if received["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(received.get("code", 1005))
        if not self._allowance.take():
            self._refuse("too_fast", "too many messages; send what a person would")
        text = received.get("text")
        try:
            if text is None:
                raise ProtocolError("a viewer sends text only, and binary came")
            if len(text) > protocol.MAX_MESSAGE_BYTES:
                raise ProtocolError(f"a message has at most {protocol.MAX_MESSAGE_BYTES} bytes")
            return protocol.parse_client(text)
        except ProtocolError as error:
            self._complain(error)
            return None

    def _obey(self, message: protocol.ClientMessage) -> bool:
        """Carry out a message; return whether the connection goes on."""
        session = self.session
        assert session is not None
        try:
            if isinstance(message, Leave):
                self._host.leave(session)
                return False
            if isinstance(message, Hello):
                raise ProtocolError("hello was said already", "out_of_order")
            if not self._host.has_model(session):
                raise ProtocolError("wait for your turn: position 0 of the queue", "out_of_order")
            if isinstance(message, Shown):
                session.see(message)
                self._host.credit()
            elif isinstance(message, (Record, RecordStop, Export)):
                self.tell(self._host.recordings.obey(session, message))
            else:
                self.tell(session.obey(message))
        except ProtocolError as error:
            self._complain(error, _id_of(message))
        except UserError as error:
            self._complain(ProtocolError(str(error), "bad_value"), _id_of(message))
        return True

    def _complain(self, error: ProtocolError, number: int | None = None) -> None:
        self._host.engine.statistics.count("bad_messages")
        self._bad_messages += 1
        self.tell(Error(error.code, " ".join(str(error).split()), number))
        if self._bad_messages >= MOST_BAD_MESSAGES:
            self._refuse("too_fast", "too many messages that cannot be understood")

    def _refuse(self, code: str, message: str) -> None:
        self.tell(Error(code, message, None, True))
        self._code = _POLICY
        raise _Refused


class _Refused(Exception):
    """The viewer has been told why, and the connection ends."""


def _id_of(message: protocol.ClientMessage) -> int | None:
    number: int | None = getattr(message, "id", None)
    return number
