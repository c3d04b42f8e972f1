"""Who may talk to the server: names it answers to, pages that may open it, and the token."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

from longlive.errors import UserError

GUARDED_PATHS = ("/live", "/recordings", "/metrics")
_FORBIDDEN, _UNAUTHORIZED = 403, 401


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    name = host.strip("[]")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused.

    Attributes:
        status: Of the answer.
        reason: In a line.
    """

    status: int
    reason: str


class Access:
    """Decides on every request, before anything else looks at it.

    On loopback the ``Host`` must name loopback, or a page of another site could reach the server
    through a name of its own (DNS rebinding). A browser says in ``Origin`` which page is asking:
    that must be one the server has sent, or one that is allowed by name. What is no browser sends
    no origin.

    Args:
        host: Address the server listens on.
        token: Needed for everything but the page and ``/healthz``; none if empty.
        origins: Pages of other servers that may ask, such as ``https://example.org``.

    Raises:
        UserError: If others could reach the server without a token.
    """

    def __init__(self, host: str, token: str = "", origins: Iterable[str] = ()) -> None:
        self._is_local = is_loopback(host)
        if not self._is_local and not token:
            raise UserError(f"others can reach {host or 'every address'}: add --token SECRET")
        self._token = token
        self._origins = {origin.rstrip("/").lower() for origin in origins}

    def refusal(self, path: str, headers: Mapping[str, str], query: str) -> Refusal | None:
        """Say why a request is refused; None if it is not.

        Args:
            path: Of the address.
            headers: With lower-case names.
            query: Of the address.
        """
        host = headers.get("host", "")
        if self._is_local and not is_loopback(_name_of(host)):
            return Refusal(_FORBIDDEN, "this server answers to localhost only")
        origin = headers.get("origin")
        if origin is not None and not self._is_known(origin, host):
            return Refusal(_FORBIDDEN, "this page may not talk to the server; see --origin")
        is_guarded = any(path == known or path.startswith(f"{known}/") for known in GUARDED_PATHS)
        if self._token and is_guarded and not self._has_token(headers, query):
            return Refusal(_UNAUTHORIZED, "the token is missing or wrong")
        return None

    def _is_known(self, origin: str, host: str) -> bool:
        origin = origin.rstrip("/").lower()
        if origin in self._origins:
            return True
        found = urlsplit(origin)
        return found.scheme in ("http", "https") and found.netloc == host.lower() != ""

    def _has_token(self, headers: Mapping[str, str], query: str) -> bool:
        given = parse_qs(query).get("token", [])
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            given = [*given, bearer.strip()]
        wanted = self._token.encode()
        return any(secrets.compare_digest(token.encode(), wanted) for token in given)


def _name_of(host: str) -> str:
    """The name in a ``Host`` header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
