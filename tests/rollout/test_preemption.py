"""A block that is begun again for a prompt: what comes of it, and that nothing else does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nano import GEOMETRY, Rollout, nano_dit, spec
from torch import Tensor

from longlive.models.dit import DiT
from longlive.rollout.loop import stream_blocks
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.state import RolloutState
from longlive.rollout.transitions import Mixture, Transition
from longlive.schedule import DenoisingSchedule

BLOCK = GEOMETRY.block_latent_frames
STEPS = 3
THREE_STEPS = DenoisingSchedule.from_steps([1000, 700, 400], shift=5.0)


class Asks:
    """Asks for prompts after denoising steps: by block and step, each once."""

    def __init__(self, *asked: tuple[int, int, str]) -> None:
        self.asked = {(block, step): prompt for block, step, prompt in asked}
        self.rollout: Rollout | None = None
        self.steps: list[tuple[int, int, str]] = []
        self.lines: list[str] = []

    def call(self, hook: str, state: RolloutState, *args: Any) -> None:
        self.lines.append(hook)
        if hook == "on_denoise_step_end":
            self.steps.append((state.block_index, state.step_index, state.prompt))
            prompt = self.asked.pop((state.block_index, state.step_index), None)
            if prompt is not None:
                assert self.rollout is not None
                self.rollout.cursor.request(prompt)


def preempted(
    *asked: tuple[int, int, str],
    timeline: PromptTimeline | str = "a",
    preempts: bool = True,
    **changes: object,
) -> tuple[Rollout, Asks]:
    """A rollout that is asked for prompts while it runs."""
    hooks = Asks(*asked)
    given = {"schedule": THREE_STEPS, **changes}
    hooks.rollout = Rollout(nano_dit(), spec(preempts=preempts, **given), timeline, hooks=hooks)
    return hooks.rollout, hooks


def planned(timeline: PromptTimeline | str, **changes: object) -> Rollout:
    return Rollout(nano_dit(), spec(**{"schedule": THREE_STEPS, **changes}), timeline)


def mixed_text(dit: DiT, rollout: Rollout) -> Callable[[Mixture], list[tuple[Tensor, Tensor]]]:
    def text(mixture: Mixture) -> list[tuple[Tensor, Tensor]]:
        parts = [(weight, rollout.text(prompt)) for prompt, weight in mixture]
        return [
            (
                sum(weight * keys[layer][0] for weight, keys in parts),
                sum(weight * keys[layer][1] for weight, keys in parts),
            )
            for layer in range(len(parts[0][1]))
        ]

    return text


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"keeps_sink": False},
        {"recached_latent_frames": 2},
        {"recaches": False},
        {"window_latent_frames": 7},
        {"window_latent_frames": None},
        {"sink_latent_frames": 0},
        {"updates_context": False},
        {"sampler": "euler"},
        {"cached_latent_frames": 9},
    ],
    ids=str,
)
@pytest.mark.parametrize(("block", "step"), [(1, 0), (3, 1), (5, 0), (5, 1)])
def test_an_interrupted_video_is_the_one_whose_switch_was_planned_for_that_block(
    block, step, changes, positions
):
    rollout, _ = preempted((block, step, "b"), positions=positions, **changes)
    switch = PromptTimeline.switching("ab", [block * BLOCK])
    expected = planned(switch, positions=positions, **changes)
    ours, theirs = rollout.stream(), expected.stream()
    with torch.no_grad():
        for _ in range(block + 1):
            assert torch.equal(next(ours), next(theirs))
        # No step that was given up has left a key behind.
        assert torch.equal(rollout.state.cache.k, expected.state.cache.k)
        assert torch.equal(rollout.state.cache.v, expected.state.cache.v)
        assert rollout.state.window.mark == expected.state.window.mark
        for mine, planned_one in zip(ours, theirs, strict=True):
            assert torch.equal(mine, planned_one)


def test_an_interrupted_video_is_made_again_from_its_history():
    rollout, _ = preempted((2, 1, "b"), (3, 2, "c"), (5, 0, "a"))
    latents = rollout.latents()
    frames, prompts = zip(*rollout.cursor.history, strict=True)
    assert (frames, prompts) == ((0, 4, 8, 10), ("a", "b", "c", "a"))
    again = planned(PromptTimeline(prompts, frames[1:]))
    assert torch.equal(latents, again.latents())


def test_the_steps_that_were_given_up_are_made_again_and_no_other():
    rollout, asks = preempted((2, 1, "b"))
    rollout.latents(4)
    expected = [(block, step, "a") for block in range(2) for step in range(STEPS)]
    expected += [(2, 0, "a"), (2, 1, "a")]
    expected += [(block, step, "b") for block in (2, 3) for step in range(STEPS)]
    assert asks.steps == expected


def test_listeners_hear_of_a_block_that_is_given_up_before_they_hear_of_the_prompt():
    rollout, asks = preempted((1, 0, "b"), latent_frames=4)
    rollout.latents()
    step = ["on_denoise_step_start", "on_denoise_step_end"]
    at = asks.lines.index("on_block_abandoned")
    assert asks.lines[at - 3 : at + 8] == [
        *("on_block_start", *step, "on_block_abandoned"),
        *("on_text_encoding_start", "on_prompt_switch", "on_recache_start", "on_recache_end"),
        *("on_block_start", *step),
    ]
    assert asks.lines.count("on_block_abandoned") == 1
    assert asks.lines.count("on_latents_ready") == asks.lines.count("on_block_end") == 2


def test_what_has_left_is_not_changed():
    rollout, _ = preempted((3, 0, "b"))
    with torch.no_grad():
        yielded = [(block, block.clone()) for block in rollout.stream()]
    assert all(torch.equal(block, copy) for block, copy in yielded)
    before = planned("a").latents(3)
    assert torch.equal(torch.cat([block for block, _ in yielded[:3]], 1), before)


@pytest.mark.parametrize(
    ("asked", "preempts"),
    [((2, STEPS - 1, "b"), True), ((2, 0, "b"), False), ((2, 1, "b"), False)],
    ids=["after the last step", "not preempted", "not preempted later"],
)
def test_otherwise_a_prompt_waits_for_the_next_block(asked, preempts):
    rollout, asks = preempted(asked, preempts=preempts)
    latents = rollout.latents()
    assert torch.equal(latents, planned(PromptTimeline.switching("ab", [3 * BLOCK])).latents())
    assert "on_block_abandoned" not in asks.lines


def test_a_flood_of_prompts_does_not_starve_the_video():
    asked = [(block, step, f"{block}, {step}") for block in range(1, 8) for step in range(STEPS)]
    rollout, asks = preempted(*asked)
    latents = rollout.latents()
    assert latents.shape[1] == 16
    # Block 1 is begun again once; every later one begins with the latest prompt before it.
    assert asks.lines.count("on_block_abandoned") == 1
    began = [frame // BLOCK for frame, _ in rollout.cursor.history]
    assert began == list(range(8))


def test_a_block_that_a_prompt_begins_with_is_not_begun_again():
    planned_at_2 = PromptTimeline.switching("ab", [2 * BLOCK])
    rollout, asks = preempted((0, 0, "c"), (2, 0, "d"), timeline=planned_at_2)
    rollout.latents()
    assert "on_block_abandoned" not in asks.lines
    assert rollout.cursor.history == [(0, "a"), (2, "c"), (4, "b"), (6, "d")]


def test_asking_for_the_active_prompt_interrupts_nothing():
    rollout, asks = preempted((2, 0, "a"))
    assert torch.equal(rollout.latents(), planned("a").latents())
    assert "on_block_abandoned" not in asks.lines


def test_a_planned_switch_still_comes_after_an_interruption():
    timeline = PromptTimeline.switching("ab", [5 * BLOCK])
    rollout, _ = preempted((3, 0, "c"), timeline=timeline)
    rollout.latents()
    assert rollout.cursor.history == [(0, "a"), (6, "c"), (10, "b")]


@pytest.mark.parametrize("block", [3, 4])
def test_interrupting_a_blend_ends_it_where_it_stood(block):
    blend = Transition("blend", 4)
    rollout, _ = preempted((block, 1, "c"), timeline=PromptTimeline(("a", "b"), (4,), (blend,)))
    expected = planned(
        PromptTimeline(("a", "b", "c"), (4, block * BLOCK), (blend, Transition("switch")))
    )
    made = []
    for run in (rollout, expected):
        dit = nano_dit()
        blocks = stream_blocks(
            run.state,
            run.denoiser,
            run.noise,
            run.cursor,
            run.text,
            run.hooks,
            mixed_text(dit, run),
        )
        with torch.no_grad():
            made.append(torch.cat(list(blocks), 1))
        assert run.state.blend is None
    assert torch.equal(*made)
