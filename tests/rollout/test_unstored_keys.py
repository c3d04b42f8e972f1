"""Clean keys that a known prompt will replace are not computed, and nothing else changes."""

from typing import Any

import pytest
import torch
from nano import GEOMETRY, Rollout, nano_dit, spec
from torch import Tensor

from longlive.rollout.hooks import NoHooks
from longlive.rollout.loop import stream_blocks
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.snapshot import RolloutSnapshot, restore_snapshot, take_snapshot
from longlive.rollout.state import RolloutState, StepInputs
from longlive.rollout.transitions import SWITCH, Transition

EXACT = {"rtol": 0, "atol": 1e-11}
"""float64, where only the order of sums differs."""
BLOCK = GEOMETRY.block_latent_frames


class KeysOnly:
    """Counts the passes over one block that only store keys."""

    def __init__(self) -> None:
        self.updates = 0

    def wrap(self, denoiser):
        def call(x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
            self.updates += inputs.keys_only and x_BFCHW.shape[1] == BLOCK
            return denoiser(x_BFCHW, inputs)

        return call


def made(timeline: PromptTimeline, hooks: Any = None, **changes: object) -> tuple[Tensor, int]:
    """Latents, and how many context updates they took."""
    counts, dit = KeysOnly(), nano_dit()
    rollout = Rollout(dit, spec(**changes), timeline, hooks=hooks, wrap=counts.wrap)

    def mixed(mixture):
        parts = [(rollout.text(prompt), weight) for prompt, weight in mixture]
        return [
            tuple(sum(weight * text[layer][part] for text, weight in parts) for part in (0, 1))
            for layer in range(dit.config.layers)
        ]

    if isinstance(hooks, Withdraws):
        hooks.rollout = rollout
    with torch.no_grad():
        blocks = stream_blocks(
            *(rollout.state, rollout.denoiser, rollout.noise, rollout.cursor),
            *(rollout.text, rollout.hooks, mixed),
        )
        return torch.cat(list(blocks), 1), counts.updates


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("start", [2, 4, 10])
@pytest.mark.parametrize(
    ("transition", "changes", "saved"),
    [
        (Transition("switch"), {}, 1),
        (Transition("switch"), {"keeps_sink": False}, 1),
        (Transition("switch"), {"recaches": False}, 0),
        (Transition("cut"), {}, 1),
        (Transition("blend", 2), {}, 0),
    ],
    ids=str,
)
def test_a_video_is_the_same_without_the_update_before_a_prompt(
    transition, changes, saved, start, positions
):
    timeline = PromptTimeline(("a", "b"), (start,), (transition,))
    given = {"positions": positions, **changes}
    short, updates = made(timeline, **given)
    full, all_updates = made(timeline, computes_unread=True, **given)
    torch.testing.assert_close(short, full, **EXACT)
    # A window of one block is rebuilt by a pass of the size of an update.
    assert all_updates - updates == saved


@pytest.mark.parametrize("start", [2, 10])
def test_so_it_is_where_a_part_of_the_window_is_rebuilt(start):
    timeline = PromptTimeline.switching("ab", [start])
    short, updates = made(timeline, recached_latent_frames=BLOCK)
    full, all_updates = made(timeline, recached_latent_frames=BLOCK, computes_unread=True)
    torch.testing.assert_close(short, full, **EXACT)
    assert all_updates - updates == 1


class Withdraws(NoHooks):
    """Asks for a prompt while block 2 is made, and for the active one again when it is over."""

    rollout: Rollout

    def call(self, hook: str, state: RolloutState, *args: Any) -> None:
        if state.block_index == 2 and hook == "on_latents_ready":
            self.rollout.cursor.request("b")
        if state.block_index == 2 and hook == "on_block_end":
            assert state.unstored is not None
            self.rollout.cursor.request("a")


def test_a_prompt_that_is_withdrawn_leaves_the_keys_that_it_would_have_replaced():
    latents, updates = made(PromptTimeline.single("a"), Withdraws())
    expected, as_many = made(PromptTimeline.single("a"))
    assert torch.equal(latents, expected)
    assert updates == as_many


class GoesBack(NoHooks):
    """Goes back to the end of block 2 after block 3, once."""

    kept: RolloutSnapshot | None = None
    has_gone = False

    def call(self, hook: str, state: RolloutState, *args: Any) -> None:
        if hook != "on_block_end" or self.has_gone:
            return
        if state.block_index == 2:
            assert state.unstored is not None
            self.kept = take_snapshot(state, _NoDecoder())
        elif state.block_index == 3:
            assert self.kept is not None
            restore_snapshot(state, _NoDecoder(), self.kept)
            self.has_gone = True


class _NoDecoder:
    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        return latents_BFCHW

    def snapshot(self) -> None:
        return None

    def restore(self, state: None) -> None:
        return None


class SwitchesOnce:
    """Prompt b begins with block 3 the first time, and nothing does when it comes again."""

    def __init__(self) -> None:
        self.prompt, self.transition = "a", SWITCH
        self.is_over = False

    def expects(self, start: int) -> Transition | None:
        return SWITCH if start == 3 * BLOCK and not self.is_over else None

    def advance(self, start: int) -> str | None:
        if self.expects(start) is None:
            return None
        self.is_over = True
        return "b"

    def request(self, prompt: str) -> None:
        raise NotImplementedError

    def preempt(self) -> str | None:
        return None


def test_a_snapshot_from_before_a_switch_goes_on_without_it():
    rollout = Rollout(nano_dit(), spec(latent_frames=12), hooks=GoesBack())
    with torch.no_grad():
        blocks = list(
            stream_blocks(
                *(rollout.state, rollout.denoiser, rollout.noise, SwitchesOnce()),
                *(rollout.text, rollout.hooks),
            )
        )
    # Blocks 0 to 3, then 3 again, 4 and 5.
    expected = Rollout(nano_dit(), spec(latent_frames=12), "a").latents()
    again = torch.cat([*blocks[:3], *blocks[4:]], 1)
    assert torch.equal(again, expected)
    assert not torch.equal(blocks[3], blocks[4])
