"""When each prompt is active."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlive.errors import UserError
from longlive.rollout.prompts import PromptTimeline


def run(timeline: PromptTimeline, latent_frames: int, block: int = 3) -> list[tuple[int, str]]:
    """The switches that ``advance`` reports."""
    cursor = timeline.start()
    reports = [(start, cursor.advance(start)) for start in range(0, latent_frames, block)]
    return [(start, prompt) for start, prompt in reports if prompt is not None]


def test_one_prompt_never_switches():
    timeline = PromptTimeline.single("a")
    assert run(timeline, 30) == []
    assert timeline.plan(30, 3) == [(0, "a")]


def test_a_switch_acts_at_the_first_block_that_starts_at_or_after_it():
    timeline = PromptTimeline.switching("abcdef", [40, 80, 120, 160, 200])
    assert [start for start, _ in run(timeline, 240)] == [42, 81, 120, 162, 201]
    assert "".join(prompt for _, prompt in run(timeline, 240)) == "bcdef"


def test_two_switches_inside_one_block_act_in_consecutive_blocks():
    timeline = PromptTimeline.switching("abcd", [4, 5, 7])
    assert run(timeline, 30) == [(6, "b"), (9, "c"), (12, "d")]


def test_every_rollout_starts_from_the_first_prompt():
    timeline = PromptTimeline.switching("ab", [3])
    assert run(timeline, 9) == run(timeline, 9) == [(3, "b")]


@given(
    st.lists(st.integers(1, 60), unique=True, max_size=8).map(sorted),
    st.integers(1, 5),
)
def test_switches_follow_the_rule_of_the_reference(switches, block):
    prompts = [f"prompt {i}" for i in range(len(switches) + 1)]
    expected, waiting = [], list(switches)
    for start in range(0, 120, block):  # the reference's rule, word for word
        if waiting and waiting[0] <= start:
            expected.append((start, prompts[len(switches) - len(waiting) + 1]))
            waiting.pop(0)
    timeline = PromptTimeline.switching(prompts, switches)
    assert run(timeline, 120, block) == expected
    assert timeline.plan(120, block) == [(0, prompts[0]), *expected]


@pytest.mark.parametrize(
    ("prompts", "switches", "message"),
    [
        ([], [], "needs a prompt"),
        ([""], [], "prompt 1 is empty"),
        (["a", " \n"], [3], "prompt 2 is empty"),
        (["a", "b"], [], "0 switch latent frames do not fit 2"),
        (["a"], [3], "1 switch latent frames do not fit 1"),
        (["a", "b", "c"], [6, 6], "must ascend, got 6 after 6"),
        (["a", "b", "c"], [6, 3], "must ascend, got 3 after 6"),
        (["a", "b"], [-1], "negative"),
        (["a", "b"], [0], "never show the first prompt"),
    ],
)
def test_a_timeline_that_cannot_work_is_refused_in_one_line(prompts, switches, message):
    with pytest.raises(UserError, match=message) as caught:
        PromptTimeline.switching(prompts, switches)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("switches", "number"),
    [
        ([120], 2),  # past the end
        ([118], 2),  # inside the last block, whose start is 117
        ([116, 117], 3),  # each in time, but one switch a block leaves no block for the second
        ([3, 200], 3),
    ],
)
def test_a_prompt_that_would_never_be_shown_is_refused(switches, number):
    timeline = PromptTimeline.switching(["a", "b", "c"][: len(switches) + 1], switches)
    with pytest.raises(UserError, match=f"prompt {number} would never be shown.* starts at 117"):
        timeline.plan(120, 3)


def test_a_switch_at_the_start_of_the_last_block_is_in_time():
    assert PromptTimeline.switching("ab", [117]).plan(120, 3)[-1] == (117, "b")


def test_prompts_without_places_get_equal_shares():
    assert PromptTimeline.spread("abcdef", 240).switch_latent_frames == (40, 80, 120, 160, 200)
    assert PromptTimeline.spread("a", 3) == PromptTimeline.single("a")
    with pytest.raises(UserError, match="do not fit"):
        PromptTimeline.spread("abcd", 3)


@given(st.integers(1, 12), st.integers(1, 60), st.integers(1, 4))
def test_equal_shares_always_fit_a_video_with_a_block_for_each_prompt(prompts, blocks, block):
    names = [str(i) for i in range(prompts)]
    if prompts <= blocks:
        shown = PromptTimeline.spread(names, blocks * block).plan(blocks * block, block)
        assert [prompt for _, prompt in shown] == names


def test_a_request_takes_effect_at_the_next_block_and_the_latest_one_wins():
    cursor = PromptTimeline.single("a").start()
    assert cursor.advance(0) is None
    cursor.request("b")
    cursor.request("c")
    assert cursor.prompt == "a"
    assert cursor.advance(3) == "c"
    assert cursor.advance(6) is None
    assert cursor.prompt == "c"
    assert cursor.history == [(0, "a"), (3, "c")]


def test_a_request_before_the_first_block_replaces_the_first_prompt():
    cursor = PromptTimeline.single("a").start()
    cursor.request("b")
    assert cursor.advance(0) == "b"
    assert cursor.history == [(0, "b")]


def test_a_request_drops_the_planned_switches_that_are_due_and_no_later_one():
    cursor = PromptTimeline.switching("abcd", [4, 5, 12]).start()
    cursor.advance(0)
    cursor.advance(3)
    cursor.request("live")
    assert [cursor.advance(start) for start in (6, 9, 12)] == ["live", None, "d"]


def test_asking_for_the_active_prompt_changes_nothing():
    cursor = PromptTimeline.switching("ab", [3]).start()
    cursor.advance(0)
    cursor.request("x")
    cursor.request("a")
    assert cursor.advance(3) == "b"
    cursor.request("b")
    assert cursor.advance(6) is None


def test_an_empty_request_is_refused_and_leaves_the_earlier_one():
    cursor = PromptTimeline.single("a").start()
    cursor.request("b")
    with pytest.raises(UserError, match="empty"):
        cursor.request("  ")
    assert cursor.advance(0) == "b"


def test_blocks_must_come_in_order():
    cursor = PromptTimeline.single("a").start()
    cursor.advance(3)
    for start in (3, 0):
        with pytest.raises(ValueError, match="does not come after"):
            cursor.advance(start)


def test_requests_from_many_threads_are_each_taken_whole():
    cursor = PromptTimeline.single("start").start()
    asked = [[f"{thread}-{i}" for i in range(200)] for thread in range(4)]

    def ask(prompts: list[str]) -> None:
        for prompt in prompts:
            cursor.request(prompt)

    threads = [threading.Thread(target=ask, args=(prompts,)) for prompts in asked]
    for thread in threads:
        thread.start()
    start = 0
    while any(thread.is_alive() for thread in threads):
        cursor.advance(start)
        start += 3
    for thread in threads:
        thread.join()
    cursor.advance(start)
    shown = [prompt for _, prompt in cursor.history[1:]] or [cursor.prompt]
    assert len(shown) == len(set(shown))
    assert shown[-1] in {prompts[-1] for prompts in asked}
    for number, prompts in enumerate(asked):
        mine = [prompt for prompt in shown if prompt.startswith(f"{number}-")]
        assert mine == sorted(mine, key=prompts.index)
