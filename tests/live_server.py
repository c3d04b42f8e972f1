"""A server of the nano model in a thread, for tests that talk to it over a socket."""

import asyncio
import contextlib
import http.client
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from longlive.client import LiveClient, Picture, connect
from longlive.live.access import Access
from longlive.live.engine import SessionEngine
from longlive.live.host import LiveHost
from longlive.live.protocol import MAX_MESSAGE_BYTES
from longlive.live.server import build_app


class LiveServer:
    """Listens on a free port of loopback.

    Attributes:
        host: Its sessions.
        port: Where it listens.
    """

    def __init__(
        self, engine: SessionEngine, folder: Path, access: Access | None = None, **options: Any
    ) -> None:
        self.engine = engine
        self.host = LiveHost(engine, folder, **options)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        app = build_app(self.host, access or Access("127.0.0.1"))
        config = uvicorn.Config(
            app,
            log_level="critical",
            access_log=False,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=2,
            lifespan="on",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the server did not start")
            self._thread.join(0.01)

    @property
    def address(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self._listener.close()

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listener]))


@contextlib.contextmanager
def serving(engine: SessionEngine, folder: Path, **options: Any) -> Iterator[LiveServer]:
    server = LiveServer(engine, folder, **options)
    try:
        yield server
    finally:
        server.stop()


def viewing(server: LiveServer, story: Callable[[LiveClient], Awaitable[Any]], **options) -> Any:
    """Connect, and let a story happen."""

    async def run() -> Any:
        async with asyncio.timeout(60), await connect(server.address, **options) as client:
            return await story(client)

    return asyncio.run(run())


async def take(client: LiveClient, count: int) -> list[Picture]:
    pictures = []
    async for picture in client.pictures():
        pictures.append(picture)
        if len(pictures) == count:
            break
    return pictures


async def until_prompt(client: LiveClient, number: int) -> Picture:
    async for picture in client.pictures():
        if picture.header.prompt == number:
            return picture
    raise AssertionError("the connection ended")


def get(server: LiveServer, path: str, **headers: str) -> tuple[int, bytes, Any]:
    """Ask without normalizing the path, as no browser would."""
    asking = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    asking.request("GET", path, headers=headers)
    answer = asking.getresponse()
    found = answer.status, answer.read(), answer.headers
    asking.close()
    return found
