"""A hub on this machine: the few answers of the real one that a download needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the server holds, what it shall do wrong, and what it was asked."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    small: tuple[str, ...] = (".json", ".md")
    cut_after: int | None = None
    corrupt: int = 0
    status: int | None = None
    error_code: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def asked(self, method: str, ending: str = "") -> list[tuple[str, str, str | None]]:
        return [r for r in self.requests if r[0] == method and r[1].endswith(ending)]

    def siblings(self, repo: str) -> list[dict]:
        return [self._sibling(name, data) for name, data in self.files[repo].items()]

    def _sibling(self, name: str, data: bytes) -> dict:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry = {"rfilename": name, "size": len(data), "blobId": blob}
        if not name.endswith(self.small):
            sha = hashlib.sha256(data).hexdigest()
            entry |= {"blobId": "0" * 40}
            entry["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 130}
        return entry


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._file(with_body=False)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if not path.startswith("/api/models/"):
            self._file(with_body=True)
            return
        self.hub.requests.append(("GET", path, None))
        repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        if self.hub.status:
            self._refuse(self.hub.status, self.hub.error_code)
        elif repo not in self.hub.files:
            self._refuse(404, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            body = json.dumps({"id": repo, "sha": COMMIT, "siblings": self.hub.siblings(repo)})
            self._send(200, body.encode(), {"Content-Type": "application/json"})

    def _file(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = self.headers.get("Range")
        self.hub.requests.append((self.command, path, asked))
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        data = self.hub.files.get(repo, {}).get(rest.partition("/")[2])
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Linked-Size": str(len(data)),
        }
        if not with_body:
            self._send(200, data, headers, with_body=False)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if self.hub.corrupt:
            self.hub.corrupt -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206 if asked else 200, data[start:], headers)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], with_body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not with_body or self.command == "HEAD":
            return
        if self.hub.cut_after is not None and "/resolve/" in self.path:
            body, self.hub.cut_after = body[: self.hub.cut_after], None
            self.close_connection = True
        self.wfile.write(body)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch) -> Iterator[FakeHub]:
    """A hub that listens on the loopback address, with a client that knows no other settings."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    hub = FakeHub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()
