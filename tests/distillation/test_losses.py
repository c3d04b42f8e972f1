"""Losses as functions of tensors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longlive.distillation.losses import (
    deception_loss,
    discriminator_loss,
    guided,
    matching_gradient,
    matching_loss,
    mean_over,
    pseudo_huber_loss,
    regression_loss,
    velocity_loss,
)

SHAPE = (2, 6, 3, 2, 2)


def some(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_gradient_of_the_matching_loss_is_the_given_one_over_the_number_of_elements():
    x, g = some(0).requires_grad_(), some(1)
    [found] = torch.autograd.grad(matching_loss(x, g), x)
    assert torch.allclose(found, g / x.numel())


def test_elements_that_do_not_count_get_no_gradient_and_others_a_larger_share():
    x, g = some(0).requires_grad_(), some(1)
    counts = (torch.arange(6) >= 2)[None, :, None, None, None]
    [found] = torch.autograd.grad(matching_loss(x, g, counts), x)
    assert (found[:, :2] == 0).all()
    assert torch.allclose(found[:, 2:], g[:, 2:] / (x.numel() * 4 / 6))


@given(scale=st.floats(0.01, 100))
def test_the_matching_gradient_does_not_depend_on_the_size_of_the_latents(scale):
    x, fake, real = some(0), some(1), some(2)
    one = matching_gradient(x, fake, real)
    assert torch.allclose(matching_gradient(scale * x, scale * fake, scale * real), one)


def test_the_norm_is_that_of_the_sample_and_of_the_block_where_asked():
    x, fake, real = some(0), some(1), some(2)
    whole, blocks = matching_gradient(x, fake, real), matching_gradient(x, fake, real, block=3)
    norm = (x[1] - real[1]).abs().mean()
    assert torch.allclose(whole[1], (fake[1] - real[1]) / norm)
    norm = (x[1, 3:] - real[1, 3:]).abs().mean()
    assert torch.allclose(blocks[1, 3:], (fake[1, 3:] - real[1, 3:]) / norm)


def test_the_matching_gradient_vanishes_where_critic_and_teacher_agree():
    x, real = some(0), some(2)
    assert (matching_gradient(x, real, real) == 0).all()
    # The teacher that returns the student's clip must not divide by zero.
    assert torch.isfinite(matching_gradient(x, some(1), x)).all()


def test_guidance_of_the_reference_acts_as_one_more():
    prompted, unprompted = some(0), some(1)
    reference = guided(prompted, unprompted, 3.0, "prompted")
    assert torch.allclose(reference, guided(prompted, unprompted, 4.0, "unprompted"))
    assert torch.allclose(guided(prompted, unprompted, 1.0, "unprompted"), prompted)


def test_velocity_and_regression_losses_are_mean_squares_of_what_counts():
    x, noise = some(0), some(1)
    assert velocity_loss(noise - x, noise, x) == 0
    counts = torch.zeros(2, 6, 1, 1, 1, dtype=torch.bool)
    counts[1, 5] = True
    error = some(3)
    found = velocity_loss(noise - x + error, noise, x, counts)
    assert torch.allclose(found, error[1, 5].square().mean())
    found = regression_loss(x + error, x, counts)
    assert torch.allclose(found, error[1, 5].square().mean())


def test_the_huber_loss_is_quadratic_near_and_absolute_far():
    zero = torch.zeros(1, 1, 1, 1, 1)
    small, large = zero + 1e-4, zero + 10
    assert pseudo_huber_loss(zero, zero) == 0
    assert float(pseudo_huber_loss(small, zero)) == pytest.approx(1e-8 / (2 * 0.03), rel=1e-2)
    assert float(pseudo_huber_loss(large, zero)) == pytest.approx(10 - 0.03, rel=1e-3)


def test_the_discriminators_loss_falls_with_true_high_and_made_low():
    high, low = torch.full((4,), 5.0), torch.full((4,), -5.0)
    assert discriminator_loss(high, low) < 0.1 < discriminator_loss(low, high)
    assert deception_loss(high) < deception_loss(low)


def test_a_mean_over_nothing_but_what_counts():
    values = torch.arange(4.0)
    assert mean_over(values, None) == 1.5
    assert mean_over(values, torch.tensor([False, True, False, True])) == 2.0
