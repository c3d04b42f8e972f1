"""Pictures of the page of ``longlive serve`` for the README: desktop and phone, light and dark.

    python tools/screenshots.py
    python tools/screenshots.py --address http://localhost:7860 --output docs/images

Without an address it serves the embedded model itself. It needs Chromium (``apt-get install
chromium``) and playwright, which drives it. The page is shown in a moment worth showing: two
prompts, a way back, a branch, and the measurements.
"""

import argparse
import io
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROMPTS = (
    "a large red circle bounces over night",
    "a small blue star spins over snow",
    "a large yellow square circles over sand",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZES: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1360, "height": 850}},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 1.5,
        "has_touch": True,
        "is_mobile": True,
    },
}
SCHEMES = ("light", "dark")
MAX_BYTES = 200_000
WAIT_MS = 120_000
BLOCKS = 5
BACK_TO = 3


@contextmanager
def served() -> Iterator[str]:
    """Serve the embedded model on a free port, and return its address."""
    # The next page waits in line until the session of the one before has ended.
    command = [sys.executable, "-m", "longlive", "serve", "--port", "0", "--grace", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    said: list[str] = []
    try:
        while (line := lines.get(timeout=WAIT_MS / 1000)) is not None:
            said.append(line)
            if found := re.search(r"http://\S+", line):
                yield found[0]
                break
        else:
            raise SystemExit("the server did not start:\n" + "".join(said))
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def chromium() -> "Iterator[Browser]":
    """Start the system's Chromium: it has H.264, which playwright's own may lack."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise SystemExit("no Chromium: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def play(page: "Page", address: str, prompts: Sequence[str] = PROMPTS) -> None:
    """Bring a page to the moment of the picture."""
    page.set_default_timeout(WAIT_MS)
    page.goto(address)
    page.wait_for_selector("#link[data-state=open]")
    page.click("#stats")
    first, second, third = prompts
    send(page, first)
    wait_for_blocks(page, BLOCKS)
    send(page, second)
    wait_until_shown(page, "On screen after")
    wait_for_blocks(page, 2 * BLOCKS)
    page.click(f".cell[data-block='{BACK_TO}']")
    page.wait_for_selector(".is-held")
    send(page, third)
    wait_until_shown(page, "On screen after")
    wait_for_blocks(page, BLOCKS, lane=1)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(1000)


def send(page: "Page", prompt: str) -> None:
    """Write a prompt and press Enter."""
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")


def wait_for_blocks(page: "Page", blocks: int, lane: int = 0) -> None:
    """Wait until a branch has so many blocks."""
    page.wait_for_function(
        "([lane, blocks]) => document.querySelectorAll('.lane')[lane]"
        "?.querySelectorAll('.cell').length >= blocks",
        arg=[lane, blocks],
    )


def wait_until_shown(page: "Page", text: str) -> None:
    """Wait for what the page says about the last prompt."""
    page.wait_for_function(
        "text => document.querySelector('#said').textContent.includes(text)", arg=text
    )


def save(png: bytes, path: Path) -> int:
    """Write a picture, smaller where its file would be too large.

    Returns:
        Its bytes.
    """
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    # Fewer pixels: with fewer colors the video would get steps.
    while path.stat().st_size > MAX_BYTES:
        picture = picture.resize((picture.width * 4 // 5, picture.height * 4 // 5))
        picture.save(path, optimize=True)
    return path.stat().st_size


def main(argv: Sequence[str] | None = None) -> None:
    """Make the four pictures."""
    parser = argparse.ArgumentParser(description="Pictures of the page for the README.")
    parser.add_argument("--address", help="of a server that runs already")
    parser.add_argument("--output", type=Path, default=Path("docs/images"), metavar="FOLDER")
    args = parser.parse_args(argv)
    server = nullcontext(args.address) if args.address else served()
    with server as address, chromium() as browser:
        for size, options in SIZES.items():
            for scheme in SCHEMES:
                page = browser.new_page(color_scheme=scheme, **options)
                play(page, address)
                path = args.output / f"live_{size}_{scheme}.png"
                print(f"{path}: {save(page.screenshot(), path) // 1000} kB")
                page.close()


if __name__ == "__main__":
    main()
