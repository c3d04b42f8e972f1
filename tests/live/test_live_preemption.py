"""A live prompt that interrupts a block: acknowledged, marked and made again for that block."""

import json

import pytest
import torch

from longlive.callbacks.preempt import PreemptBlock
from longlive.cli import main
from longlive.live.engine import SessionEngine
from longlive.live.live_video import Effect
from longlive.live.protocol import Back, PromptMark, ScriptedPrompt, Start
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.transitions import SWITCH, Transition
from longlive.video.latents import read_latents

A, B, C = "a large red circle", "a small blue square", "a small red square"
BLEND, CUT = Transition("blend", 2), Transition("cut")


class Viewer(RolloutCallback):
    """Asks for prompts after so many denoising steps, those that are made again counted too."""

    def __init__(self, *orders: tuple[int, str], transition: Transition = SWITCH) -> None:
        self.orders = orders
        self.transition = transition
        self.effects: list[Effect] = []
        self.steps: list[tuple[int, int]] = []
        self.engine: SessionEngine | None = None

    def on_denoise_step_end(self, trainer, pl_module, state, x0_BFCHW) -> None:
        self.steps.append((state.block_index, state.step_index))
        for after, prompt in self.orders:
            if after == len(self.steps):
                self.ask(prompt)

    def ask(self, prompt: str) -> None:
        request, engine = 10 + len(self.effects), self.engine
        self.effects.append(
            engine.change_prompt(prompt, request=request, transition=self.transition)
        )


@pytest.fixture
def watch(play):
    """Plays some blocks with a viewer who interrupts."""

    def watched(viewer: Viewer, blocks: int = 4, preempts: bool = True, model=None, **order):
        callbacks = [*([PreemptBlock()] if preempts else []), viewer]
        played = play(callbacks=callbacks, **(model or {}))
        viewer.engine = played.engine
        played.engine.start(Start(1, A, seed=3, blocks=blocks, **order))
        frames = played.watch(9 + 12 * (blocks - 1))
        return played, frames

    return watched


def batch(settings, timeline: PromptTimeline, blocks: int = 4) -> list[torch.Tensor]:
    model = LongLive(**{**settings, "positions": "relative"})
    stream = model.stream(timeline, seed=3, latent_frames=3 * blocks)
    return [block.latents.clone() for block in stream]


@pytest.mark.parametrize("transition", [SWITCH, BLEND, CUT], ids=lambda how: how.kind)
def test_a_prompt_begins_with_the_block_at_hand_as_its_acknowledgement_says(
    watch, nano_settings, transition
):
    viewer = Viewer((5, B), transition=transition)
    played, frames = watch(viewer)
    assert [(effect.block, effect.frame) for effect in viewer.effects] == [(2, 21)]
    assert viewer.steps == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert [frame.frame for frame in frames] == list(range(45))
    assert [frame.prompt for frame in frames] == [1] * 21 + [10] * 24
    assert {mark.id: mark.block for mark in played.said(PromptMark)} == {1: 0, 10: 2}
    expected = batch(nano_settings, PromptTimeline((A, B), (6,), (transition,)))
    assert all(torch.equal(played.latents.made[0, block], expected[block]) for block in range(4))


def test_a_blend_that_interrupts_a_blend_starts_from_what_the_block_before_it_saw(
    watch, nano_settings
):
    viewer = Viewer((5, C), transition=BLEND)
    longer = Transition("blend", 3)
    played, _ = watch(viewer, script=(ScriptedPrompt(1, B, longer),))
    assert viewer.effects[0].block == 2
    expected = batch(nano_settings, PromptTimeline((A, B, C), (3, 6), (longer, BLEND)))
    assert all(torch.equal(played.latents.made[0, block], expected[block]) for block in range(4))


def test_a_session_with_an_interruption_is_played_again_bit_for_bit(watch, tmp_path):
    played, _ = watch(Viewer((3, B), (8, C)))
    file = tmp_path / "session.json"
    record = played.engine.session()
    file.write_text(json.dumps(record))
    output = tmp_path / "again"
    assert main(["predict", f"--session={file}", "--latents=true", f"--output={output}"]) == 0
    latents, _ = read_latents(next(output.glob("*.safetensors")))
    made = torch.cat([played.latents.made[0, block] for block in range(4)], 1)
    assert [len(branch["prompts"]) for branch in record["branches"]] == [3]
    assert torch.equal(latents, made)


@pytest.mark.parametrize(
    ("after", "block", "preempts"),
    [(4, 2, True), (1, 1, True), (3, 2, False)],
    ids=["after the last step", "in the first block", "without the callback"],
)
def test_otherwise_a_prompt_begins_with_the_next_block(
    watch, nano_settings, after, block, preempts
):
    viewer = Viewer((after, B), (6, C))
    played, _ = watch(viewer, preempts=preempts)
    assert [effect.block for effect in viewer.effects] == [block, 3]
    assert len(viewer.steps) == 8
    expected = batch(nano_settings, PromptTimeline((A, B, C), (3 * block, 9)))
    assert all(torch.equal(played.latents.made[0, one], expected[one]) for one in range(4))


def test_a_block_of_one_step_is_not_interrupted_after_a_first_one_of_two(watch, nano_settings):
    steps = {"denoising_steps": [1000], "first_denoising_steps": [1000, 500]}
    viewer = Viewer((3, B))
    played, _ = watch(viewer, model=steps)
    # The third step is the only one of block 1, within which nothing can begin.
    assert viewer.steps == [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0)]
    assert [effect.block for effect in viewer.effects] == [2]
    expected = batch({**nano_settings, **steps}, PromptTimeline((A, B), (6,)))
    assert all(torch.equal(played.latents.made[0, one], expected[one]) for one in range(4))


def test_a_first_frame_that_is_made_alone_is_shown_alone(play, nano_settings):
    played = play(first_frame_alone=True)
    played.engine.start(Start(1, A, seed=3, blocks=3))
    frames = played.watch(33)
    assert [frame.frame for frame in frames] == list(range(33))
    expected = batch({**nano_settings, "first_frame_alone": True}, PromptTimeline.single(A), 3)
    assert all(torch.equal(played.latents.made[0, one], expected[one]) for one in range(3))


def test_of_several_prompts_for_a_block_the_last_one_wins_and_the_next_waits(watch, nano_settings):
    # The fourth step is the third once more.
    viewer = Viewer((3, C), (3, B), (4, C))
    played, _ = watch(viewer)
    first, second, third = viewer.effects
    assert (first.block, second.block, third.block) == (1, 1, 2)
    assert second.replaces == 10
    expected = batch(nano_settings, PromptTimeline((A, B, C), (3, 6)))
    assert all(torch.equal(played.latents.made[0, one], expected[one]) for one in range(4))


def test_a_prompt_that_is_taken_back_interrupts_nothing(watch, nano_settings):
    viewer = Viewer((3, B), (3, A))
    played, _ = watch(viewer)
    assert viewer.effects[1].unchanged
    assert len(viewer.steps) == 8
    expected = batch(nano_settings, PromptTimeline.single(A))
    assert all(torch.equal(played.latents.made[0, one], expected[one]) for one in range(4))


def test_who_goes_back_while_a_block_is_made_asks_for_a_prompt_there(play, nano_settings):
    class GoesBack(Viewer):
        def ask(self, prompt: str) -> None:
            self.engine.back(Back(5, 0, 1))
            super().ask(prompt)

    viewer = GoesBack((5, B))
    played = play(callbacks=[PreemptBlock(), viewer])
    viewer.engine = played.engine
    played.engine.start(Start(1, A, seed=3, blocks=4))
    played.watch(21)
    played.wait(lambda: bool(viewer.effects))
    assert (viewer.effects[0].branch, viewer.effects[0].block) == (1, 1)
    played.watch(12)
    expected = batch(nano_settings, PromptTimeline.switching((A, B), (3,)))
    assert torch.equal(played.latents.made[1, 1], expected[1])
