"""Branches of a video, and the file that makes them again."""

import json
from pathlib import Path
from typing import Any

import pytest

from longlive.data.prompts import PromptDataModule
from longlive.data.sessions import BranchTree, PromptEvent, read_session
from longlive.errors import UserError
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.transitions import Transition

CUT = Transition("cut")


def started(blocks: int = 8, seed: int = 7) -> BranchTree:
    tree = BranchTree.begin([PromptEvent(0, "a")], seed)
    tree.branch.blocks = blocks
    return tree


def asked(tree: BranchTree, block: int, prompt: str, how: Transition | None = None) -> None:
    tree.ask(PromptEvent(block, prompt, how or Transition()))


def shown(tree: BranchTree, branch: int) -> list[tuple[int, str]]:
    return [(event.block, event.prompt) for event in tree.video(branch).prompts]


def test_a_prompt_holds_until_the_next_one():
    tree = started()
    asked(tree, 3, "b")
    assert [tree.prompt_at(0, block).prompt for block in (0, 2, 3, 7)] == ["a", "a", "b", "b"]


def test_of_several_prompts_for_one_block_the_latest_wins():
    tree = started()
    first, second = PromptEvent(3, "b", request=5), PromptEvent(3, "c", request=6)
    assert tree.ask(first) is None
    assert tree.ask(second) is first
    assert shown(tree, 0) == [(0, "a"), (3, "c")]


def test_asking_for_the_active_prompt_takes_back_what_was_asked_for():
    tree = started()
    asked(tree, 3, "b")
    asked(tree, 3, "a")
    assert shown(tree, 0) == [(0, "a")]


def test_the_active_prompt_may_begin_a_new_shot():
    tree = started()
    asked(tree, 3, "a", CUT)
    assert shown(tree, 0) == [(0, "a"), (3, "a")]


def test_a_branch_shares_what_came_before_it_and_nothing_after():
    tree = started()
    asked(tree, 2, "b")
    asked(tree, 6, "c")
    made = tree.branch_off(0, 4)
    asked(tree, 4, "d")
    made.blocks = 9
    assert shown(tree, 0) == [(0, "a"), (2, "b"), (6, "c")]
    assert shown(tree, 1) == [(0, "a"), (2, "b"), (4, "d")]
    assert tree.video(1).blocks == 9
    assert made.parent == 0


def test_without_another_prompt_a_branch_goes_on_with_the_one_that_began_there():
    tree = started()
    asked(tree, 4, "b", CUT)
    made = tree.branch_off(0, 4)
    made.blocks = 6
    assert shown(tree, 1) == [(0, "a"), (4, "b")]
    assert tree.video(1).prompts[1].transition == CUT


def test_a_branch_of_a_branch_from_before_it_leaves_the_grandparent():
    tree = started()
    tree.branch_off(0, 5).blocks = 9
    made = tree.branch_off(1, 3)
    assert made.parent == 0
    assert tree.branch_off(1, 7).id == 2
    assert tree.branch.parent == 1


def test_a_branch_at_block_0_has_no_parent():
    tree = started()
    made = tree.branch_off(0, 0, seed=9)
    asked(tree, 0, "z")
    made.blocks = 2
    assert made.parent is None
    assert shown(tree, 1) == [(0, "z")]
    assert tree.video(1).seeds == ((0, 9),)


def test_clicking_about_leaves_no_empty_branches():
    tree = started()
    for branch, block in ((0, 3), (0, 5), (1, 2)):
        tree.branch_off(branch, block)
    assert [branch.id for branch in tree.branches] == [0, 1]
    assert tree.branch.block == 2
    assert tree.branch.parent == 0


def test_every_stretch_has_the_seed_of_its_branch():
    tree = started(seed=7)
    tree.branch_off(0, 4, seed=8).blocks = 6
    tree.branch_off(1, 5).blocks = 9
    tree.branch_off(2, 6, seed=7).blocks = 8
    assert tree.video(1).seeds == ((0, 7), (4, 8))
    assert tree.video(2).seeds == ((0, 7), (4, 8))
    assert tree.video(3).seeds == ((0, 7), (4, 8), (6, 7))


@pytest.mark.parametrize(
    ("branch", "block", "message"),
    [
        (1, 0, "there is no branch 1"),
        (-1, 0, "there is no branch -1"),
        (0, 9, "no block 9; go back to 0 to 8"),
    ],
)
def test_only_what_was_made_can_be_gone_back_to(branch, block, message):
    tree = started()
    with pytest.raises(UserError, match=message):
        tree.branch_off(branch, block)
    assert len(tree.branches) == 1


# ---- The file ----


def document(tree: BranchTree, **changes: Any) -> dict[str, Any]:
    return {
        "format": "longlive-session",
        "version": 1,
        "weights": {"hash": "sha256:1"},
        "config": {"model": {"class_path": "m", "init_args": {}}, "callbacks": []},
        "block_latent_frames": 3,
        "branches": tree.as_list(),
        **changes,
    }


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def branching() -> BranchTree:
    tree = started(blocks=8)
    asked(tree, 2, "b", Transition("blend", 3))
    asked(tree, 6, "c")
    tree.branch_off(0, 4, seed=8)
    asked(tree, 4, "d", CUT)
    tree.branch.blocks = 7
    return tree


def test_a_session_survives_the_file(tmp_path):
    tree = branching()
    session = read_session(write(tmp_path / "s.json", document(tree)))
    assert session.tree.videos() == tree.videos()
    assert session.weights_hash == "sha256:1"


def test_prompts_that_were_never_reached_are_not_in_the_file(tmp_path):
    tree = started(blocks=3)
    asked(tree, 5, "later")
    session = read_session(write(tmp_path / "s.json", document(tree)))
    assert shown(session.tree, 0) == [(0, "a")]


def test_every_branch_becomes_a_video_of_its_own(tmp_path):
    data = PromptDataModule(session_file=write(tmp_path / "s.json", document(branching())))
    data.setup("predict")
    first, second = data.scripts
    assert (first.seed, first.latent_frames, first.weights_hash) == (7, 24, "sha256:1")
    assert first.timeline(24, 3) == PromptTimeline(
        ("a", "b", "c"), (6, 18), (Transition("blend", 3), Transition())
    )
    assert [second.seed_of(block) for block in (0, 3, 4, 6)] == [7, 7, 8, 8]
    assert second.timeline(21, 3) == PromptTimeline(
        ("a", "b", "d"), (6, 12), (Transition("blend", 3), CUT)
    )


def broken(key: str, value: Any) -> dict[str, Any]:
    found = document(branching())
    found["branches"][1][key] = value
    return found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ([], "is no session"),
        ({"prompts": []}, "is no session: longlive serve writes them"),
        (document(branching(), version=2), "has version 2 and 1 is understood"),
        (document(branching(), branches=[]), "has no block"),
        (document(branching(), branches=3), "is damaged"),
        (document(branching(), weights={}), "is damaged (KeyError: 'hash')"),
        (broken("parent", 1), "branch 1 does not hold together"),
        (broken("parent", -1), "branch 1 does not hold together"),
        (broken("block", 20), "branch 1 does not hold together"),
        (broken("id", 3), "branch 1 does not hold together"),
        (broken("seed", "x"), "is damaged"),
        (
            broken(
                "prompts", [{"block": 4, "prompt": "a", "transition": {"kind": "x", "blocks": 1}}]
            ),
            "there is no transition 'x'",
        ),
        (broken("prompts", [{"block": 2, "prompt": "a"}]), "is damaged"),
    ],
)
def test_a_file_that_does_not_hold_together_is_refused_in_one_line(tmp_path, content, message):
    path = write(tmp_path / "s.json", content)
    with pytest.raises(UserError) as caught:
        read_session(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read the session"):
        read_session(tmp_path / "none.json")


def test_a_session_brings_its_own_prompts(tmp_path):
    with pytest.raises(UserError, match="brings its own prompts"):
        PromptDataModule(prompt="a", session_file=tmp_path / "s.json")
