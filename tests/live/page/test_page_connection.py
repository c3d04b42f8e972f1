"""What the page says and does when the server is gone, busy or complains."""

import pytest

pytest.importorskip("starlette", reason="the extra 'ui' is not installed")

from fake_live import FakeLive
from page_viewer import (
    BLUE,
    RED,
    blocks,
    color,
    send,
    wait_for_blocks,
    wait_for_color,
    wait_for_text,
)

from longlive.live.protocol import Ended, Error


def test_a_lost_connection_is_told_and_comes_back_to_the_same_video(playing, server):
    wait_for_blocks(playing, 4)
    server.drop(refuse=True)
    wait_for_text(playing, "#link", "trying again")
    assert playing.is_disabled("#send")
    wait_for_text(playing, "#chip", "trying again")
    before = blocks(playing)
    server.accept()
    wait_for_text(playing, "#link", "Connected")
    wait_for_blocks(playing, before + 2)
    assert color(playing) == "red"
    send(playing, BLUE)
    wait_for_color(playing, "blue")
    ids = [message["id"] for message in server.received if "id" in message]
    assert ids == sorted(set(ids))


def test_after_a_reload_the_timeline_is_there_again(playing, server):
    wait_for_blocks(playing, 4)
    playing.reload()
    wait_for_blocks(playing, 5)
    assert playing.locator(".mark", has_text=RED).count() == 1
    wait_for_color(playing, "red")


def test_a_session_that_has_ended_is_replaced_by_a_new_one(playing, server):
    server.forget()
    playing.wait_for_function("() => document.querySelectorAll('.cell').length === 0")
    wait_for_text(playing, "#send-label", "Start")
    send(playing, BLUE)
    wait_for_color(playing, "blue")


def test_another_window_takes_over_and_gives_back(playing, server):
    other = playing.context.new_page()
    token = playing.evaluate("sessionStorage.getItem('longlive-session')")
    other.add_init_script(f"sessionStorage.setItem('longlive-session', '{token}')")
    other.goto(server.url)
    playing.wait_for_selector("#again:not([hidden])")
    other.close()
    playing.click("#again")
    wait_for_text(playing, "#link", "Connected")


def test_a_second_viewer_waits_in_line_and_gets_a_turn(playing, new_page, server):
    second = new_page(server.url)
    wait_for_text(second, "#link", "In line: 1 of 1")
    wait_for_text(second, "#poster-title", "You are next")
    assert second.is_disabled("#send")
    assert second.is_hidden("#start")
    server.leave_first()
    wait_for_text(second, "#link", "Connected")
    send(second, BLUE)
    wait_for_color(second, "blue")


def test_errors_are_told_as_sentences_and_go_away(playing, server):
    server.say(Error("failed", "the disk is full; free some space"))
    wait_for_text(playing, "#trouble", "The disk is full; free some space.")
    send(playing, BLUE)
    playing.wait_for_selector("#trouble", state="hidden")


def test_without_the_token_the_page_says_what_to_do(new_page):
    with FakeLive(token="secret") as server:
        page = new_page(server.url)
        wait_for_text(page, "#poster-title", "refuses")
        wait_for_text(page, "#poster-text", "with its token")
        page.goto(f"{server.url}?token=secret")
        wait_for_text(page, "#link", "Connected")


def test_who_lost_the_turn_does_not_queue_again_without_being_asked(playing, server):
    server.say(Ended("idle", "others wait and nothing was playing; come back"))
    server.forget()
    wait_for_text(playing, "#link", "others wait")
    playing.wait_for_timeout(700)
    assert len(server.sent("hello")) == 1
    playing.click("#again")
    wait_for_text(playing, "#link", "Connected")
    send(playing, BLUE)
    wait_for_color(playing, "blue")
