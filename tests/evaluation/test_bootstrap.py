"""Intervals by resampling prompts: right in the middle, wide enough, and the same every time."""

import numpy as np
import pytest

from longlive.evaluation.bootstrap import estimate


def alone(values):
    """One video a prompt, one value a video."""
    return {index: [[value]] for index, value in enumerate(values)}


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = estimate(alone(values))
    error = values.std() / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.03)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.03)
    assert (found.videos, found.prompts) == (400, 400)


def test_the_same_values_give_the_same_interval():
    values = alone(np.random.default_rng(2).random(30))
    assert estimate(values) == estimate(values)


def test_more_seeds_of_the_same_prompts_are_no_independent_draws():
    values = np.random.default_rng(3).normal(0, 1, 40)
    once = estimate(alone(values))
    thrice = estimate({index: [[value]] * 3 for index, value in enumerate(values)})
    assert thrice.videos == 120
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def test_95_of_100_intervals_hold_the_truth():
    source = np.random.default_rng(4)
    held = 0
    for _ in range(100):
        found = estimate(alone(source.random(60) < 0.7))
        held += found.low <= 0.7 <= found.high
    assert 88 <= held <= 99


def test_a_median_pools_all_values_and_a_psnr_the_squared_errors():
    lags = {0: [[0.0, 2.0, 100.0]], 1: [[4.0], []]}
    assert estimate(lags, "median").value == 3
    assert estimate(lags, "median").videos == 2
    found = estimate(alone([0.01, 0.001]), "psnr")
    assert found.value == pytest.approx(-10 * np.log10(0.0055))
    assert found.low <= found.value <= found.high
    assert estimate(alone([0.0, 0.0]), "psnr").value == 100


def test_nothing_has_no_estimate():
    assert estimate({}) is None
    assert estimate({0: [[]]}) is None
