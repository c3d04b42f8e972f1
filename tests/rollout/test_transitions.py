"""Ways from one prompt to the next: what a blend and a cut equal."""

from collections.abc import Callable
from itertools import islice

import pytest
import torch
from nano import Rollout, embed, nano_dit, spec
from torch import Tensor

from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.rollout.loop import stream_blocks
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.transitions import Blend, Mixture, Transition, only

CUT = Transition("cut")


def timeline(*switches: tuple[int, str, Transition]) -> PromptTimeline:
    starts, prompts, transitions = zip(*switches, strict=True)
    return PromptTimeline(("a", *prompts), starts, transitions)


def mixed_text(dit: DiT) -> Callable[[Mixture], list[tuple[Tensor, Tensor]]]:
    return lambda mixture: dit.text_keys_values(
        sum(weight * embed(prompt) for prompt, weight in mixture)
    )


@torch.no_grad()
def latents(dit: DiT, prompts: PromptTimeline, blocks: int | None = None, **changes) -> Tensor:
    run = Rollout(dit, spec(**changes), prompts)
    stream = stream_blocks(
        run.state, run.denoiser, run.noise, run.cursor, run.text, run.hooks, mixed_text(dit)
    )
    return torch.cat(list(islice(stream, blocks)), 1)


def test_a_blend_goes_in_equal_steps_and_ends_with_the_goal_alone():
    blend, seen = Blend(only("a"), "b", 4), []
    for _ in range(4):
        blend = blend.advance()
        seen.append(dict(blend.mixture))
    assert seen[:3] == [
        {"a": 0.75, "b": 0.25},
        {"a": 0.5, "b": 0.5},
        {"a": 0.25, "b": 0.75},
    ]
    assert blend.is_over
    assert blend.mixture == only("b")


def test_a_blend_that_interrupts_another_starts_from_what_is_seen():
    halfway = Blend(only("a"), "b", 2).advance()
    assert dict(Blend(halfway.mixture, "a", 2).advance().mixture) == {"a": 0.75, "b": 0.25}


def test_a_blend_over_one_block_is_a_switch_without_a_recache():
    dit = nano_dit()
    blended = latents(dit, timeline((4, "b", Transition("blend", 1))))
    switched = latents(dit, timeline((4, "b", Transition())))
    assert torch.equal(blended[:, :4], switched[:, :4])
    assert not torch.equal(blended[:, 4:6], switched[:, 4:6])
    # Without history there is nothing to recache: then they are the same.
    run = Rollout(dit, spec(computes_unread=True), timeline((4, "b", Transition())))
    run.denoiser = _without_recaches(run.denoiser)
    with torch.no_grad():
        assert torch.equal(blended, torch.cat(list(run.stream()), 1))


def _without_recaches(denoiser):
    def call(x_BFCHW, inputs):
        is_recache = inputs.keys_only and x_BFCHW.shape[1] > 2
        return None if is_recache else denoiser(x_BFCHW, inputs)

    return call


def test_every_block_of_a_blend_sees_its_own_mixture_and_later_ones_the_goal():
    dit = nano_dit()
    slow = latents(dit, timeline((4, "b", Transition("blend", 3))))
    seen: list[Mixture] = []

    def spy(mixture: Mixture) -> list[tuple[Tensor, Tensor]]:
        seen.append(mixture)
        return mixed_text(dit)(mixture)

    run = Rollout(dit, spec(), timeline((4, "b", Transition("blend", 3))))
    with torch.no_grad():
        same = torch.cat(
            list(
                stream_blocks(
                    run.state, run.denoiser, run.noise, run.cursor, run.text, run.hooks, spy
                )
            ),
            1,
        )
    assert torch.equal(same, slow)
    assert [round(dict(mixture).get("b", 0), 6) for mixture in seen] == [0.333333, 0.666667, 1.0]
    assert run.state.mixture == only("b")
    assert run.state.blend is None


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("start", [4, 10])
def test_after_a_cut_nothing_of_the_old_shot_is_seen(positions, start):
    dit = nano_dit()
    one = latents(dit, timeline((start, "b", CUT)), positions=positions)
    two = latents(
        dit,
        PromptTimeline(("c", "b"), (start,), (CUT,)),
        positions=positions,
    )
    assert not torch.equal(one[:, :start], two[:, :start])
    assert torch.equal(one[:, start:], two[:, start:])


def test_with_relative_positions_a_cut_starts_like_a_new_video():
    class LateNoise:
        def __init__(self, noise):
            self.noise = noise

        def draw(self, block_index, step_index):
            return self.noise.draw(block_index + 3, step_index)

    dit, asked = nano_dit(), spec(positions="relative")
    cut = latents(dit, timeline((6, "b", CUT)), positions="relative")
    fresh = Rollout(dit, asked, "b")
    fresh.noise = LateNoise(fresh.noise)
    torch.testing.assert_close(cut[:, 6:], fresh.latents(5), rtol=0, atol=1e-11)


def test_a_switch_after_a_cut_recaches_the_new_shot_alone():
    dit = nano_dit()
    prompts = (4, "b", CUT), (8, "c", Transition())
    one = latents(dit, timeline(*prompts))
    two = latents(dit, PromptTimeline(("d", "b", "c"), (4, 8), (CUT, Transition())))
    assert torch.equal(one[:, 4:], two[:, 4:])


@pytest.mark.parametrize(
    ("kind", "blocks", "message"),
    [
        ("fade", 1, "there is no transition 'fade'"),
        ("blend", 0, "a blend over 0 blocks"),
        ("blend", 65, "use 1 to 64"),
        ("cut", 2, "a cut over 2 blocks"),
    ],
)
def test_a_transition_that_cannot_work_is_refused_in_one_line(kind, blocks, message):
    with pytest.raises(UserError, match=message) as error:
        Transition(kind, blocks)
    assert "\n" not in str(error.value)


def test_transitions_must_fit_the_switches():
    with pytest.raises(UserError, match="2 transitions do not fit 1 switch"):
        PromptTimeline(("a", "b"), (3,), (CUT, CUT))
