"""The session engine: what orders do, when, and that the same orders make the same latents."""

import threading
import time

import pytest
import torch

from longlive.errors import UserError
from longlive.live.protocol import (
    Back,
    BlockDone,
    Branches,
    Ended,
    Error,
    PictureFlag,
    PromptMark,
    ScriptedPrompt,
    Start,
)
from longlive.live.snapshots import Place
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.transitions import Transition

A, B, C = "a large red circle", "a small blue square", "a small red square"
FIRST, LATER = 9, 12


def batch(settings, timeline, *, seed=0, blocks=6):
    """The latents of each block, made by the model's own stream."""
    model = LongLive(**{**settings, "positions": "relative"})
    stream = model.stream(timeline, seed=seed, latent_frames=3 * blocks)
    return [block.latents.clone() for block in stream]


def test_frames_come_in_order_and_belong_to_their_blocks(play):
    played = play()
    played.engine.start(Start(1, A, seed=3))
    frames = played.watch(FIRST + 2 * LATER)
    assert [frame.frame for frame in frames] == list(range(FIRST + 2 * LATER))
    assert [frame.block for frame in frames] == [0] * FIRST + [1] * LATER + [2] * LATER
    assert {frame.prompt for frame in frames} == {1}
    assert frames[0].flags & PictureFlag.FIRST_OF_PROMPT
    assert frames[0].pixels_HWC.shape == (32, 48, 3)


def test_a_live_video_is_the_batch_video(play, nano_settings):
    played = play()
    played.engine.start(Start(1, A, seed=3, blocks=4))
    played.watch(FIRST + 3 * LATER)
    expected = batch(nano_settings, PromptTimeline.single(A), seed=3, blocks=4)
    assert all(torch.equal(played.latents.made[0, block], expected[block]) for block in range(4))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_scripted_timeline_is_the_same_in_batch_and_live(play, nano_settings, guidance):
    played = play(guidance=guidance)
    how = (Transition("blend", 2), Transition("cut"))
    script = (ScriptedPrompt(1, B, how[0]), ScriptedPrompt(4, C, how[1]))
    played.engine.start(Start(1, A, seed=5, script=script, blocks=6))
    played.watch(FIRST + 5 * LATER)
    timeline = PromptTimeline((A, B, C), (3, 12), how)
    expected = batch({**nano_settings, "guidance": guidance}, timeline, seed=5)
    assert all(torch.equal(played.latents.made[0, block], expected[block]) for block in range(6))


def test_the_rollout_waits_while_nobody_takes_frames(play):
    played = play(buffer_frames=12)
    played.engine.start(Start(1, A))
    played.wait(lambda: len(played.engine.playout) >= 12)
    time.sleep(0.3)
    assert len(played.engine.playout) == FIRST + LATER
    assert len(played.latents.made) == 2


def test_a_prompt_takes_effect_where_its_acknowledgement_says(play, nano_settings):
    played = play(buffer_frames=1)
    played.engine.start(Start(1, A, seed=3))
    played.watch(FIRST + 3)
    effect = played.engine.change_prompt(B, request=2)
    frames = played.watch(2 * LATER)
    first = next(frame for frame in frames if frame.prompt == 2)
    assert (first.block, first.frame) == (effect.block, effect.frame)
    assert first.flags & PictureFlag.FIRST_OF_PROMPT
    played.wait(lambda: (0, effect.block) in played.latents.made)
    timeline = PromptTimeline.switching((A, B), (3 * effect.block,))
    expected = batch(nano_settings, timeline, seed=3, blocks=effect.block + 1)
    assert torch.equal(played.latents.made[0, effect.block], expected[effect.block])
    marks = {mark.id: mark.block for mark in played.said(PromptMark)}
    assert marks == {1: 0, 2: effect.block}


def test_of_a_thousand_prompts_before_a_block_the_last_one_wins(play):
    played = play(buffer_frames=1)
    played.engine.start(Start(1, A))
    played.wait(lambda: len(played.engine.playout) >= FIRST)
    start_s = time.perf_counter()
    effects = [
        played.engine.change_prompt(f"a {'red' if i % 2 else 'blue'} circle {i}", request=i)
        for i in range(2, 1002)
    ]
    assert time.perf_counter() - start_s < 1
    assert {effect.block for effect in effects} == {1}
    assert [effect.replaces for effect in effects[1:]] == list(range(2, 1001))
    frames = played.watch(FIRST + LATER)
    assert {frame.prompt for frame in frames if frame.block == 1} == {1001}


def test_stale_frames_are_dropped_when_a_new_prompt_is_there(play):
    played = play(buffer_frames=48)
    played.engine.start(Start(1, A))
    played.wait(lambda: len(played.engine.playout) >= 48)
    effect = played.engine.change_prompt(B, request=2)
    played.watch(24)
    played.wait(lambda: played.engine.playout.dropped > 0)
    first = played.watch(1)[0]
    assert first.prompt == 2
    assert first.frame == effect.frame
    assert first.flags & PictureFlag.JUMP


def test_asking_for_the_active_prompt_says_that_nothing_changes(play):
    played = play(buffer_frames=1)
    played.engine.start(Start(1, A))
    played.wait(lambda: len(played.engine.playout) >= FIRST)
    assert played.engine.change_prompt(A, request=2).unchanged
    assert not played.engine.change_prompt(B, request=3).unchanged
    assert played.engine.change_prompt(A, request=4).replaces == 3


@pytest.mark.parametrize("snapshot_mib", [64, 0])
def test_going_back_and_asking_differently_is_a_branch(play, nano_settings, snapshot_mib):
    # Without room for snapshots the blocks on the way are made again.
    played = play(snapshot_mib=snapshot_mib)
    script = (ScriptedPrompt(2, B),)
    played.engine.start(Start(1, A, seed=3, script=script))
    played.watch_blocks(6)
    effect = played.engine.back(Back(2, 0, 4, prompt=C, seed=9))
    assert (effect.branch, effect.block, effect.frame) == (1, 4, FIRST + 3 * LATER)
    frames = played.watch(2 * LATER)
    assert frames[0].flags >= PictureFlag.JUMP
    assert [(frame.branch, frame.frame) for frame in frames[:2]] == [(1, 45), (1, 46)]
    assert {frame.prompt for frame in frames} == {2}
    prompts = PromptTimeline.switching((A, B, C), (6, 12))
    expected = batch(nano_settings, prompts, seed=lambda block: 3 if block < 4 else 9)
    for block in (4, 5):
        assert torch.equal(played.latents.made[1, block], expected[block])
    infos = played.said(Branches)[-1].branches
    assert [(info.id, info.parent, info.block, info.seed) for info in infos] == [
        (0, None, 0, 3),
        (1, 0, 4, 9),
    ]


def test_blocks_that_are_made_again_are_not_shown_again(play):
    played = play(snapshot_mib=0)
    played.engine.start(Start(1, A))
    played.watch_blocks(4)
    told = len(played.said(BlockDone))
    played.engine.back(Back(2, 0, 3))
    frames = played.watch(LATER)
    assert {frame.block for frame in frames} == {3}
    assert {done.block for done in played.said(BlockDone)[told:] if done.branch == 1} <= {3, 4, 5}


def test_going_back_without_another_prompt_repeats_what_was_there(play):
    played = play()
    played.engine.start(Start(1, A, seed=3, script=(ScriptedPrompt(3, B),)))
    played.watch_blocks(5)
    played.engine.back(Back(2, 0, 2))
    played.watch(3 * LATER)
    made = played.latents.made
    assert torch.equal(made[1, 2], made[0, 2])
    # What was planned for block 3 of the other branch is not planned here.
    assert not torch.equal(made[1, 3], made[0, 3])


def test_a_prompt_while_going_back_is_paused_begins_the_branch(play, nano_settings):
    played = play()
    played.engine.start(Start(1, A, seed=3))
    played.watch_blocks(4)
    played.engine.back(Back(2, 0, 2, play=False))
    played.wait(lambda: played.engine.video.jump is None)
    assert played.engine.take_frame() is None
    effect = played.engine.change_prompt(B, request=3)
    assert effect.block == 2
    played.engine.resume()
    frames = played.watch(LATER)
    assert {frame.prompt for frame in frames} == {3}
    assert {frame.block for frame in frames} == {2}


def test_a_branch_of_a_branch(play, nano_settings):
    played = play()
    played.engine.start(Start(1, A, seed=3))
    played.watch_blocks(4)
    played.engine.back(Back(2, 0, 2, prompt=B))
    played.watch_blocks(3)
    played.engine.back(Back(3, 1, 3, prompt=C, transition=Transition("cut")))
    played.watch_blocks(2)
    how = (Transition(), Transition("cut"))
    expected = batch(nano_settings, PromptTimeline((A, B, C), (6, 9), how), seed=3, blocks=5)
    assert torch.equal(played.latents.made[1, 2], expected[2])
    for block in (3, 4):
        assert torch.equal(played.latents.made[2, block], expected[block])


def test_a_pause_shows_nothing_and_loses_nothing(play):
    played = play()
    played.engine.start(Start(1, A))
    before = played.watch(5)
    played.engine.pause()
    time.sleep(0.1)
    assert played.engine.take_frame() is None
    played.engine.resume()
    after = played.watch(5)
    assert [frame.frame for frame in before + after] == list(range(10))


def test_a_stopped_video_can_be_gone_back_in_and_another_one_started(play):
    played = play()
    played.engine.start(Start(1, A, seed=3))
    played.watch_blocks(3)
    played.engine.stop()
    assert played.engine.take_frame() is None
    with pytest.raises(UserError, match="nothing plays"):
        played.engine.change_prompt(B)
    played.engine.back(Back(2, 0, 1))
    assert played.watch(1)[0].frame == FIRST
    first = played.latents.made[0, 0]
    played.engine.start(Start(3, A, seed=4))
    assert played.watch(1)[0].frame == 0
    assert not torch.equal(played.latents.made[0, 0], first)
    assert [ended.reason for ended in played.said(Ended)] == ["stopped"]


def test_a_video_with_a_length_ends_by_itself_once_it_is_shown(play):
    played = play()
    played.engine.start(Start(1, A, blocks=2))
    frames = played.watch(FIRST + LATER)
    assert played.engine.take_frame() is None
    assert frames[-1].frame == FIRST + LATER - 1
    assert [ended.reason for ended in played.said(Ended)] == ["complete"]
    assert not played.engine.video.is_playing
    assert len(played.latents.made) == 2


def test_the_last_block_takes_no_more_prompts(play):
    played = play()
    played.engine.start(Start(1, A, blocks=2))
    played.wait(lambda: len(played.latents.made) == 2)
    with pytest.raises(UserError, match="the last block has begun"):
        played.engine.change_prompt(B)


def test_a_recipe_of_fewer_steps_makes_another_video_and_says_how(play):
    played = play()
    played.engine.start(Start(1, A, seed=3))
    played.watch(1)
    slow = played.latents.made[0, 0]
    played.engine.start(Start(2, A, seed=3, recipe="fast"))
    played.watch(1)
    assert not torch.equal(played.latents.made[0, 0], slow)
    assert played.engine.session()["config"]["model"]["init_args"]["denoising_steps"] == [1000]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (Start(1, A, recipe="best"), "no recipe 'best'; choose standard or fast"),
        (Start(1, A, steps=7), "does not go with 7 steps; choose one of 2, 1"),
        (Start(1, " "), "the prompt is empty"),
        (Start(1, A, script=(ScriptedPrompt(0, B),)), "begin at block 1"),
        (Start(1, A, script=(ScriptedPrompt(2, B), ScriptedPrompt(2, C))), "two prompts"),
        (Start(1, A, script=(ScriptedPrompt(4, B),), blocks=4), "would never be shown"),
        (Start(1, A, script=(ScriptedPrompt(4, ""),)), "of the script is empty|prompt is empty"),
    ],
)
def test_a_start_that_cannot_work_is_refused_and_what_plays_goes_on(play, order, message):
    played = play()
    played.engine.start(Start(1, B))
    with pytest.raises(UserError, match=message):
        played.engine.start(order)
    assert played.engine.video.tree.prompt_at(0, 0).prompt == B


@pytest.mark.parametrize("order", [Back(2, 3, 0), Back(2, 0, 99)])
def test_going_where_nothing_is_changes_nothing(play, order):
    played = play()
    with pytest.raises(UserError, match="no video to go back in"):
        played.engine.back(order)
    played.engine.start(Start(1, A))
    played.watch(3)
    with pytest.raises(UserError, match="no branch|no block"):
        played.engine.back(order)
    assert played.watch(1)[0].frame == 3


def test_a_model_that_fails_says_so_and_can_be_started_again(play):
    class Breaks(RolloutCallback):
        is_broken = True

        def on_block_start(self, trainer, pl_module, state):
            if self.is_broken and state.block_index == 1:
                raise RuntimeError("out of\nmemory")

    played = play()
    breaks = Breaks()
    played.engine._maker._callbacks += (breaks,)
    played.engine.start(Start(1, A))
    played.wait(lambda: played.said(Error))
    assert played.said(Error)[0].message == "the model failed: out of memory; start again"
    assert played.said(Ended)[0].reason == "failed"
    breaks.is_broken = False
    played.engine.start(Start(2, A))
    assert len(played.watch(FIRST + LATER)) == FIRST + LATER


def test_orders_from_many_threads_leave_one_consistent_video(play):
    played = play()
    played.engine.start(Start(1, A))
    played.watch(1)
    failures = []

    def pester(number: int) -> None:
        for i in range(40):
            try:
                if i % 8 == 7:
                    played.engine.back(Back(2, 0, i % 2))
                else:
                    played.engine.change_prompt((A, B, C)[(i + number) % 3], request=i)
            except UserError:
                pass
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=pester, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    played.engine.resume()
    frames = played.watch(3 * LATER)
    assert {frame.branch for frame in frames} == {played.engine.video.tree.current}
    assert not played.said(Error)


def test_warming_up_leaves_nothing_behind_and_makes_slow_steps_optional(play):
    played = play()
    played.engine.warm_up(A)
    assert not played.engine.video.is_playing
    assert played.engine.video.tree is None
    recipes = played.engine.recipes
    assert recipes.fit(0.1, 0.75) is None
    while recipes.fit(30.0, 0.75):
        pass
    assert [offer.steps[0] for offer in recipes.offers()] == [1, 1]


@pytest.mark.parametrize(("seconds", "frames"), [(0.01, 36), (0.3, 48), (0.55, 60), (900, 256)])
def test_the_buffer_is_as_deep_as_a_change_of_prompt_is_long(play, monkeypatch, seconds, frames):
    played = play(buffer_frames=None)
    monkeypatch.setattr(played.engine, "_rehearse", lambda prompt: seconds)
    played.engine.warm_up(A)
    assert played.engine.buffer_frames == frames
    fixed = play(buffer_frames=5)
    monkeypatch.setattr(fixed.engine, "_rehearse", lambda prompt: seconds)
    fixed.engine.warm_up(A)
    assert fixed.engine.buffer_frames == 5


def test_a_state_that_was_asked_to_be_kept_is_kept_where_others_are_not(play):
    played = play(buffer_frames=1)
    maker = played.engine._maker
    maker._every = 1000
    played.engine.start(Start(1, A))
    played.wait(lambda: len(played.engine.playout) >= FIRST)
    effect = played.engine.snapshot()
    played.watch_blocks(4)
    with played.engine.changed:
        assert Place(0, effect.block) in maker._snapshots
        assert len(maker._snapshots) == 1


def test_a_budget_is_kept_to(play):
    played = play()
    store = played.engine._maker._snapshots
    played.engine.start(Start(1, A))
    played.watch_blocks(4)
    with played.engine.changed:
        store.budget_bytes = store.nbytes
    played.watch_blocks(6)
    with played.engine.changed:
        assert 0 < len(store) < 8
        assert store.nbytes <= store.budget_bytes
