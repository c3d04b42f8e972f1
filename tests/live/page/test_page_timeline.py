"""Pausing, going back, branching and keeping, with mouse and keyboard."""

import pytest

pytest.importorskip("starlette", reason="the extra 'ui' is not installed")

from page_viewer import (
    BLUE,
    GREEN,
    blocks,
    color,
    send,
    wait_for_blocks,
    wait_for_color,
    wait_for_text,
)


def test_space_pauses_and_goes_on(playing, server):
    playing.keyboard.press("Escape")
    playing.keyboard.press("Space")
    wait_for_text(playing, "#chip", "Paused")
    paused_at = blocks(playing)
    playing.wait_for_timeout(600)
    assert blocks(playing) == paused_at
    playing.keyboard.press("Space")
    wait_for_blocks(playing, paused_at + 2)
    assert not playing.is_visible("#chip")


def test_the_time_of_a_pause_is_no_stall(playing, server):
    playing.keyboard.press("Escape")
    playing.keyboard.press("m")

    def stalls_of_a_pause() -> int:
        before = int(playing.inner_text("#m-stalls"))
        playing.keyboard.press("Space")
        wait_for_text(playing, "#chip", "Paused")
        playing.wait_for_timeout(400)
        playing.keyboard.press("Space")
        wait_for_blocks(playing, blocks(playing) + 2)
        playing.wait_for_timeout(300)
        return int(playing.inner_text("#m-stalls")) - before

    # A busy machine has stalls of its own, but not with every pause.
    assert any(stalls_of_a_pause() == 0 for _ in range(4))


def test_letters_typed_into_the_prompt_are_no_shortcuts(playing, server):
    playing.focus("#prompt")
    playing.keyboard.type("r m f t / ?")
    assert not server.sent("record")
    assert playing.is_hidden("#overlay")
    assert playing.is_hidden("#help")


def test_single_keys_can_be_turned_off(page):
    page.keyboard.press("?")
    page.uncheck("#single-keys")
    page.keyboard.press("Escape")
    page.keyboard.press("m")
    assert page.is_hidden("#overlay")


def test_a_click_goes_back_and_a_prompt_branches_there(playing, server):
    wait_for_blocks(playing, 6)
    playing.check("input[value=cut]", force=True)
    playing.click(".cell[data-block='3']")
    wait_for_text(playing, "#chip", "block 3")
    wait_for_text(playing, "#send-label", "Branch")
    assert playing.is_visible("#preview")
    assert playing.locator(".ghost").count() == 1
    send(playing, GREEN)
    wait_for_color(playing, "green")
    (back,) = server.sent("back")
    expected = {"branch": 0, "block": 3, "prompt": GREEN, "transition": {"kind": "cut"}}
    assert back.items() >= expected.items()
    wait_for_blocks(playing, 2, lane=1)
    wait_for_text(playing, "#said", "On screen after")
    first = playing.locator(".lane").nth(1).locator(".cell").first
    assert first.get_attribute("data-block") == "3"
    off = playing.locator(".lane").first.locator(".cell.is-off")
    assert off.first.get_attribute("data-block") == "3"
    assert playing.locator(".lane").nth(1).locator(".fork").count() == 1
    assert playing.locator(".ghost").count() == 0
    assert playing.is_hidden("#preview")


def test_going_back_works_with_the_keyboard_alone(playing, server):
    wait_for_blocks(playing, 5)
    playing.keyboard.press("Escape")
    playing.keyboard.press("t")
    playing.keyboard.press("Home")
    playing.keyboard.press("ArrowRight")
    playing.keyboard.press("ArrowRight")
    playing.keyboard.press("Enter")
    wait_for_text(playing, "#chip", "block 2")
    # The prompt box has the focus and its text is selected.
    playing.keyboard.type(BLUE)
    playing.keyboard.press("Enter")
    wait_for_color(playing, "blue")
    assert server.sent("back")[0]["block"] == 2


def test_the_play_button_goes_on_from_the_block_without_another_prompt(playing, server):
    wait_for_blocks(playing, 5)
    playing.click(".cell[data-block='2']")
    wait_for_text(playing, "#chip", "block 2")
    playing.click("#pause")
    wait_for_blocks(playing, 2, lane=1)
    assert "prompt" not in server.sent("back")[0]
    assert color(playing) == "red"


def test_escape_returns_to_where_the_video_was(playing, server):
    wait_for_blocks(playing, 5)
    playing.click(".cell[data-block='1']")
    wait_for_text(playing, "#chip", "block 1")
    playing.wait_for_timeout(300)
    stopped_at = blocks(playing)
    playing.keyboard.press("Escape")
    assert playing.is_visible("#chip")
    playing.keyboard.press("Escape")
    wait_for_blocks(playing, stopped_at + 2)
    assert playing.locator(".lane").count() == 1
    assert playing.is_hidden("#preview")
    assert not server.sent("back")


def test_recording_offers_its_files(playing, server):
    playing.keyboard.press("Escape")
    playing.keyboard.press("r")
    wait_for_text(playing, "#record-label", "Stop")
    playing.keyboard.press("r")
    playing.wait_for_selector("#files a")
    names = playing.locator("#files a").evaluate_all("all => all.map((a) => a.download)")
    assert names == ["a.mp4", "a.json", "a.png"]
    with playing.expect_download() as download:
        playing.click("#files a >> nth=0")
    assert download.value.suggested_filename == "a.mp4"


def test_the_session_is_downloaded_at_once(playing):
    with playing.expect_download() as download:
        playing.click("#save-session")
    assert download.value.suggested_filename == "a.json"
