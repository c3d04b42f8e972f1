"""Abuse leaves the server serving, and no larger than before."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import LiveServer, get, serving, take, viewing
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed, InvalidStatus

from longlive.client import LiveClient, connect
from longlive.errors import UserError
from longlive.live import connection, host, outbox, protocol
from longlive.live.access import Access
from longlive.live.protocol import ChangePrompt, Error, Queue, Shown
from longlive.live.statistics import memory_mib

A, B, C = "a large red circle", "a small blue square", "a small red square"


@pytest.fixture
def server(play, tmp_path) -> Iterator[LiveServer]:
    played = play()
    # What abuse leaves behind goes at once.
    with serving(played.engine, tmp_path / "recordings", grace_s=0.1) as made:
        yield made


HELLO = '{"type": "hello", "version": 1, "transports": ["jpeg"]}'


async def raw(server: LiveServer, *messages: str | bytes, wait: int = 1) -> list[dict[str, Any]]:
    """Send anything at all; return the last answers."""
    answers = []
    async with connect_socket(f"{server.address}/live", max_size=None) as socket:
        for message in messages:
            await socket.send(message)
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(10):
                while sum(answer["type"] == "error" for answer in answers) < wait:
                    data = await socket.recv()
                    if isinstance(data, str):
                        answers.append(json.loads(data))
    return answers


def errors(answers: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    return [(said["code"], said["fatal"]) for said in answers if said["type"] == "error"]


def still_serves(server: LiveServer) -> None:
    async def story(client: LiveClient) -> None:
        await client.wait_for(Queue, lambda queue: queue.position == 0)
        await client.start(A)
        await take(client, 3)

    viewing(server, story)


def test_a_serial_that_was_not_sent_is_refused(server):
    async def story(client: LiveClient) -> Error:
        await client.start(A)
        await take(client, 2)
        await client.send(Shown(100_000))
        return await client.wait_for(Error)

    assert "was never sent" in viewing(server, story).message


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (["{"], ("bad_message", False)),
        ([b"\0\1\2"], ("bad_message", False)),
        (['{"type": "start", "id": 1, "prompt": "a"}'], ("out_of_order", False)),
        ([HELLO, HELLO], ("out_of_order", False)),
        ([HELLO, '{"type": "prompt", "id": 1, "prompt": "a"}'], ("out_of_order", False)),
        ([HELLO, '{"type": "pause", "id": 1}'], ("out_of_order", False)),
        ([HELLO, '{"type": "record_stop", "id": 1}'], ("out_of_order", False)),
        ([HELLO, '{"type": "shown", "serial": 0}'], ("bad_value", False)),
        ([HELLO, '{"type": "back", "id": 1, "branch": 0, "block": 0}'], ("out_of_order", False)),
        ([HELLO, '{"type": "start", "id": 1, "prompt": "a", "steps": 9}'], ("bad_value", False)),
        (
            [
                HELLO,
                '{"type": "start", "id": 2, "prompt": "a"}',
                '{"type": "pause", "id": 2}',
            ],
            ("out_of_order", False),
        ),
        (
            [HELLO, json.dumps({"type": "start", "id": 1, "prompt": "a" * 3000})],
            ("prompt_too_long", False),
        ),
        (['{"type": "hello", "version": 9, "transports": ["jpeg"]}'], ("version", True)),
        (['{"type": "hello", "version": 1, "transports": []}'], ("bad_value", True)),
        (
            ['{"type": "hello", "version": 1, "transports": ["jpeg"], "session": "x"}'],
            ("unknown_session", True),
        ),
    ],
)
def test_what_makes_no_sense_gets_a_plain_answer(server, messages, expected):
    assert errors(asyncio.run(raw(server, *messages)))[0] == expected
    still_serves(server)


@pytest.mark.parametrize("text", [True, False])
def test_a_message_of_a_megabyte_ends_the_connection_and_nothing_else(server, text):
    async def story() -> int:
        async with connect_socket(f"{server.address}/live") as socket:
            await socket.send(HELLO)
            prompt = json.dumps({"type": "start", "id": 1, "prompt": "a" * 2**20})
            with contextlib.suppress(ConnectionClosed):
                await socket.send(prompt if text else prompt.encode())
                while True:
                    await socket.recv()
            return socket.close_code

    # Too big, or the connection was cut before the viewer had read that.
    assert asyncio.run(story()) in (1009, 1006)
    still_serves(server)


def test_too_many_senseless_messages_end_the_connection(server):
    answers = asyncio.run(raw(server, *["{"] * 150, wait=1000))
    assert errors(answers)[-1] == ("too_fast", True)
    assert len(answers) <= 101
    still_serves(server)


def test_a_flood_of_messages_ends_the_connection(server, monkeypatch):
    monkeypatch.setattr(connection, "BURST_MESSAGES", 50)
    monkeypatch.setattr(connection, "MESSAGES_PER_SECOND", 1.0)
    shown = [HELLO, '{"type": "start", "id": 1, "prompt": "a"}']
    pauses = [json.dumps({"type": "pause", "id": 2 + i}) for i in range(100)]
    answers = asyncio.run(raw(server, *shown, *pauses, wait=1000))
    assert errors(answers)[-1] == ("too_fast", True)


def test_a_connection_without_a_hello_is_closed(server, monkeypatch):
    monkeypatch.setattr(connection, "HELLO_SECONDS", 0.2)
    assert errors(asyncio.run(raw(server))) == [("out_of_order", True)]


def test_of_two_hundred_connections_some_are_refused_and_the_viewer_notices_nothing(server):
    async def story(client: LiveClient) -> tuple[int, int]:
        await client.start(A)
        await take(client, 3)
        opened, refused = [], 0

        async def open_one() -> None:
            nonlocal refused
            try:
                opened.append(await connect_socket(f"{server.address}/live", open_timeout=30))
            except InvalidStatus as error:
                refused += error.response.status_code == 403

        await asyncio.gather(*(open_one() for _ in range(200)))
        pictures = await take(client, 10)
        assert [p.header.serial for p in pictures] == list(range(3, 13))
        for socket in opened:
            socket.transport.abort()
        return len(opened), refused

    opened, refused = viewing(server, story)
    assert opened == host.MOST_CONNECTIONS - 1
    assert opened + refused == 200
    still_serves(server)


def test_too_many_who_wait_are_turned_away(server, monkeypatch):
    monkeypatch.setattr(host, "MOST_WAITING", 1)

    async def story(first: LiveClient) -> None:
        async with await connect(server.address):
            with pytest.raises(UserError, match="too many viewers wait"):
                await connect(server.address)

    viewing(server, story)


def test_a_viewer_who_stops_reading_holds_up_nobody_and_costs_nothing(server):
    async def story() -> tuple[int, int]:
        deaf = await connect_socket(f"{server.address}/live", max_queue=1)
        await deaf.send(HELLO)
        await deaf.send(json.dumps({"type": "start", "id": 1, "prompt": A, "buffer_frames": 24}))
        await asyncio.sleep(3.5)
        session = server.host._queue[0]
        sent, ready = session.serial, len(server.engine.playout)
        await asyncio.sleep(0.5)
        assert session.serial == sent
        deaf.transport.abort()
        return sent, ready

    sent, ready = asyncio.run(story())
    assert sent == protocol.FRAMES_IN_FLIGHT
    assert ready < 24 + 12
    assert server.engine.statistics.viewer_stalls == 1


def test_a_viewer_who_leaves_text_unread_is_let_go(server, monkeypatch):
    # Answers are small, and a socket's buffers hold thousands of them.
    monkeypatch.setattr(outbox, "MAX_TEXT_BYTES", 20_000)
    monkeypatch.setattr(connection, "BURST_MESSAGES", 10**6)

    async def story() -> None:
        deaf = await connect_socket(f"{server.address}/live", max_queue=1)
        deaf.transport.pause_reading()
        with contextlib.suppress(ConnectionClosed):
            await deaf.send(HELLO)
            await deaf.send(json.dumps({"type": "start", "id": 1, "prompt": A}))
            for i in range(50_000):
                await deaf.send(json.dumps({"type": "snapshot", "id": 2 + i}))
                if not server.host.connections:
                    break
        for _ in range(200):
            if not server.host.connections:
                break
            await asyncio.sleep(0.05)
        deaf.transport.abort()
        await asyncio.sleep(0.1)

    asyncio.run(story())
    assert not server.host.connections
    still_serves(server)


@pytest.mark.parametrize(
    "path",
    [
        "/recordings/../../etc/passwd",
        "/recordings/..%2f..%2fetc%2fpasswd",
        "/recordings/%2e%2e/secret.json",
        "/recordings/....//secret.json",
        "/recordings/secret.json",
        "/recordings/live-20260101-000000-1.json",
        "/recordings/live-20260101-000000-1.json%00.png",
        "/recordings/",
        "/recordings//etc/passwd",
        "/../conftest.py",
        "/%2e%2e/server.py",
        "/..%5cserver.py",
        "//etc/passwd",
    ],
)
def test_no_path_leads_out_of_the_recordings(server, path):
    folder = server.host.recordings.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "secret.json").write_text("secret")
    (folder / "secret.json").write_text("secret")
    # One of the right form that another server has written.
    (folder / "live-20260101-000000-1.json").write_text("secret")
    status, data, _ = get(server, path)
    assert status in (400, 404)
    assert b"secret" not in data
    assert b"root:" not in data


def test_a_foreign_page_and_a_foreign_name_are_refused(server):
    async def story(**headers: str) -> int:
        try:
            socket = connect_socket(f"{server.address}/live", additional_headers=headers)
            async with socket:
                return 101
        except InvalidStatus as error:
            return error.response.status_code

    assert asyncio.run(story(Origin="https://evil.example")) == 403
    assert asyncio.run(story(Origin=f"http://127.0.0.1:{server.port}")) == 101
    assert get(server, "/metrics", Host="evil.example")[0] == 403


def test_behind_a_token_nothing_is_told_without_it(play, tmp_path):
    played = play()
    access = Access("0.0.0.0", token="secret")
    with serving(played.engine, tmp_path, access=access) as server:
        for token in ("", "wrong"):
            with pytest.raises(UserError, match="HTTP 403"):
                viewing(server, lambda client: client.start(A), token=token)
        assert get(server, "/metrics")[0] == 401
        assert get(server, "/recordings/x")[0] == 401
        assert get(server, "/healthz")[0] == 200
        viewing(server, lambda client: client.start(A), token="secret")
        bearer = {"Authorization": "Bearer secret"}
        assert get(server, "/metrics", **bearer)[0] == 200


def test_memory_after_abuse_is_what_it_was_before(server):
    async def round_of_abuse() -> None:
        with contextlib.suppress(ConnectionClosed):
            await raw(server, *["{"] * 150, wait=1000)
        async with await connect(server.address) as client:
            await client.wait_for(Queue, lambda queue: queue.position == 0)
            await client.start(A)
            for i in range(300):
                await client.send(ChangePrompt(client.welcome.last_id + 2 + i, f"{B} {i}"))
            await take(client, 20)
            await client.back(0, 0, prompt=C)
            await take(client, 10)
        sockets = await asyncio.gather(
            *(connect_socket(f"{server.address}/live") for _ in range(80)), return_exceptions=True
        )
        for socket in sockets:
            if not isinstance(socket, BaseException):
                socket.transport.abort()
        while server.host.connections:
            await asyncio.sleep(0.01)

    for _ in range(2):
        asyncio.run(round_of_abuse())
    before = memory_mib()
    for _ in range(4):
        asyncio.run(round_of_abuse())
    assert memory_mib() <= 1.05 * before
    assert not server.host.recordings.is_busy
    assert len(server.host._sessions) == 0
