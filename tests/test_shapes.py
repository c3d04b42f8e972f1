"""The prompts of the shapes world, and its outlines against a slow rasterizer of the same facts."""

import math

import numpy as np
import pytest
import torch

from longlive.errors import UserError
from longlive.shapes import (
    OUTLINES,
    ShapePrompt,
    all_prompts,
    coverage,
    held_out_prompts,
    is_held_out,
    parse,
    training_prompts,
)

SIDE = 96
FINE = 8


def corners(shape: str, r: float) -> list[tuple[float, float]]:
    """Corners at rotation 0, in order; y grows down."""
    if shape == "square":
        h = 0.886 * r
        return [(-h, -h), (h, -h), (h, h), (-h, h)]
    if shape == "triangle":
        angles, radii = [-90, 30, 150], [1.25 * r] * 3
    else:
        angles = [-90 + 36 * k for k in range(10)]
        radii = [(1.35 if k % 2 == 0 else 0.55) * r for k in range(10)]
    return [
        (d * math.cos(math.radians(a)), d * math.sin(math.radians(a)))
        for a, d in zip(angles, radii, strict=True)
    ]


def is_inside(shape: str, x: np.ndarray, y: np.ndarray, r: float, rotation: float) -> np.ndarray:
    length = np.hypot(x, y)
    if shape == "circle":
        return length < r
    if shape == "ring":
        return (length < 1.15 * r) & (length > 0.65 * r)
    # Turn the points back: a clockwise turn by a takes (1, 0) to (cos a, sin a).
    c, s = math.cos(rotation), math.sin(rotation)
    x, y = c * x + s * y, -s * x + c * y
    points = corners(shape, r)
    crossings = np.zeros(x.shape, dtype=int)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if y0 == y1:
            continue
        spans = (y0 > y) != (y1 > y)
        crossings += spans & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return crossings % 2 == 1


def rasterized(
    shape: str, cx: float, cy: float, r: float, rotation: float, side: int = SIDE
) -> np.ndarray:
    """Share of every pixel that the shape covers on the torus, from 8 x 8 samples a pixel."""
    at = (np.arange(side * FINE) + 0.5) / (side * FINE)
    x, y = np.meshgrid(at - cx, at - cy)
    hits = np.zeros(x.shape, dtype=bool)
    for right in (-1, 0, 1):
        for down in (-1, 0, 1):
            hits |= is_inside(shape, x + right, y + down, r, rotation)
    return hits.reshape(side, FINE, side, FINE).mean(axis=(1, 3))


@pytest.mark.parametrize("rotation", [0.0, 0.7])
@pytest.mark.parametrize("radius", [0.065, 0.18])
@pytest.mark.parametrize("shape", list(OUTLINES))
def test_coverage_agrees_with_a_slow_rasterizer(shape, radius, rotation):
    cx, cy = 0.503, 0.487
    at = (torch.arange(SIDE) + 0.5) / SIDE
    r, turn = torch.tensor(radius), torch.tensor(rotation)
    drawn = coverage(shape, at - cx, at[:, None] - cy, r, turn, 1 / SIDE).numpy()
    slow = rasterized(shape, cx, cy, radius, rotation)
    # A distance rounds off the pixel at the very tip of a star or triangle.
    assert np.abs(drawn - slow).max() < 0.4
    assert np.abs(drawn - slow).sum() < 0.02 * slow.sum() + 1
    assert drawn.sum() == pytest.approx(slow.sum(), rel=0.012)


@pytest.mark.parametrize("shape", list(OUTLINES))
def test_the_area_of_an_outline_is_that_of_the_shape(shape):
    slow = rasterized(shape, 0.5, 0.5, 0.18, 0.3).mean()
    assert OUTLINES[shape].area * 0.18**2 == pytest.approx(slow, rel=2e-3)


def test_there_are_2160_prompts_and_251_are_held_out():
    assert len({p.text for p in all_prompts()}) == 2160
    assert len(held_out_prompts()) == 251
    assert len(training_prompts()) == 2160 - 251
    assert not set(held_out_prompts()) & set(training_prompts())


def test_a_prompt_is_held_out_when_the_first_byte_of_its_hash_is_below_26():
    assert is_held_out("a small red ring moves up over snow")  # 0x19...
    assert not is_held_out("a small red ring bounces over grey")  # 0x1a...


def test_every_prompt_reads_back_from_its_text():
    assert all(parse(prompt.text) == prompt for prompt in all_prompts())


def test_a_prompt_reads_as_the_grammar_says():
    prompt = ShapePrompt("small", "red", "star", "stays still", "night")
    assert prompt.text == "a small red star stays still over night"
    assert parse(" a small red star stays still over night\n") == prompt


@pytest.mark.parametrize(
    ("text", "slot", "word"),
    [
        ("a tiny red star spins over night", "size", "small, large"),
        ("a small pink star spins over night", "colour", "magenta"),
        ("a small red heart spins over night", "shape", "triangle"),
        ("a small red star flies over night", "motion", "moves left"),
        ("a small red star spins over lava", "background", "sand"),
    ],
)
def test_a_wrong_word_is_named_with_its_slot_and_the_allowed_words(text, slot, word):
    with pytest.raises(UserError, match=rf"not a {slot}: use one of .*{word}"):
        parse(text)


@pytest.mark.parametrize("text", ["", "a small red star", "the small red star spins over night"])
def test_a_text_outside_the_grammar_is_refused_with_the_grammar(text):
    with pytest.raises(UserError, match="a {size} {colour} {shape} {motion} over {background}"):
        parse(text)
