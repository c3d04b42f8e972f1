"""What a person does with the page, and sees on it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

RED, BLUE, GREEN = "a large red circle", "a small blue star", "a green ring spins"

# Draws whatever shows the video into one pixel.
COLOR = """
() => {
  const screen = document.querySelector('#screen > *');
  if (!screen) return null;
  const dot = new OffscreenCanvas(1, 1).getContext('2d');
  const [w, h] = [screen.videoWidth ?? screen.width, screen.videoHeight ?? screen.height];
  dot.drawImage(screen, w / 4, h / 4, w / 2, h / 4, 0, 0, 1, 1);
  const [r, g, b] = dot.getImageData(0, 0, 1, 1).data;
  const most = Math.max(r, g, b);
  if (most - Math.min(r, g, b) < 60) return 'gray';
  if (r > 0.8 * most && g > 0.8 * most) return 'yellow';
  return most === r ? 'red' : most === g ? 'green' : 'blue';
}
"""


def send(page: "Page", prompt: str) -> None:
    """Type a prompt and press Enter, with the keyboard alone."""
    page.focus("#prompt")
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(prompt)
    page.keyboard.press("Enter")


def wait_for_color(page: "Page", color: str) -> None:
    page.wait_for_function(f"color => ({COLOR})() === color", arg=color)


def color(page: "Page") -> str:
    return page.evaluate(COLOR)


def wait_for_blocks(page: "Page", blocks: int, lane: int = 0) -> None:
    page.wait_for_function(
        "([lane, n]) => document.querySelectorAll('.lane')[lane]"
        "?.querySelectorAll('.cell').length >= n",
        arg=[lane, blocks],
    )


def wait_for_text(page: "Page", selector: str, text: str) -> None:
    page.wait_for_function(
        "([at, text]) => document.querySelector(at).textContent.includes(text)",
        arg=[selector, text],
    )


def blocks(page: "Page", lane: int = 0) -> int:
    return page.locator(f".lane >> nth={lane} >> .cell").count()
