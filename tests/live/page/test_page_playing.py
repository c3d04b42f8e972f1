"""The video in headless Chromium: start, switch, transports, and what is measured."""

import re
import time

import pytest

pytest.importorskip("starlette", reason="the extra 'ui' is not installed")

from page_viewer import (
    BLUE,
    COLOR,
    GREEN,
    RED,
    send,
    wait_for_blocks,
    wait_for_color,
    wait_for_text,
)

# The time from the key until the color on screen has changed, seen from outside the page's code.
CLOCK = f"""
(to) => new Promise((done) => {{
  const color = {COLOR};
  let start = null;
  document.addEventListener('keydown', (e) => e.key === 'Enter' && (start ??= e.timeStamp), true);
  const look = () => (start !== null && color() === to)
    ? done(performance.now() - start) : requestAnimationFrame(look);
  look();
}})
"""


def test_enter_starts_the_video_with_the_chosen_settings(page, server):
    page.fill("#seed", "7")
    page.select_option("#recipe", "fast")
    page.check("input[value=blend]", force=True)
    page.fill("#blend", "3")
    send(page, RED)
    wait_for_color(page, "red")
    (start,) = server.sent("start")
    assert (start["prompt"], start["seed"], start["recipe"], start["steps"]) == (RED, 7, "fast", 4)
    assert start["transition"] == {"kind": "blend", "blocks": 3}


@pytest.mark.parametrize("transport", ["webcodecs", "mse", "jpeg"])
def test_every_transport_shows_the_video_and_tells_what_was_shown(server, new_page, transport):
    page = new_page(f"{server.url}?transport={transport}")
    page.wait_for_selector("#link[data-state=open]")
    assert server.sent("hello")[0]["transports"][0] == transport
    send(page, RED)
    wait_for_color(page, "red")
    send(page, BLUE)
    wait_for_color(page, "blue")
    wait_for_text(page, "#said", "On screen after")
    last = server.line[0].serial
    page.wait_for_timeout(1500)
    shown = [message["serial"] for message in server.sent("shown")]
    assert shown == sorted(set(shown))
    assert shown[-1] > last
    assert server.line[0].serial - shown[-1] <= 8


def test_a_transport_can_be_changed_while_the_video_plays(playing, server):
    playing.click("#stats")
    playing.select_option("#transport", "jpeg")
    wait_for_text(playing, "#link", "Connected")
    send(playing, BLUE)
    wait_for_color(playing, "blue")
    first, second = server.sent("hello")
    assert second["transports"][0] == "jpeg"
    assert "session" not in first
    assert second["session"] == server.line[0].token
    assert playing.input_value("#transport") == "jpeg"


def test_enter_switches_and_says_with_which_block(playing, server):
    server.delay_seconds = 0.5
    send(playing, BLUE)
    wait_for_text(playing, "#said", "begins with block")
    block = int(re.search(r"block (\d+)", playing.inner_text("#said"))[1])
    wait_for_color(playing, "blue")
    mark = playing.locator(".mark", has_text=BLUE)
    assert mark.evaluate("mark => mark.style.getPropertyValue('--at')") == str(block)
    assert "is-current" in mark.get_attribute("class")
    assert server.sent("prompt")[0]["transition"] == {"kind": "switch"}


def test_prompt_to_pixel_agrees_with_the_color_of_the_canvas(playing, server):
    server.delay_seconds = 0.4
    playing.click("#stats")

    def agree(prompt: str, to: str) -> bool:
        playing.evaluate(f"() => {{ window.measured = ({CLOCK})('{to}'); }}")
        send(playing, prompt)
        outside_ms = playing.evaluate("window.measured")
        playing.wait_for_timeout(400)
        inside_ms = 1000 * float(playing.inner_text("#m-pixel").split()[0])
        # Two refreshes of the screen and the two digits that are shown.
        return inside_ms == pytest.approx(outside_ms, rel=0.15, abs=45)

    # Whoever looks from outside may be held up on a busy machine, but not every time.
    assert any(agree(prompt, to) for prompt, to in [(BLUE, "blue"), (RED, "red")] * 2)


def test_of_prompts_before_one_block_the_last_is_timed(playing, server):
    server.delay_seconds = 0.6
    send(playing, GREEN)
    send(playing, BLUE)
    wait_for_color(playing, "blue")
    wait_for_text(playing, "#said", "On screen after")
    assert playing.locator(".mark", has_text=BLUE).count() == 1


def test_a_sample_is_sent_with_one_click(page, server):
    page.click("#samples button >> nth=2")
    wait_for_color(page, "green")
    assert page.input_value("#prompt") == GREEN


def test_ending_and_starting_again_clears_the_timeline(playing, server):
    wait_for_blocks(playing, 4)
    playing.click("#stop")
    wait_for_text(playing, "#chip", "Ended")
    send(playing, BLUE)
    wait_for_color(playing, "blue")
    assert playing.locator(".mark", has_text=RED).count() == 0


def test_a_burst_after_a_hiccup_is_counted_as_a_stall(page):
    stalls, rate = page.evaluate(
        """async () => {
          const { Meter } = await import('/js/meter.js');
          const meter = new Meter(16);
          let now = 0;
          for (let i = 0; i < 32; i++) meter.shown((now += 62.5));
          meter.shown((now += 300));
          meter.rest();
          meter.shown((now += 5000));
          for (let i = 0; i < 32; i++) meter.shown((now += 62.5));
          return [meter.stalls, meter.rate(now)];
        }"""
    )
    assert stalls == 1
    assert rate == pytest.approx(16)


def test_a_hidden_page_keeps_telling_what_was_shown(playing, server):
    other = playing.context.new_page()
    other.bring_to_front()
    before = len(server.sent("shown"))
    time.sleep(1.0)
    assert len(server.sent("shown")) > before


def test_a_prompt_that_is_shown_already_is_not_waited_for(playing, server):
    server.unchanged = True
    send(playing, RED)
    wait_for_text(playing, "#said", "is what the video shows")
