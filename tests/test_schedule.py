"""Noise levels, and the algebra between velocity, noise and clean latents."""

import pytest
import torch

from longlive.errors import UserError
from longlive.schedule import (
    DenoisingSchedule,
    NoiseTable,
    add_noise,
    euler_step,
    shift_sigma,
    timestep_of,
    velocity_from_x0,
    x0_from_velocity,
)

STEPS = [1000, 750, 500, 250]


def latents(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 4, 2, 5, generator=generator, dtype=torch.float64).to(dtype)


def test_the_student_visits_exactly_the_warped_steps_of_the_reference():
    schedule = DenoisingSchedule.from_steps(STEPS, shift=5.0)
    assert schedule.timesteps == (1000.0, 937.5, 833.3333129882812, 625.0)
    assert schedule.sigmas == (1.0, 0.9375, 0.8333333134651184, 0.625)


def test_a_shift_of_one_leaves_the_steps_alone():
    assert DenoisingSchedule.from_steps(STEPS, shift=1.0).timesteps == tuple(STEPS)


def test_the_last_transition_ends_at_clean_latents():
    schedule = DenoisingSchedule.from_steps([1000, 500], shift=5.0)
    assert schedule.transitions == [(1.0, 0.8333333134651184), (0.8333333134651184, 0.0)]


def test_uniform_steps_divide_the_time_before_the_shift_warps_it():
    assert DenoisingSchedule.uniform(4, shift=1.0).sigmas == (1.0, 0.75, 0.5, 0.25)
    warped = DenoisingSchedule.from_steps(STEPS, shift=5.0)
    assert DenoisingSchedule.uniform(4, shift=5.0) == warped


@pytest.mark.parametrize("steps", [[], [500, 750], [500, 500], [1001, 500], [500, 0]])
def test_steps_that_do_not_fall_inside_the_schedule_are_a_user_error(steps):
    with pytest.raises(UserError, match="must fall strictly"):
        DenoisingSchedule.from_steps(steps, shift=5.0)


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_uniform_steps_out_of_range_is_a_user_error(steps):
    with pytest.raises(UserError, match=r"in \[1, 1000\]"):
        DenoisingSchedule.uniform(steps, shift=5.0)


def test_the_shift_keeps_both_ends_and_raises_the_middle():
    assert shift_sigma(0.0, 5.0) == 0
    assert shift_sigma(1.0, 5.0) == 1
    assert shift_sigma(0.5, 5.0) == pytest.approx(5 / 6)


def test_a_timestep_is_rounded_to_float32():
    assert timestep_of(0.8333333134651184) == 833.3333129882812


@pytest.mark.parametrize(
    ("shift", "index", "sigma"),
    [
        (5.0, 0, 1.0),
        (5.0, 1, 0.99979979),
        (5.0, 100, 0.97826087),
        (5.0, 250, 0.9375),
        (5.0, 500, 0.83333331),
        (5.0, 750, 0.625),
        (5.0, 900, 0.35714287),
        (5.0, 998, 0.00992064),
        (5.0, 999, 0.00498008),
        (8.0, 1, 0.99987489),
        (8.0, 999, 0.00794439),
    ],
)
def test_the_noise_table_holds_the_values_of_the_reference(shift, index, sigma):
    table = NoiseTable(shift)
    assert table.sigmas.dtype == torch.float32
    assert len(table.sigmas) == len(table.timesteps) == 1000
    assert table.sigmas[index].item() == pytest.approx(sigma, abs=6e-9)
    assert torch.equal(table.timesteps, 1000 * table.sigmas)


def test_a_timestep_is_looked_up_by_the_nearest_entry():
    table = NoiseTable(5.0)
    timesteps = torch.tensor([[20.0, 500.0], [980.0, 0.0]])
    assert table.nearest_index(timesteps).tolist() == [[996, 833], [93, 999]]
    assert table.sigma_at(timesteps).shape == (2, 2)


def test_timestep_zero_is_the_last_entry_and_not_zero_noise():
    assert NoiseTable(5.0).sigma_at(torch.tensor(0.0)).item() == pytest.approx(0.00498008, abs=6e-9)


def test_of_two_entries_that_are_equally_near_the_first_is_taken():
    table = NoiseTable(5.0)
    middle = (table.timesteps[7].double() + table.timesteps[8].double()) / 2
    assert table.nearest_index(middle) == 7


def test_the_training_weights_are_a_bell_with_mean_one():
    table = NoiseTable(5.0)
    weights = table.training_weights
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)
    assert weights.min() == 0
    assert (table.timesteps[weights.argmax()] - 500).abs() < 2


def test_noise_is_mixed_in_by_the_rectified_flow_line():
    x0, noise = latents(0), latents(1)
    torch.testing.assert_close(add_noise(x0, noise, 0.3), 0.7 * x0 + 0.3 * noise)
    assert torch.equal(add_noise(x0, noise, 1.0), noise)
    assert torch.equal(add_noise(x0, noise, 0.0), x0)


def test_the_true_velocity_leads_back_to_the_clean_latents():
    x0, noise = latents(0), latents(1)
    x = add_noise(x0, noise, 0.6)
    torch.testing.assert_close(x0_from_velocity(x, noise - x0, 0.6), x0)
    torch.testing.assert_close(velocity_from_x0(x, x0, 0.6), noise - x0)


def test_an_euler_step_along_the_true_velocity_stays_on_the_line():
    x0, noise = latents(0), latents(1)
    there = euler_step(add_noise(x0, noise, 0.8), noise - x0, 0.8, 0.25)
    torch.testing.assert_close(there, add_noise(x0, noise, 0.25))


@pytest.mark.parametrize("levels", [(0.2, 0.9), ((0.1, 0.5, 0.9), (0.3, 0.4, 1.0))])
def test_every_leading_dimension_may_have_its_own_noise_level(levels):
    x0, noise, sigma = latents(0), latents(1), torch.tensor(levels, dtype=torch.float64)
    x = add_noise(x0, noise, sigma)
    torch.testing.assert_close(x[1], add_noise(x0[1], noise[1], sigma[1]))
    clean = x0_from_velocity(x, noise - x0, sigma)
    torch.testing.assert_close(clean, x0)
    torch.testing.assert_close(velocity_from_x0(x, x0, sigma), noise - x0)
    torch.testing.assert_close(
        euler_step(x, noise - x0, sigma, sigma / 2), add_noise(x0, noise, sigma / 2)
    )


def test_bfloat16_latents_are_mixed_in_float32_and_rounded_once():
    x0, noise = latents(0, torch.bfloat16), latents(1, torch.bfloat16)
    mixed = add_noise(x0, noise, 0.8333333134651184)
    once = ((1 - 0.8333333134651184) * x0.float() + 0.8333333134651184 * noise.float()).bfloat16()
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_clean_latents_are_computed_in_float64_and_rounded_once(dtype):
    x, velocity = latents(0, dtype), latents(1, dtype)
    sigma = torch.tensor(1 / 3)  # float32: its rounding is part of the reference's numbers
    clean = x0_from_velocity(x, velocity, sigma)
    assert clean.dtype == dtype
    assert torch.equal(clean, (x.double() - sigma.double() * velocity.double()).to(dtype))
    back = velocity_from_x0(x, velocity, sigma)
    assert torch.equal(back, ((x.double() - velocity.double()) / sigma.double()).to(dtype))


def test_an_euler_step_of_bfloat16_latents_is_rounded_once():
    x, velocity = latents(0, torch.bfloat16), latents(1, torch.bfloat16)
    moved = euler_step(x, velocity, 0.9375, 0.625)
    assert torch.equal(moved, (x.float() - 0.3125 * velocity.float()).bfloat16())
