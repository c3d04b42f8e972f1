"""The page against the real server, with a model of random weights that is far faster than life."""

import asyncio
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra 'ui' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'ui' is not installed")

import av
import uvicorn
from nano_model import SETTINGS, write_nano_model
from page_viewer import send, wait_for_blocks, wait_for_text

from longlive.live.access import Access
from longlive.live.engine import SessionEngine
from longlive.live.host import LiveHost
from longlive.live.server import build_app
from longlive.modules.longlive import LongLive

FIRST, SECOND, THIRD = "a large red circle", "a small blue circle", "a small red square spins"


@dataclass(frozen=True)
class RealServer:
    url: str
    host: LiveHost
    loop: asyncio.AbstractEventLoop

    def drop(self) -> None:
        """Close every connection, as when a network fails."""

        def close() -> None:
            for connection in list(self.host.connections):
                connection.end(None, 1012)

        self.loop.call_soon_threadsafe(close)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nano_model(tmp_path_factory.mktemp("nano"))


@pytest.fixture
def real(weights: Path, tmp_path: Path) -> Iterator[RealServer]:
    engine = SessionEngine(LongLive(weights=str(weights), seconds=1, **SETTINGS))
    host = LiveHost(engine, tmp_path, samples=(FIRST, SECOND))
    app = build_app(host, Access("127.0.0.1"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    started: queue.Queue[RealServer] = queue.Queue()

    async def main() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        started.put(RealServer(f"http://127.0.0.1:{port}/", host, asyncio.get_running_loop()))
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    yield started.get(timeout=10)
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def page(real, new_page):
    page = new_page(real.url)
    page.wait_for_selector("#link[data-state=open]")
    return page


def wait_for_pace(page) -> None:
    """Until the overlay reads a rate that only a playing video has."""
    page.wait_for_function("() => Number(document.querySelector('#m-fps').textContent) > 12")


@pytest.mark.parametrize("transport", ["webcodecs", "mse", "jpeg"])
def test_every_transport_plays_at_its_pace_and_times_a_switch(real, new_page, transport):
    page = new_page(f"{real.url}?transport={transport}")
    page.wait_for_selector("#link[data-state=open]")
    assert page.input_value("#transport") == transport
    page.keyboard.press("m")
    send(page, FIRST)
    wait_for_pace(page)
    send(page, SECOND)
    wait_for_text(page, "#said", "On screen after")
    marks = page.locator(".mark").all_inner_texts()
    assert marks == [FIRST, SECOND]
    wait_for_text(page, "#m-pixel", " s")


def test_going_back_and_branching_keeps_both_videos(page, real):
    send(page, FIRST)
    wait_for_blocks(page, 4)
    page.click(".cell[data-block='2']")
    wait_for_text(page, "#chip", "block 2")
    send(page, THIRD)
    wait_for_blocks(page, 2, lane=1)
    wait_for_text(page, "#said", "On screen after")
    lanes = page.locator(".lane")
    assert lanes.nth(0).locator(".cell").count() >= 4
    assert lanes.nth(1).locator(".cell").first.get_attribute("data-block") == "2"
    assert lanes.nth(1).locator(".mark").all_inner_texts() == [THIRD]
    off = lanes.nth(0).locator(".cell.is-off").first
    assert off.get_attribute("data-block") == "2"


def test_looking_back_leaves_nothing_behind(page, real):
    send(page, FIRST)
    wait_for_blocks(page, 4)
    for block in (1, 2, 0):
        page.click(f".cell[data-block='{block}']")
        wait_for_text(page, "#chip", f"block {block}")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    wait_for_blocks(page, 7)
    assert page.locator(".lane").count() == 1
    assert page.is_hidden("#chip")
    assert page.is_hidden("#trouble")


def test_a_pause_stops_the_clock(page, real):
    send(page, FIRST)
    wait_for_text(page, "#clock", "0:01")
    page.click("#pause")
    wait_for_text(page, "#chip", "Paused")
    page.wait_for_timeout(1300)
    assert page.inner_text("#clock") in ("0:01", "0:02")
    page.click("#pause")
    wait_for_text(page, "#clock", "0:03")


def test_a_recording_opens_with_its_prompts_as_chapters(page, real, tmp_path):
    send(page, FIRST)
    wait_for_blocks(page, 2)
    page.click("#record")
    wait_for_text(page, "#record-label", "Stop")
    page.wait_for_timeout(700)
    send(page, SECOND)
    wait_for_text(page, "#said", "On screen after")
    page.wait_for_timeout(700)
    page.click("#record")
    page.wait_for_selector("#files a >> nth=2")
    names = []
    for link in page.locator("#files a").all():
        with page.expect_download() as download:
            link.click()
        names.append(tmp_path / "got" / download.value.suggested_filename)
        download.value.save_as(names[-1])
    assert [name.suffix for name in names] == [".mp4", ".json", ".png"]
    with av.open(names[0]) as video:
        assert [chapter["metadata"]["title"] for chapter in video.chapters()] == [FIRST, SECOND]
        assert sum(1 for _ in video.decode(video=0)) > 16
    assert FIRST in names[1].read_text()
    assert names[2].read_bytes().startswith(b"\x89PNG")


def test_the_video_goes_on_after_the_server_drops_the_socket(page, real):
    send(page, FIRST)
    wait_for_blocks(page, 3)
    page.evaluate(
        """() => {
          window.states = [];
          const link = document.querySelector('#link');
          new MutationObserver(() => states.push(link.dataset.state))
            .observe(link, { attributes: true });
        }"""
    )
    real.drop()
    page.wait_for_function("() => states.includes('lost') && states.at(-1) === 'open'")
    wait_for_blocks(page, 5)
    assert page.locator(".mark").all_inner_texts() == [FIRST]
    send(page, SECOND)
    wait_for_text(page, "#said", "On screen after")


def test_a_second_viewer_gets_the_model_when_the_first_leaves(page, new_page, real):
    send(page, FIRST)
    second = new_page(real.url)
    wait_for_text(second, "#poster-title", "You are next")
    token = page.evaluate("sessionStorage.getItem('longlive-session')")
    session = real.host._sessions[token]
    real.loop.call_soon_threadsafe(real.host.leave, session)
    wait_for_text(second, "#link", "Connected")
    send(second, SECOND)
    wait_for_text(second, "#said", "First frame after")


def test_ending_keeps_the_timeline_to_go_back_to(page, real):
    send(page, FIRST)
    wait_for_blocks(page, 4)
    page.click("#stop")
    wait_for_text(page, "#chip", "Ended")
    page.click(".cell[data-block='2']")
    wait_for_text(page, "#chip", "block 2")
    send(page, SECOND)
    wait_for_blocks(page, 1, lane=1)
