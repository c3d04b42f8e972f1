"""The server over a real socket: what a viewer gets, and what abuse does not change."""

import asyncio
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from live_server import LiveServer, get, serving, take, until_prompt, viewing

from longlive.client import LiveClient, Picture, connect
from longlive.errors import UserError
from longlive.live import host, protocol
from longlive.live.protocol import (
    BlockDone,
    Branches,
    ChangePrompt,
    Ended,
    Error,
    Files,
    PictureFlag,
    PromptMark,
    Queue,
    State,
    Stats,
    Video,
)
from longlive.video.read import read_metadata, read_video

A, B, C = "a large red circle", "a small blue square", "a small red square"


FIRST = 9


@pytest.fixture
def server(play, tmp_path) -> Iterator[LiveServer]:
    played = play()
    with serving(played.engine, tmp_path / "recordings", samples=(A, B)) as made:
        yield made


@pytest.mark.parametrize("transport", ["webcodecs", "mse", "jpeg"])
def test_a_viewer_gets_frames_that_a_decoder_shows(server, transport):
    async def story(client: LiveClient) -> list[Picture]:
        await client.start(A, seed=3)
        return await take(client, 20)

    pictures = viewing(server, story, transports=(transport,))
    data = b"".join(picture.payload for picture in pictures)
    form = {"webcodecs": "h264", "mse": "mp4", "jpeg": "mjpeg"}[transport]
    decoded = list(av.open(io.BytesIO(data), format=form).decode(video=0))
    assert len(decoded) == 20 - (transport == "mse")
    assert (decoded[0].width, decoded[0].height) == (48, 32)


def test_frames_come_at_sixteen_a_second_in_order_with_their_place(server):
    async def story(client: LiveClient) -> tuple[list[Picture], LiveClient]:
        await client.start(A)
        return await take(client, 33), client

    pictures, client = viewing(server, story)
    headers = [picture.header for picture in pictures]
    assert [header.serial for header in headers] == list(range(33))
    assert [header.frame for header in headers] == list(range(33))
    assert [header.block for header in headers[8:10]] == [0, 1]
    assert headers[0].flags >= PictureFlag.KEY | PictureFlag.FIRST_OF_PROMPT
    assert {header.prompt for header in headers} == {1}
    seconds = pictures[-1].received_s - pictures[0].received_s
    # Never faster; on a busy machine slower.
    assert 1.9 < seconds < 4
    kinds = [type(message) for message in client.messages]
    assert kinds.index(Video) > kinds.index(Branches) < kinds.index(PromptMark)
    states = [message.state for message in client.messages if isinstance(message, State)]
    assert states[:3] == ["idle", "starting", "playing"]
    thumbnail = next(message for message in client.messages if isinstance(message, BlockDone))
    assert thumbnail.thumbnail.startswith("/9j/")


def test_a_prompt_is_acknowledged_within_50_ms_and_shown_where_it_was_said_to_be(server):
    async def story(client: LiveClient) -> tuple[list[float], Any, Picture]:
        await client.start(A)
        await take(client, 12)
        waits = []
        for prompt in (B, C, B, C, A, B, C):
            asked_s = time.perf_counter()
            ack = await client.prompt(prompt)
            waits.append(time.perf_counter() - asked_s)
            await take(client, 2)
        picture = await until_prompt(client, ack.id)
        await client.wait_for(Stats, lambda stats: stats.prompt_to_pixel_ms is not None)
        return waits, ack, picture

    waits, ack, picture = viewing(server, story)
    assert sorted(waits)[len(waits) // 2] < 0.05
    assert (picture.header.block, picture.header.frame) == (ack.block, ack.frame)
    assert picture.header.flags & PictureFlag.FIRST_OF_PROMPT


def test_a_thousand_prompts_in_a_second_leave_the_last_one_on_screen(server):
    async def story(client: LiveClient) -> tuple[Picture, float]:
        await client.start(A)
        await take(client, 5)
        started_s = time.perf_counter()
        for i in range(1000):
            await client.send(ChangePrompt(2 + i, f"a {'red' if i % 2 else 'blue'} circle {i}"))
        spent_s = time.perf_counter() - started_s
        await client.wait_for(protocol.Ack, lambda ack: ack.id == 1001)
        return await until_prompt(client, 1001), spent_s

    picture, spent_s = viewing(server, story)
    assert picture.header.prompt == 1001
    assert spent_s < 2


def test_going_back_and_branching_over_the_wire(server):
    async def story(client: LiveClient) -> tuple[Any, Picture, Branches]:
        await client.start(A)
        await client.wait_for(BlockDone, lambda block: block.block == 2)
        await client.pause()
        ack = await client.back(0, 1, prompt=B)
        picture = await until_prompt(client, ack.id)
        return ack, picture, await client.wait_for(Branches, lambda told: told.current == 1)

    ack, picture, branches = viewing(server, story)
    assert (ack.branch, ack.block, ack.frame) == (1, 1, FIRST)
    assert (picture.header.branch, picture.header.frame) == (1, FIRST)
    assert picture.header.flags >= PictureFlag.JUMP | PictureFlag.KEY
    assert branches.branches[1].parent == 0


def test_a_lost_viewer_comes_back_to_the_same_session_and_its_timeline(server):
    async def story() -> tuple[LiveClient, Picture]:
        first = await connect(server.address)
        await first.start(A)
        await take(first, 15)
        await first.prompt(B)
        await first.wait_for(BlockDone, lambda block: block.block == 2)
        # As when a laptop is closed: no word of farewell.
        first._socket.transport.abort()
        await asyncio.sleep(0.2)
        again = await connect(server.address, session=first.welcome.session, transports=("jpeg",))
        async with again:
            picture = (await take(again, 1))[0]
            assert (await again.prompt(C)).id == 3
            return again, picture

    again, picture = asyncio.run(story())
    assert again.welcome.resumed
    assert again.welcome.last_id == 2
    assert again.welcome.transport == "jpeg"
    blocks = [message.block for message in again.messages if isinstance(message, BlockDone)]
    assert blocks[:3] == [0, 1, 2]
    assert picture.header.serial >= 15
    assert picture.header.flags & PictureFlag.KEY


def test_a_second_connection_of_a_session_takes_over(server):
    async def story() -> Error:
        async with await connect(server.address) as first:
            await first.start(A)
            async with await connect(server.address, session=first.welcome.session) as second:
                await take(second, 3)
                return await first.wait_for(Error)

    assert asyncio.run(story()).code == "taken_over"


def test_viewers_queue_for_the_model_and_see_where_they_stand(server):
    async def story() -> list[list[int]]:
        first = await connect(server.address)
        second = await connect(server.address)
        third = await connect(server.address)
        with pytest.raises(UserError, match="wait for your turn"):
            await second.start(B)
        await first.start(A)
        await take(first, 3)
        await first.close()
        await second.wait_for(Queue, lambda queue: queue.position == 0)
        ack = await second.start(B)
        assert (await until_prompt(second, ack.id)).header.serial == 0
        blocks = [block for block in second.messages if isinstance(block, BlockDone)]
        assert {block.prompt for block in blocks} <= {ack.id}
        await second.close()
        await third.wait_for(Queue, lambda queue: queue.position == 0)
        await third.close()
        return [
            [queue.position for queue in client.messages if isinstance(queue, Queue)]
            for client in (first, second, third)
        ]

    positions = asyncio.run(story())
    assert positions[0][0] == 0
    assert positions[1] == sorted(positions[1], reverse=True)
    assert positions[1][0] == 1
    assert positions[1][-1] == 0
    assert positions[2][0] == 2
    assert positions[2][-1] == 0


def test_a_session_ends_when_its_viewer_stays_away(play, tmp_path):
    played = play()
    with serving(played.engine, tmp_path, grace_s=0.3) as server:

        async def story() -> str:
            first = await connect(server.address)
            await first.start(A)
            await take(first, 3)
            second = await connect(server.address)
            await first.close(leave=False)
            await second.wait_for(Queue, lambda queue: queue.position == 0, 10)
            await second.close()
            with pytest.raises(UserError, match="that session has ended"):
                await connect(server.address, session=first.welcome.session)
            return "ended"

        assert asyncio.run(story()) == "ended"


def test_a_viewer_who_does_nothing_makes_room_for_the_next(play, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "_TICK_SECONDS", 0.05)
    played = play()
    with serving(played.engine, tmp_path, idle_s=0.2) as server:

        async def story() -> Ended:
            async with (
                await connect(server.address) as first,
                await connect(server.address) as second,
            ):
                await second.wait_for(Queue, lambda queue: queue.position == 0, 10)
                return await first.wait_for(Ended)

        assert asyncio.run(story()).reason == "idle"


def test_a_recording_is_a_film_with_chapters_its_session_and_a_sheet(server, tmp_path):
    async def story(client: LiveClient) -> tuple[Any, list[Picture]]:
        await client.start(A, seed=3)
        await take(client, 3)
        await client.record()
        pictures = await take(client, 12)
        ack = await client.prompt(B)
        await until_prompt(client, ack.id)
        await take(client, 6)
        return await client.record_stop(), pictures

    files, _ = viewing(server, story)
    for address in (files.video, files.session, files.sheet):
        status, data, _ = get(server, f"/{address}")
        assert status == 200
        (tmp_path / Path(address).name).write_bytes(data)
    video = tmp_path / Path(files.video).name
    assert len(read_video(video)) == files.frames
    chapters = read_metadata(video)["chapters"]
    assert [title for _, title in chapters] == [A, B]
    assert chapters[0][0] == 0
    session = json.loads((tmp_path / Path(files.session).name).read_text())
    assert session["format"] == "longlive-session"
    assert [event["prompt"] for event in session["branches"][0]["prompts"]] == [A, B]
    assert (tmp_path / Path(files.sheet).name).read_bytes().startswith(b"\x89PNG")


def test_the_session_can_be_exported_without_a_recording(server):
    async def story(client: LiveClient) -> Any:
        with pytest.raises(UserError, match="there is no session to write"):
            await client.export()
        await client.start(A)
        await take(client, 3)
        return await client.export()

    files = viewing(server, story)
    assert files.video is None
    assert json.loads(get(server, f"/{files.session}")[1])["branches"]


def test_a_recording_ends_with_its_session(server):
    async def story(client: LiveClient) -> None:
        await client.start(A)
        await client.record()
        await take(client, 12)

    async def next_viewer(client: LiveClient) -> list[Any]:
        await client.wait_for(Queue, lambda queue: queue.position == 0)
        await client.start(B)
        await take(client, 12)
        return client.messages

    viewing(server, story)
    assert not [said for said in viewing(server, next_viewer) if isinstance(said, Files)]
    folder = server.host.recordings.folder
    for _ in range(200):
        if len(list(folder.glob("live-*"))) == 3:
            break
        time.sleep(0.05)
    assert len(read_video(next(folder.glob("*.mp4")))) >= 5


def test_health_and_metrics_tell_what_goes_on(server):
    async def story(client: LiveClient) -> None:
        await client.start(A)
        await take(client, 20)

    viewing(server, story)
    status, data, headers = get(server, "/healthz")
    assert (status, json.loads(data)["status"]) == (200, "ok")
    assert headers["x-content-type-options"] == "nosniff"
    status, data, headers = get(server, "/metrics")
    text = data.decode()
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["longlive_frames_total"]) >= 20
    assert float(values['longlive_inter_frame_seconds{quantile="0.5"}']) == pytest.approx(
        1 / 16, rel=0.2
    )
    for name in ("prompt_to_pixel_seconds", "stalls", "queue_seconds", "memory_bytes", "waiting"):
        assert f"longlive_{name}" in text
    described = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert {name.partition("{")[0] for name in values} == described


def test_the_page_is_served_with_headers_that_keep_it_to_itself(server):
    status, data, headers = get(server, "/")
    assert status == 200
    assert b"<html" in data.lower()
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"


def test_a_recording_that_cannot_be_written_is_said_and_the_video_goes_on(play, tmp_path):
    played = play()
    folder = tmp_path / "file"
    folder.write_text("in the way")
    with serving(played.engine, folder) as server:

        async def story(client: LiveClient) -> None:
            await client.start(A)
            with pytest.raises(UserError, match="cannot write"):
                await client.record()
            await take(client, 3)

        viewing(server, story)


def test_a_server_that_stops_completes_the_recording(play, tmp_path):
    played = play()
    with serving(played.engine, tmp_path) as server:

        async def story() -> None:
            client = await connect(server.address)
            await client.start(A)
            await client.record()
            await take(client, 12)
            await asyncio.to_thread(server.stop)
            await client.close(leave=False)

        asyncio.run(story())
    assert len(read_video(next(tmp_path.glob("live-*.mp4")))) >= 5
    assert not list(tmp_path.glob(".*"))
    assert len(list(tmp_path.glob("live-*"))) == 3


def test_without_a_server_the_client_says_what_to_start():
    with pytest.raises(UserError, match="is longlive serve running"):
        asyncio.run(connect("ws://127.0.0.1:9"))
