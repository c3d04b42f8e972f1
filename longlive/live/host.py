"""Who is here: sessions and their queue, one model, recordings, and the clock of the server."""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlive.live import protocol
from longlive.live.engine import SessionEngine
from longlive.live.pacer import Pacer
from longlive.live.protocol import (
    Ended,
    Error,
    Limits,
    ProtocolError,
    Queue,
    ServerMessage,
    Stats,
    TransportName,
    Welcome,
)
from longlive.live.recordings import Recordings
from longlive.live.session import Session
from longlive.live.statistics import device_memory_mib, memory_mib, prometheus

if TYPE_CHECKING:
    from longlive.live.connection import Connection

log = logging.getLogger(__name__)

MOST_WAITING = 16
MOST_CONNECTIONS = 64
IDLE_SECONDS = 60.0
_TICK_SECONDS = 1.0
_GOING_AWAY = 1001


class LiveHost:
    """Gives the model to one session at a time. Used by the event loop's thread, but for ``emit``.

    Args:
        engine: Makes videos.
        folder: Where recordings go.
        samples: Prompts that the model can show.
        grace_s: How long a session outlives its connection.
        idle_s: How long a viewer may do nothing while others wait.
    """

    def __init__(
        self,
        engine: SessionEngine,
        folder: Path,
        *,
        samples: Sequence[str] = (),
        grace_s: float = 30.0,
        idle_s: float = IDLE_SECONDS,
    ) -> None:
        self.engine = engine
        self.connections: set[Connection] = set()
        self._pacer = Pacer(engine)
        self.recordings = Recordings(engine, self._pacer, folder)
        self._samples = tuple(samples)
        self._grace_s = grace_s
        self._idle_s = idle_s
        self._sessions: dict[str, Session] = {}
        self._queue: list[Session] = []
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticker: asyncio.Task[None] | None = None
        engine.emit = self._emit

    # ---- Life of the server ----

    async def open(self) -> None:
        """Begin to serve, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._ticker = asyncio.create_task(self._tick_for_ever(), name="tick")

    async def close(self) -> None:
        """Tell everybody, complete a recording, and end the model's threads."""
        if self._ticker is not None:
            self._ticker.cancel()
        for connection in list(self.connections):
            connection.end(Ended("shutdown", "the server shuts down"), _GOING_AWAY)
        await self.recordings.close()
        self._pacer.close()
        await asyncio.to_thread(self.engine.close)

    @property
    def is_full(self) -> bool:
        """Whether another connection would be one too many."""
        return len(self.connections) >= MOST_CONNECTIONS

    # ---- Sessions ----

    def join(self, connection: "Connection", token: str | None, transport: TransportName) -> None:
        """Give a connection its session, a new one or the one it names.

        Raises:
            ProtocolError: If that session has ended, or too many viewers wait.
        """
        session = self._find(token)
        resumed = session is not None
        if session is None:
            if len(self._queue) > MOST_WAITING:
                raise ProtocolError("too many viewers wait; try again in a minute", "busy")
            session = Session(self.engine)
            self._sessions[session.token] = session
            self._queue.append(session)
            self.engine.statistics.count("sessions")
        expiry = self._expiries.pop(session.token, None)
        if expiry is not None:
            expiry.cancel()
        older, session.connection = session.connection, connection
        connection.session = session
        session.forget_pictures()
        if older is not None:
            older.session = None
            older.end(Error("taken_over", "the session goes on elsewhere", None, True))
        connection.tell(self._welcome(session, transport, resumed=resumed))
        self._tell_queue(session)
        if self.has_model(session):
            self._resume(session)
        elif not resumed:
            self._tell_others(session)

    def lost(self, connection: "Connection") -> None:
        """A connection has ended; its session waits for another one."""
        self.connections.discard(connection)
        session = connection.session
        if session is None or session.connection is not connection:
            return
        session.connection = None
        if self.has_model(session):
            self._pacer.attach(None)
        if session.token in self._sessions and self._loop is not None:
            self._expiries[session.token] = self._loop.call_later(self._grace_s, self._end, session)

    def leave(self, session: Session) -> None:
        """A viewer has gone for good."""
        self._end(session)

    def has_model(self, session: Session) -> bool:
        """Whether it is a session's turn."""
        return bool(self._queue) and self._queue[0] is session

    def credit(self) -> None:
        """A viewer has shown frames, so that more may be sent."""
        with self.engine.changed:
            self.engine.changed.notify_all()

    def _find(self, token: str | None) -> Session | None:
        if token is None:
            return None
        session = self._sessions.get(token)
        if session is None:
            raise ProtocolError("that session has ended; begin another one", "unknown_session")
        return session

    def _end(self, session: Session) -> None:
        expiry = self._expiries.pop(session.token, None)
        if expiry is not None:
            expiry.cancel()
        if self._sessions.pop(session.token, None) is None:
            return
        had_model = self.has_model(session)
        self._queue.remove(session)
        if had_model:
            self._pacer.attach(None)
            self.recordings.end_with_session()
            self.engine.forget()
        if had_model and self._queue:
            self._queue[0].active_s = time.monotonic()
            self._resume(self._queue[0])
        self._tell_others(None)

    def _resume(self, session: Session) -> None:
        connection = session.connection
        if connection is None:
            return
        with self.engine.changed:
            state = self.engine.video.state
        connection.tell(state)
        for message in session.timeline.messages():
            connection.tell(message)
        self._pacer.attach(connection)

    def _welcome(self, session: Session, transport: TransportName, *, resumed: bool) -> Welcome:
        return Welcome(
            version=protocol.VERSION,
            session=session.token,
            resumed=resumed,
            transport=transport,
            grace_seconds=self._grace_s,
            last_id=session.last_id,
            buffer_frames=self.engine.buffer_frames,
            limits=Limits(),
            model=self.engine.offer(self._samples),
        )

    def _tell_queue(self, session: Session) -> None:
        if session.connection is not None:
            position = self._queue.index(session)
            session.connection.tell(Queue(position, len(self._queue) - 1))

    def _tell_others(self, except_for: Session | None) -> None:
        for session in self._queue:
            if session is not except_for:
                self._tell_queue(session)

    # ---- What the engine says ----

    def _emit(self, message: ServerMessage) -> None:
        """In the engine's threads."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._forward, self.engine.video.serial, message)

    def _tell_holder(self, message: ServerMessage) -> None:
        if self._queue and self._queue[0].connection is not None:
            self._queue[0].connection.tell(message)

    def _forward(self, video: int, message: ServerMessage) -> None:
        if not self._queue:
            return
        session = self._queue[0]
        if session.timeline.note(video, message) and session.connection is not None:
            session.connection.tell(message)

    # ---- The clock ----

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            try:
                self._tick()
            except Exception:
                log.exception("a tick of the server failed")

    def _tick(self) -> None:
        if not self._queue:
            return
        session = self._queue[0]
        with self.engine.changed:
            video = self.engine.video
            is_playing = video.is_playing and not video.is_paused
        if is_playing:
            session.active_s = time.monotonic()
            self._tell_holder(self._stats(session))
        elif len(self._queue) > 1 and time.monotonic() - session.active_s > self._idle_s:
            connection = session.connection
            self._end(session)
            if connection is not None:
                connection.session = None
                connection.end(Ended("idle", "others wait and nothing was playing; come back"))

    def _stats(self, session: Session) -> Stats:
        statistics = self.engine.statistics
        return Stats(
            fps=statistics.fps,
            frame_ms=statistics.take_second(),
            frame_p95_ms=statistics.recent("frame", 0.95),
            prompt_to_pixel_ms=statistics.last_prompt_ms,
            stalls=statistics.stalls,
            dropped_frames=self.engine.playout.dropped,
            buffer_frames=len(self.engine.playout),
            in_flight_frames=session.serial - 1 - session.shown,
            block_ms=statistics.last_block_ms,
            encode_ms=statistics.recent("encode", 0.5),
            copy_ms=statistics.recent("copy", 0.5),
            viewers=len(self._queue) - 1,
            memory_mib=memory_mib(),
            device_memory_mib=device_memory_mib(),
        )

    # ---- For operators ----

    def health(self) -> dict[str, Any]:
        """What ``/healthz`` says."""
        with self.engine.changed:
            state = self.engine.video.state.state
        return {"status": "ok", "state": state, "sessions": len(self._queue)}

    def metrics(self) -> str:
        """What ``/metrics`` says."""
        gauges = [
            ("connections", "Open WebSockets.", float(len(self.connections))),
            ("viewers", "Sessions, the playing one included.", float(len(self._queue))),
            ("waiting", "Sessions that wait.", float(max(0, len(self._queue) - 1))),
            ("buffer_frames", "Frames that are ready.", float(len(self.engine.playout))),
            ("dropped_frames", "Frames of older prompts dropped.", self.engine.playout.dropped),
            ("memory_bytes", "Memory of the process.", memory_mib() * 2**20),
        ]
        device = device_memory_mib()
        if device is not None:
            gauges.append(("device_memory_bytes", "Memory of tensors.", device * 2**20))
        return prometheus(self.engine.statistics, gauges)
