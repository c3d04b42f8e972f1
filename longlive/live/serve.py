"""Runs the web server until Ctrl-C or SIGTERM; recordings are complete when it returns."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longlive.errors import UserError
from longlive.live.access import Access, is_loopback
from longlive.live.engine import SessionEngine
from longlive.live.protocol import MAX_MESSAGE_BYTES

log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 3
_BACKLOG = 256


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How to serve.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 for any.
        token: Needed where others can reach the server.
        origins: Pages of other servers that may talk to it.
        recordings: Folder for recordings.
        grace_s: How long a session outlives its connection.
        samples: Prompts that the model can show.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    token: str = ""
    origins: Sequence[str] = ()
    recordings: Path = Path("outputs/live")
    grace_s: float = 30.0
    samples: Sequence[str] = ()

    def check(self) -> Access:
        """Decide who may ask, before anything is loaded.

        Raises:
            UserError: If the settings cannot work.
        """
        if not 0 <= self.port <= 65535:
            raise UserError(f"port {self.port} does not exist: choose one from 1 to 65535")
        if not self.grace_s > 0:
            raise UserError(f"--grace must be more than 0 seconds, got {self.grace_s:g}")
        return Access(self.host, self.token, self.origins)


def require_ui() -> None:
    """Check that the packages of the extra are there.

    Raises:
        UserError: If one is missing.
    """
    try:
        import starlette
        import uvicorn
        import websockets
    except ImportError as error:
        raise UserError(f"longlive serve needs {error.name}: pip install 'longlive[ui]'") from error
    log.debug("starlette %s, uvicorn %s", starlette.__version__, uvicorn.__version__)
    log.debug("websockets %s", websockets.__name__)


def serve(engine: SessionEngine, settings: ServeSettings) -> None:
    """Serve until a signal says otherwise.

    Args:
        engine: Makes videos; closed at the end.
        settings: How to serve.

    Raises:
        UserError: If the address is taken or cannot be used.
    """
    import socket

    import uvicorn

    from longlive.live.host import LiveHost
    from longlive.live.server import build_app

    access = settings.check()
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        # Whoever reads the address below and comes at once waits, and is not refused.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(
            f"cannot listen on {settings.host} port {settings.port}: "
            f"{(error.strerror or str(error)).lower()}; choose another --port"
        ) from error
    host = LiveHost(engine, settings.recordings, samples=settings.samples, grace_s=settings.grace_s)
    config = uvicorn.Config(
        build_app(host, access),
        log_level="warning",
        # Addresses may hold the token.
        access_log=False,
        server_header=False,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=20,
        ws_ping_timeout=20,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        lifespan="on",
    )
    port = listener.getsockname()[1]
    name = settings.host if not is_loopback(settings.host) else "localhost"
    name = f"[{name}]" if ":" in name else name
    query = "/?token=..." if settings.token else ""
    log.info("open http://%s:%d%s in a browser; Ctrl-C ends", name, port, query)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()
        engine.close()
