"""Noise that depends on the seed, the block and the step."""

import pytest
import torch
from torch import Tensor

from longlive.rollout.noise import SeededNoise

CPU = torch.device("cpu")
SHAPE = (1, 3, 4, 8, 8)


def noise(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype=torch.float32) -> SeededNoise:
    return SeededNoise(seed, shape, dtype, CPU)


def test_the_same_seed_block_and_step_draw_the_same_noise_in_whatever_order():
    forward, backward = noise(), noise()
    places = [(block, step) for block in range(3) for step in range(2)]
    first = {place: forward.draw(*place) for place in places}
    torch.manual_seed(1)
    torch.randn(7)
    second = {place: backward.draw(*place) for place in reversed(places)}
    assert all(torch.equal(first[place], second[place]) for place in places)


def test_what_is_drawn_ahead_is_what_would_have_been_drawn():
    ahead, plain = noise(3), noise(3)
    ahead.draw_ahead()
    for place in ((0, 0), (0, 1), (1, 0), (0, 0)):
        assert torch.equal(ahead.draw(*place), plain.draw(*place))


def test_a_seed_that_is_asked_for_later_is_not_asked_for_ahead():
    seeds = [1]
    changing = SeededNoise(lambda block: seeds[0], SHAPE, torch.float32, CPU)
    changing.draw_ahead()
    for seed in (1, 2):
        seeds[0] = seed
        assert torch.equal(changing.draw(0, 0), noise(seed).draw(0, 0))


def test_another_seed_block_or_step_draws_other_noise():
    draws = [
        noise(seed).draw(block, step)
        for seed in (0, 1, 10, 11)
        for block in (0, 1, 10, 11)
        for step in (0, 1, 10, 11)
    ]
    assert len({tuple(x.flatten()[:8].tolist()) for x in draws}) == len(draws)


def test_videos_side_by_side_each_have_the_noise_they_have_alone():
    together = noise((3, 5), (2, *SHAPE[1:])).draw(2, 1)
    assert torch.equal(together, torch.cat([noise(seed).draw(2, 1) for seed in (3, 5)]))


def test_a_draw_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    noise().draw(0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_draw_is_standard_normal_of_the_shape_of_a_block():
    x = noise(shape=(2, 3, 16, 60, 104)).draw(5, 1)
    assert x.shape == (2, 3, 16, 60, 104)
    assert x.mean().abs() < 0.01
    assert x.std().item() == pytest.approx(1, abs=0.01)
    # No two videos, latent frames or channels share their noise.
    rows = x.flatten(0, 2).flatten(1)
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 0.1


def test_the_type_of_the_latents_only_rounds_the_noise():
    wide: Tensor = noise().draw(2, 1)
    assert torch.equal(noise(dtype=torch.bfloat16).draw(2, 1), wide.bfloat16())


@pytest.mark.parametrize("seed", [-1, 2**63, 2**80])
def test_any_integer_is_a_seed(seed):
    assert noise(seed).draw(0, 0).isfinite().all()
