"""A first block in two parts: what it equals, when it is shown, and who may interrupt it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from nano import GEOMETRY, Rollout, nano_dit, noise_of, spec
from torch import Tensor

from longlive.rollout.hooks import NoHooks
from longlive.rollout.noise import NoiseSource
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.state import RolloutSpec, RolloutState
from longlive.rollout.stream import Block, RolloutStream

EXACT = {"rtol": 0, "atol": 1e-11}
"""float64, where only the order of sums differs."""
BLOCK = GEOMETRY.block_latent_frames
ALONE = spec(first_frame_alone=True, latent_frames=8)


class OneByOne:
    """The noise of a block of two latent frames, for two blocks of one."""

    def __init__(self, noise: NoiseSource) -> None:
        self.noise = noise

    def draw(self, block_index: int, step_index: int) -> Tensor:
        return self.noise.draw(0, step_index)[:, block_index : block_index + 1]


class Recorder:
    """What is called, and what is asked for meanwhile."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def call(self, hook: str, state: RolloutState, *args: Any) -> None:
        if hook in ("on_part_ready", "on_latents_ready", "on_frames_ready"):
            hook += f" {args[0].shape[1]}"
        self.lines.append(hook)

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        self.lines.append(f"decode {latents_BFCHW.shape[1]}")
        return latents_BFCHW


def stream_of(asked: RolloutSpec, recorder: Recorder | None = None) -> RolloutStream:
    recorder = recorder or Recorder()
    rollout = Rollout(nano_dit(), asked)
    return RolloutStream(
        rollout.state,
        rollout.denoiser,
        recorder,
        rollout.noise,
        rollout.cursor,
        rollout.text,
        recorder,
    )


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("updates_context", [True, False])
def test_the_parts_equal_blocks_of_their_sizes(positions, updates_context):
    changes = {"positions": positions, "updates_context": updates_context, "sink_latent_frames": 1}
    asked = replace(ALONE, **changes)
    alone = Rollout(nano_dit(), asked).latents(1)
    small = replace(GEOMETRY, block_latent_frames=1)
    noise = OneByOne(noise_of(asked))
    by_one = Rollout(nano_dit(), spec(geometry=small, **changes), noise=noise).latents(2)
    torch.testing.assert_close(alone, by_one, **EXACT)
    assert not torch.equal(
        alone, Rollout(nano_dit(), replace(asked, first_frame_alone=False)).latents(1)
    )


@pytest.mark.parametrize("sink", [0, 1])
def test_a_sink_wider_than_the_first_part_has_clean_keys(sink):
    # Until something is evicted nobody can tell how wide a sink is.
    asked = replace(ALONE, latent_frames=6)
    narrow = Rollout(nano_dit(), replace(asked, sink_latent_frames=sink)).latents()
    torch.testing.assert_close(Rollout(nano_dit(), asked).latents(), narrow, **EXACT)


def test_later_blocks_and_switches_go_on_as_ever():
    asked = replace(ALONE, latent_frames=16)
    latents = Rollout(nano_dit(), asked, PromptTimeline.switching("ab", [4])).latents()
    assert latents.shape[1] == 16
    assert latents.isfinite().all()
    assert torch.equal(latents[:, :4], Rollout(nano_dit(), asked).latents(2))


def test_the_first_latent_frame_is_shown_before_the_second_is_denoised():
    recorder = Recorder()
    blocks = stream_of(ALONE, recorder)
    first = next(iter(blocks))
    step = ["on_denoise_step_start", "on_denoise_step_end"]
    update = ["on_context_update_start", "on_context_update_end"]
    first_shown = ["on_part_ready 1", "decode 1", "on_frames_ready 1", *update]
    block = [*step * 2, *first_shown, *step * 2]
    shown = ["on_latents_ready 2", "decode 1", "on_frames_ready 1"]
    begun = recorder.lines.index("on_block_start") + 1
    assert recorder.lines[begun : begun + len(block) + len(shown)] == [*block, *shown]
    assert torch.equal(first.frames, first.latents)


def test_every_frame_is_shown_once_and_in_order():
    made: list[Block] = list(stream_of(ALONE))
    assert [block.latents.shape[1] for block in made] == [BLOCK] * 4
    assert torch.equal(
        torch.cat([block.frames for block in made], 1), Rollout(nano_dit(), ALONE).latents()
    )


def test_latents_that_nobody_shows_are_not_decoded():
    recorder = Recorder()
    list(stream_of(replace(ALONE, is_shown=False), recorder))
    assert not [line for line in recorder.lines if line.startswith("decode")]


class AsksAt(NoHooks):
    """Asks for prompt b after the first step of one part of block 0."""

    def __init__(self, part: int) -> None:
        self.part = part
        self.rollout: Rollout | None = None
        self.prompts: list[str] = []

    def call(self, hook: str, state: RolloutState, *args: Any) -> None:
        if hook == "on_block_start":
            self.prompts.append(state.prompt)
        if hook == "on_denoise_step_end" and state.block_index == state.step_index == 0:
            assert self.rollout is not None
            if state.part_index == self.part:
                self.rollout.cursor.request("b")


@pytest.mark.parametrize("part", [0, 1])
def test_a_block_that_is_shown_in_part_is_not_given_up(part):
    hooks = AsksAt(part)
    hooks.rollout = Rollout(nano_dit(), replace(ALONE, preempts=True), hooks=hooks)
    hooks.rollout.latents()
    assert "".join(hooks.prompts) == "abbb"


def test_a_block_of_one_latent_frame_has_no_parts():
    small = replace(GEOMETRY, block_latent_frames=1)
    assert replace(ALONE, geometry=small).parts_of(0) == (1,)
    assert ALONE.parts_of(0) == (1, BLOCK - 1)
    assert ALONE.parts_of(1) == (BLOCK,)
