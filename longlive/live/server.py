"""The web server: the page, one WebSocket, downloads, health and metrics."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from longlive.live.access import Access
from longlive.live.connection import Connection
from longlive.live.host import LiveHost
from longlive.live.protocol import PATH

PAGE = Path(__file__).parent / "page"
_SAFE_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
        "connect-src 'self' ws: wss:; style-src 'self' 'unsafe-inline'; worker-src 'self' blob:; "
        "object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    # The address may hold the token.
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_TOO_MANY = 1013


def build_app(host: LiveHost, access: Access, page: Path = PAGE) -> ASGIApp:
    """Put the application together.

    Args:
        host: Knows sessions and model; opened and closed with the application.
        access: Decides who may ask.
        page: Folder of the page.
    """

    async def live(socket: WebSocket) -> None:
        if host.is_full:
            host.engine.statistics.count("refused")
            await socket.close(_TOO_MANY)
            return
        connection = Connection(socket, host)
        host.connections.add(connection)
        await connection.run()

    async def recording(request: Request) -> Response:
        path = host.recordings.path_of(request.path_params["name"])
        if path is None:
            return PlainTextResponse("there is no such recording\n", status_code=404)
        return FileResponse(path, filename=path.name)

    async def healthz(request: Request) -> Response:
        return JSONResponse(host.health())

    async def metrics(request: Request) -> Response:
        text = host.metrics()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await host.open()
        try:
            yield
        finally:
            await host.close()

    routes: Sequence[BaseRoute] = [
        WebSocketRoute(PATH, live),
        Route("/recordings/{name}", recording),
        Route("/healthz", healthz),
        Route("/metrics", metrics),
        Mount("/", StaticFiles(directory=page, html=True, check_dir=False)),
    ]
    return _Guard(Starlette(routes=routes, lifespan=lifespan), access, host)


class _Guard:
    """Looks at every request before the application does.

    Args:
        app: The application.
        access: Decides.
        host: Counts who was refused.
    """

    def __init__(self, app: ASGIApp, access: Access, host: LiveHost) -> None:
        self._app = app
        self._access = access
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = dict(Headers(scope=scope))
        query = scope.get("query_string", b"").decode("latin-1")
        refusal = self._access.refusal(scope["path"], headers, query)
        if refusal is None:
            await self._app(scope, receive, _with_headers(send))
            return
        self._host.engine.statistics.count("refused")
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).close(1008, refusal.reason)
            return
        response = PlainTextResponse(f"{refusal.reason}\n", status_code=refusal.status)
        await response(scope, receive, send)


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            known = {name.lower() for name, _ in message.get("headers", [])}
            message["headers"] = [
                *message.get("headers", []),
                *(
                    (name.encode(), value.encode())
                    for name, value in _SAFE_HEADERS.items()
                    if name.encode() not in known
                ),
            ]
        await send(message)

    return send_with_headers
