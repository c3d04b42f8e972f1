"""The program that makes the README's pictures of the page."""

import io

import pytest

pytest.importorskip("starlette", reason="the extra 'ui' is not installed")

import numpy as np
import screenshots
from page_viewer import BLUE, GREEN, RED
from PIL import Image


def test_the_picture_shows_two_prompts_and_a_branch(server, new_page, tmp_path):
    page = new_page("about:blank", color_scheme="dark")
    screenshots.play(page, server.url, (RED, BLUE, GREEN))
    assert page.locator(".mark").all_inner_texts() == [RED, BLUE, GREEN]
    assert page.locator(".lane").count() == 2
    assert page.is_visible("#overlay")
    path = tmp_path / "images" / "live.png"
    assert screenshots.save(page.screenshot(), path) == path.stat().st_size
    with Image.open(path) as picture:
        assert picture.size == (1200, 800)


def test_a_picture_that_makes_a_large_file_is_made_smaller(tmp_path):
    grain_HWC = np.random.default_rng(0).integers(0, 4, (400, 500, 3), np.uint8)
    x_HWC = grain_HWC + np.linspace(0, 250, 500, dtype=np.uint8)[:, None]
    file = io.BytesIO()
    Image.fromarray(x_HWC).save(file, "png")
    assert len(file.getvalue()) > screenshots.MAX_BYTES
    assert screenshots.save(file.getvalue(), tmp_path / "a.png") <= screenshots.MAX_BYTES
