"""Rotary positions against complex numbers."""

import cmath

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longlive.attention.rope import angular_steps, axis_pairs, rotate, rotation


def slow_rotation(x_LND: Tensor, frames: list[float], rows: int, columns: int) -> Tensor:
    """One complex multiplication per pair of elements, in Python numbers."""
    pairs = x_LND.shape[-1] // 2
    side = pairs // 3
    steps = [
        [10000 ** (-2 * j / (2 * n)) for j in range(n)] for n in (pairs - 2 * side, side, side)
    ]
    out = torch.empty(x_LND.shape, dtype=torch.float64)
    places = [(f, y, x) for f in frames for y in range(rows) for x in range(columns)]
    for token, place in enumerate(places):
        angles = [place[axis] * step for axis in range(3) for step in steps[axis]]
        for head in range(x_LND.shape[1]):
            for j, angle in enumerate(angles):
                even, odd = x_LND[token, head, 2 * j : 2 * j + 2].tolist()
                turned = complex(even, odd) * cmath.exp(1j * angle)
                out[token, head, 2 * j] = turned.real
                out[token, head, 2 * j + 1] = turned.imag
    return out


@pytest.mark.parametrize("head_dim", [8, 12, 16])
def test_rotating_multiplies_neighboring_elements_as_complex_numbers(head_dim):
    frames = [0, 7, 1022]
    x = torch.randn(1, 3 * 2 * 3, 2, head_dim, dtype=torch.float64)
    turn = rotation(torch.tensor(frames), 2, 3, head_dim, x.dtype)
    expected = slow_rotation(x[0], frames, 2, 3)
    torch.testing.assert_close(rotate(x, turn)[0], expected, rtol=0, atol=1e-12)


def test_a_head_of_128_splits_into_22_21_and_21_pairs():
    assert axis_pairs(128) == (22, 21, 21)
    assert axis_pairs(32) == (6, 5, 5)
    assert axis_pairs(8) == (2, 1, 1)


def test_the_angular_steps_are_the_published_ones():
    time, side = angular_steps(22), angular_steps(21)
    assert time.dtype == torch.float64
    assert time[[0, 1, 2, 21]].tolist() == pytest.approx(
        [1.0, 0.657933224657568, 0.43287612810830584, 0.0001519911082952933], rel=1e-14
    )
    assert side[[0, 1, 20]].tolist() == pytest.approx(
        [1.0, 0.6449466771037624, 0.00015505157798326253], rel=1e-14
    )


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 500))
def test_only_the_difference_of_positions_matters(query_frame, key_frame, offset):
    generator = torch.Generator().manual_seed(query_frame)
    q, k = torch.randn(2, 1, 6, 2, 12, generator=generator, dtype=torch.float64)

    def scores(shift: int) -> Tensor:
        turns = [
            rotation(torch.tensor([frame + shift]), 2, 3, 12, q.dtype)
            for frame in (query_frame, key_frame)
        ]
        return torch.einsum("blnd,bsnd->bnls", rotate(q, turns[0]), rotate(k, turns[1]))

    torch.testing.assert_close(scores(offset), scores(0), rtol=0, atol=1e-10)


def test_another_distance_in_time_row_or_column_changes_the_score():
    ones = torch.ones(1, 2 * 2 * 2, 1, 12, dtype=torch.float64)
    turned = rotate(ones, rotation(torch.tensor([0, 1]), 2, 2, 12, ones.dtype))[0, :, 0]
    scores = (turned @ turned[0]).view(2, 2, 2)
    own = scores[0, 0, 0]
    assert scores[1, 0, 0] < own
    assert scores[0, 1, 0] < own
    assert scores[0, 0, 1] < own


def test_rotating_keeps_lengths_and_position_zero_keeps_everything():
    x = torch.randn(1, 6, 2, 12, dtype=torch.float64)
    turned = rotate(x, rotation(torch.tensor([5]), 2, 3, 12, x.dtype))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    still = rotate(x[:, :1], rotation(torch.tensor([0]), 1, 1, 12, x.dtype))
    assert torch.equal(still, x[:, :1])


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_a_rotation_is_as_wide_as_its_tensors_and_at_least_float32(dtype, wide):
    turn = rotation(torch.tensor([3]), 2, 3, 12, dtype)
    assert turn.cos.dtype == turn.sin.dtype == wide
    x = torch.randn(1, 6, 2, 12).to(dtype)
    turned = rotate(x, turn)
    assert turned.dtype == dtype
    exact = rotate(x.double(), rotation(torch.tensor([3]), 2, 3, 12, torch.float64))
    if dtype == torch.bfloat16:  # rounded once, at the end
        assert (turned != exact.bfloat16()).float().mean() < 0.01
    torch.testing.assert_close(turned.double(), exact, rtol=2**-8, atol=2**-8)


def test_positions_past_the_published_table_go_on_turning():
    x = torch.randn(1, 1, 1, 12, dtype=torch.float64)
    turn = rotation(torch.tensor([50_000]), 1, 1, 12, x.dtype)
    expected = slow_rotation(x[0], [50_000], 1, 1)
    torch.testing.assert_close(rotate(x, turn)[0], expected, rtol=0, atol=1e-10)


def test_fractional_positions_are_allowed():
    half = rotation(torch.tensor([0.5]), 1, 1, 12, torch.float64)
    assert half.cos[0, 0, 0].item() == pytest.approx(cmath.cos(0.5).real, abs=1e-15)
