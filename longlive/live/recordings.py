"""The files that viewers ask for: recordings of what is shown, and sessions as JSON."""

import asyncio
import logging
import re
from collections.abc import Coroutine
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Literal

from longlive.errors import UserError
from longlive.live.engine import SessionEngine
from longlive.live.pacer import Pacer
from longlive.live.playout import Frame
from longlive.live.protocol import (
    Ack,
    Error,
    Export,
    Files,
    ProtocolError,
    Record,
    RecordStop,
    ServerMessage,
)
from longlive.live.recorder import Recorder, write_session
from longlive.live.session import Session

log = logging.getLogger(__name__)

MOST_FILES = 200
_CLOSE_SECONDS = 30
_FILE_NAME = re.compile(r"live-[0-9]{8}-[0-9]{6}-[0-9]+\.(mp4|json|png)")


class Recordings:
    """Begins and completes recordings, and knows the files. Used by the event loop's thread alone.

    Args:
        engine: Knows the session.
        pacer: Hands over what is shown.
        folder: Where files go.
    """

    def __init__(self, engine: SessionEngine, pacer: Pacer, folder: Path) -> None:
        self.folder = folder
        self._engine = engine
        self._pacer = pacer
        self._recorder: Recorder | None = None
        self._session: Session | None = None
        self._files: dict[str, Path] = {}
        self._numbers = count(1)
        self._jobs: set[asyncio.Task[None]] = set()

    @property
    def is_busy(self) -> bool:
        """Whether a file is being written."""
        return bool(self._jobs) or self._recorder is not None

    def obey(self, session: Session, message: Record | RecordStop | Export) -> Ack:
        """Begin or complete a recording, or write the session.

        Raises:
            UserError: If that cannot be now.
        """
        number = session.take_id(message)
        if isinstance(message, Record):
            self._begin(session)
        elif isinstance(message, RecordStop):
            if self._recorder is None:
                raise ProtocolError("nothing is recorded", "out_of_order")
            self._later(self._finish(number))
        else:
            self._later(self._export(session, number, self._engine.session()))
        with self._engine.changed:
            here = self._engine.video.here()
        return session.acknowledge(message, here)

    def end_with_session(self) -> None:
        """Complete the recording of a session that ends, before its video is forgotten."""
        recorder = self._take_recorder()
        if recorder is not None:
            self._later(self._complete(recorder, self._record(), None))

    async def close(self) -> None:
        """Complete everything."""
        await self._finish(None)
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=_CLOSE_SECONDS)

    def path_of(self, name: str) -> Path | None:
        """A file that this server has written; None for any other name."""
        if not _FILE_NAME.fullmatch(name):
            return None
        path = self._files.get(name)
        return path if path is not None and path.is_file() else None

    def _begin(self, session: Session) -> None:
        if self._recorder is not None:
            raise ProtocolError("it is recorded already", "out_of_order")
        about = {"made_by": "longlive serve", "model": self._engine.model.size}
        self._recorder = Recorder(self._new_path(), about, self._prompt_of)
        self._session = session
        self._pacer.record(self._recorder)
        self._show_state(is_recording=True)

    def _take_recorder(self) -> Recorder | None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            self._pacer.record(None)
            self._show_state(is_recording=False)
        return recorder

    async def _finish(self, number: int | None) -> None:
        recorder = self._take_recorder()
        if recorder is not None:
            await self._complete(recorder, self._record(), number)

    async def _complete(
        self, recorder: Recorder, record: dict[str, Any], number: int | None
    ) -> None:
        session = self._session
        try:
            made = await asyncio.to_thread(recorder.finish, record)
        except UserError as error:
            _tell(session, Error("failed", str(error), number))
            return
        _tell(session, self._offer(number, "recording", recorder.frames, made))

    async def _export(self, session: Session, number: int, record: dict[str, Any]) -> None:
        try:
            made = await asyncio.to_thread(write_session, self._new_path(), record)
        except UserError as error:
            _tell(session, Error("failed", str(error), number))
            return
        _tell(session, self._offer(number, "export", 0, [made]))

    def _offer(
        self,
        number: int | None,
        kind: Literal["recording", "export"],
        frames: int,
        made: list[Path],
    ) -> Files:
        for path in made:
            self._files[path.name] = path
            log.info("%s", path)
        while len(self._files) > MOST_FILES:
            # Only the address is forgotten; the file stays.
            del self._files[next(iter(self._files))]
        address = {path.suffix: f"recordings/{path.name}" for path in made}
        return Files(
            number, kind, frames, address.get(".mp4"), address[".json"], address.get(".png")
        )

    def _record(self) -> dict[str, Any]:
        try:
            return self._engine.session()
        except UserError:
            # Recording began, and no video after it.
            return {}

    def _prompt_of(self, frame: Frame) -> str:
        with self._engine.changed:
            tree = self._engine.video.tree
            if tree is None or frame.branch >= len(tree.branches):
                return ""
            return tree.prompt_at(frame.branch, frame.block).prompt

    def _show_state(self, *, is_recording: bool) -> None:
        with self._engine.changed:
            self._engine.video.is_recording = is_recording
            state = self._engine.video.state
        _tell(self._session, state)

    def _new_path(self) -> Path:
        now = datetime.now().strftime("%Y%m%d-%H%M%S")
        return self.folder / f"live-{now}-{next(self._numbers)}.mp4"

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)


def _tell(session: Session | None, message: ServerMessage) -> None:
    """Tell the viewer whose files they are, and nobody else."""
    if session is not None and session.connection is not None:
        session.connection.tell(message)
