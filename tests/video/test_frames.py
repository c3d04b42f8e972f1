"""From floating point to 8 bits."""

import torch

from longlive.video.frames import to_uint8


def test_every_level_survives_the_way_to_floating_point_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 255), levels)


def test_values_are_rounded_and_values_outside_are_clamped():
    x = torch.tensor([-0.2, 0.49 / 255, 0.51 / 255, 1.0, 1.7])
    assert to_uint8(x).tolist() == [0, 0, 1, 255, 255]


def test_the_given_frames_are_not_changed():
    x = torch.full((1, 3, 2, 2), 0.25)
    to_uint8(x)
    assert (x == 0.25).all()
