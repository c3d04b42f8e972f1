"""A headless browser, a fake server, and a page that must stay free of errors."""

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fake_live import FakeLive
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Root, as which a container runs, has no sandbox of Chromium's.
OPTIONS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--autoplay-policy=no-user-gesture-required",
]
WAIT_MS = 15_000


# Of one file: while the driver lives its thread has a running event loop, and the tests of the
# server need one of their own.
@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium with H.264: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def server() -> "Iterator[FakeLive]":
    from fake_live import FakeLive

    with FakeLive() as server:
        yield server


@pytest.fixture
def new_page(browser: "Browser") -> "Iterator[Callable[..., Page]]":
    """Opens pages with a profile of their own; at the end none may have complained."""
    complaints: list[str] = []
    contexts = []

    def open_page(url: str, **options: object) -> "Page":
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: _note(line, complaints))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def _note(line: object, complaints: list[str]) -> None:
    # The browser itself reports a socket that was refused, and a server that is gone.
    is_refusal = "WebSocket" in line.text or "healthz" in line.location["url"]
    if line.type == "error" and not is_refusal:
        complaints.append(f"{line.text} {line.location}")


@pytest.fixture
def page(server: "FakeLive", new_page: "Callable[..., Page]") -> "Page":
    page = new_page(server.url)
    page.wait_for_selector("#link[data-state=open]")
    return page


@pytest.fixture
def playing(page: "Page") -> "Page":
    """A page whose video is red."""
    from page_viewer import RED, send, wait_for_color

    send(page, RED)
    wait_for_color(page, "red")
    return page
