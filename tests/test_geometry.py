"""Pixels, latent frames, tokens and blocks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlive.errors import UserError
from longlive.geometry import FPS, Geometry, frames_of, latent_frames_for_seconds

WAN = Geometry(480, 832)


def test_the_published_size_has_the_published_numbers():
    assert (WAN.latent_height, WAN.latent_width) == (60, 104)
    assert (WAN.grid_height, WAN.grid_width) == (30, 52)
    assert WAN.tokens_per_latent_frame == 1560
    assert WAN.block_shape(2) == (2, 3, 16, 60, 104)


def test_height_and_width_are_not_confused_by_another_patch_or_block():
    geometry = Geometry(32, 24, latent_channels=4, patch=1, block_latent_frames=5)
    assert geometry.block_shape(1) == (1, 5, 4, 4, 3)
    assert (geometry.grid_height, geometry.grid_width) == (4, 3)
    assert geometry.tokens_per_latent_frame == 12


@pytest.mark.parametrize(
    ("latent_frames", "frames"), [(0, 0), (1, 1), (3, 9), (6, 21), (21, 81), (120, 477), (240, 957)]
)
def test_the_first_latent_frame_is_one_frame_and_every_later_one_is_four(latent_frames, frames):
    assert frames_of(latent_frames) == frames


@settings(deadline=None)
@given(st.floats(1e-3, 600), st.integers(1, 8))
def test_a_length_in_seconds_is_the_fewest_whole_blocks_that_play_for_it(seconds, block):
    latent_frames = latent_frames_for_seconds(seconds, block)
    assert latent_frames % block == 0
    assert frames_of(latent_frames) >= seconds * FPS - 1e-6
    assert frames_of(latent_frames - block) < seconds * FPS


def test_a_length_that_ends_on_a_frame_is_not_rounded_up_by_float_noise():
    assert latent_frames_for_seconds(81 / 16, 3) == 21
    assert latent_frames_for_seconds(81 / 16 + 1e-12, 3) == 21
    assert latent_frames_for_seconds(82 / 16, 3) == 24


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_length_that_is_not_positive_is_a_user_error(seconds):
    with pytest.raises(UserError, match="seconds must be positive"):
        latent_frames_for_seconds(seconds, 3)


@pytest.mark.parametrize("size", [(480, 833), (481, 832), (0, 832), (-16, 16), (8, 16)])
def test_a_size_that_is_not_whole_tokens_is_a_user_error_that_names_the_unit(size):
    with pytest.raises(UserError, match="multiples of 16"):
        Geometry(*size)


def test_a_smaller_patch_allows_smaller_sizes():
    assert Geometry(8, 24, patch=1).tokens_per_latent_frame == 3


def test_a_block_of_no_latent_frames_is_a_user_error():
    with pytest.raises(UserError, match="at least one latent frame"):
        Geometry(480, 832, block_latent_frames=0)
