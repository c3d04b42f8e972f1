"""Ways of running a model."""

import pytest

from longlive.errors import UserError
from longlive.live.recipes import Recipes, Setup


def test_a_distilled_model_offers_fewer_of_its_own_steps_from_the_highest_on():
    recipes = Recipes([1000, 750, 500, 250], 1.0)
    assert [offer.steps for offer in recipes.offers()] == [(4, 3, 2, 1), (2, 1)]
    assert recipes.setup(None, None) == Setup((1000, 750, 500, 250), 1.0)
    assert recipes.setup("fast", None) == Setup((1000, 500), 1.0)
    assert recipes.setup("standard", 1) == Setup((1000,), 1.0)
    for count in (1, 2, 3, 4):
        steps = recipes.setup(None, count).denoising_steps
        assert list(steps) == sorted(set(steps), reverse=True)
        assert steps[0] == 1000


def test_an_undistilled_model_offers_eighths_of_its_steps_and_no_guidance_when_fast():
    recipes = Recipes(16, 2.0)
    assert recipes.offers()[0].steps == (16, 14, 12, 10, 8, 6, 4, 2)
    assert recipes.setup("standard", 6) == Setup(6, 2.0)
    assert recipes.setup("fast", None) == Setup(8, 1.0)
    assert "no guidance" in recipes.offers()[1].label
    assert recipes.setup("fast", 4).settings() == {
        "denoising_steps": 4,
        "guidance": 1.0,
        "student": None,
        "positions": "relative",
    }


@pytest.mark.parametrize(
    ("seconds", "default"),
    [(0.1, None), (0.52, None), (0.7, 12), (1.2, 6), (2.4, 2), (100, 2)],
)
def test_on_a_slow_machine_as_many_steps_as_it_can_do_are_the_default(seconds, default):
    recipes = Recipes(16, 2.0)
    assert recipes.fit(seconds, 0.75) == default
    offer = recipes.offers()[0]
    assert offer.steps[0] == (default or 16)
    assert sorted(offer.steps, reverse=True) == [16, 14, 12, 10, 8, 6, 4, 2]
    assert recipes.setup(None, None).denoising_steps == (default or 16)
    assert recipes.setup(None, 16).denoising_steps == 16


def test_what_is_still_too_slow_with_fewer_steps_gets_fewer_again():
    recipes = Recipes([1000, 750, 500, 250], 1.0)
    assert recipes.fit(0.68, 0.75) == 3
    # Not all of a block is steps: three take more than three quarters of what four do.
    assert recipes.fit(0.65, 0.75) == 2
    assert recipes.fit(0.52, 0.75) is None
    assert recipes.setup(None, None).denoising_steps == (1000, 500)
    assert recipes.fit(30, 0.75) == 1
    assert recipes.fit(30, 0.75) is None


@pytest.mark.parametrize(("name", "steps"), [("best", None), ("fast", 16), (None, 5)])
def test_what_is_not_offered_is_refused(name, steps):
    with pytest.raises(UserError, match="choose"):
        Recipes(16, 2.0).setup(name, steps)
