"""Who may talk to the server."""

import pytest

from longlive.errors import UserError
from longlive.live.access import Access, is_loopback

LOCAL = Access("127.0.0.1")
OPEN = Access("0.0.0.0", token="secret")


def status(access: Access, path: str = "/live", query: str = "", **headers: str) -> int:
    refusal = access.refusal(path, {"host": "localhost:7860", **headers}, query)
    return 200 if refusal is None else refusal.status


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_token(host):
    assert is_loopback(host)
    assert status(Access(host)) == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.168.1.5", "example.org"])
def test_any_other_address_needs_one(host):
    with pytest.raises(UserError, match="add --token"):
        Access(host)
    assert Access(host, token="x")


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        ("token=secret", {}, 200),
        ("a=b&token=secret", {}, 200),
        ("", {"authorization": "Bearer secret"}, 200),
        ("", {}, 401),
        ("token=", {}, 401),
        ("token=secre", {}, 401),
        ("token=secret1", {}, 401),
        ("token=%FF%00", {}, 401),
        ("", {"authorization": "Basic secret"}, 401),
        ("", {"authorization": "secret"}, 401),
    ],
)
def test_the_token_opens_what_is_guarded(query, headers, expected):
    for path in ("/live", "/recordings/live-1.mp4", "/metrics"):
        assert status(OPEN, path, query, host="gpu:7860", **headers) == expected


def test_the_page_and_the_health_are_open():
    assert [status(OPEN, path, host="gpu") for path in ("/", "/app.js", "/healthz")] == [200] * 3


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "", "10.0.0.1", "[", "127.0.0.1.evil.example"]
)
def test_on_loopback_other_names_are_refused(host):
    assert status(LOCAL, "/", host=host) == 403


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost:7860", 200),
        ("https://localhost:7860", 200),
        ("HTTP://LOCALHOST:7860/", 200),
        ("http://localhost:9999", 403),
        ("http://localhost", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("file://localhost:7860", 403),
        ("", 403),
    ],
)
def test_only_the_servers_own_page_may_ask(origin, expected):
    assert status(LOCAL, origin=origin) == expected


def test_another_page_may_be_allowed_by_name():
    access = Access("127.0.0.1", origins=["https://Example.org/"])
    assert status(access, origin="https://example.org") == 200
    assert status(access, origin="http://example.org") == 403
