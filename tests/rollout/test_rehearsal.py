"""Every kind of pass that a rollout makes is made before its first block."""

import pytest
import torch
from nano import GEOMETRY, Rollout, nano_dit, spec
from torch import Tensor

from longlive.rollout.decode import decode_and_show
from longlive.rollout.denoiser import Denoiser
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.rehearsal import (
    PassKind,
    kind_of,
    passes_of,
    rehearsal_key,
    rehearse,
    rehearse_decoding,
)
from longlive.rollout.state import RolloutSpec, StepInputs
from longlive.rollout.transitions import Transition
from longlive.schedule import DenoisingSchedule

BLOCK = GEOMETRY.block_latent_frames
LIKE = torch.zeros(GEOMETRY.block_shape(1), dtype=torch.float64)


class Witness:
    """Notes the kinds of the passes that go through it."""

    def __init__(self) -> None:
        self.kinds: list[PassKind] = []

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        def call(x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
            self.kinds.append(kind_of(x_BFCHW, inputs))
            return denoiser(x_BFCHW, inputs)

        return call


def rehearsed(asked: RolloutSpec) -> list[PassKind]:
    state = Rollout(nano_dit(), asked).state
    return [kind_of(x, inputs) for x, inputs in passes_of(state, LIKE)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "relative"},
        {"window_latent_frames": None},
        {"window_latent_frames": 7},
        {"sink_latent_frames": 0},
        {"sink_latent_frames": 1, "window_latent_frames": 8},
        {"keeps_sink": False},
        {"computes_unread": True},
        {"recached_latent_frames": 2},
        {"recached_latent_frames": 4},
        {"recached_latent_frames": 2, "window_latent_frames": None},
        {"cached_latent_frames": 9},
        {"updates_context": False},
        {"first_frame_alone": True},
        {"latent_frames": 2},
        {"latent_frames": 4},
        {"sampler": "euler"},
        {"first_schedule": DenoisingSchedule((1.0, 0.7, 0.3))},
    ],
    ids=str,
)
def test_no_rollout_makes_a_pass_of_a_kind_that_was_not_rehearsed(changes):
    asked = spec(**changes)
    known = rehearsed(asked)
    assert len(set(known)) == len(known)
    blocks = asked.latent_frames // BLOCK
    for switch in range(1, blocks + 1):
        witness = Witness()
        prompts = [f"prompt {index}" for index in range(1 + (switch < blocks))]
        timeline = PromptTimeline.switching(prompts, [switch * BLOCK][: len(prompts) - 1])
        Rollout(nano_dit(), asked, timeline, wrap=witness.wrap).latents()
        assert set(witness.kinds) <= set(known)


@pytest.mark.parametrize("blocks_after", [1, 2, 3])
def test_a_cut_and_a_switch_after_it_make_no_other_kinds_of_passes(blocks_after):
    witness, cut = Witness(), 4
    timeline = PromptTimeline(
        ("a", "b", "c"),
        (cut * BLOCK, (cut + blocks_after) * BLOCK),
        (Transition("cut"), Transition("switch")),
    )
    Rollout(nano_dit(), spec(), timeline, wrap=witness.wrap).latents()
    assert set(witness.kinds) <= set(rehearsed(spec()))


def test_the_steady_state_is_rehearsed_first_and_prompt_switches_last():
    kinds = rehearsed(spec())
    assert {kind.read for kind in kinds[:2]} == {spec().slots}
    assert {kind.keys_only for kind in kinds[:2]} == {True, False}
    frames = [kind.latents[1] for kind in kinds]
    assert frames == sorted(frames, key=lambda count: count != BLOCK)
    assert frames[-1] != BLOCK


def test_a_short_video_rehearses_what_a_long_one_does():
    assert set(rehearsed(spec(latent_frames=BLOCK))) == set(rehearsed(spec(latent_frames=100)))


def test_global_attention_is_rehearsed_for_a_bounded_number_of_blocks():
    kinds = rehearsed(spec(window_latent_frames=None, latent_frames=400))
    assert 64 <= len(kinds) < 100


def test_a_rollout_after_a_rehearsal_equals_one_without():
    dit = nano_dit()
    expected = Rollout(dit, spec()).latents()
    rollout = Rollout(dit, spec())
    rehearse(rollout.state, rollout.denoiser, LIKE)
    assert rollout.state.cache.k.count_nonzero() == rollout.state.cache.v.count_nonzero() == 0
    assert (rollout.state.window.end, rollout.state.block_index) == (0, 0)
    assert torch.equal(rollout.latents(), expected)


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"sampler": "euler"}, True),
        ({"schedule": DenoisingSchedule((1.0, 0.5))}, True),
        ({"latent_frames": 100}, True),
        ({"latent_frames": 4}, True),
        ({"keeps_sink": False}, False),
        ({"window_latent_frames": 8}, False),
        ({"positions": "relative"}, True),
        ({"batch": 2}, False),
        ({"guidance": 2.0}, False),
        ({"first_frame_alone": True}, False),
    ],
    ids=str,
)
def test_only_what_changes_a_pass_calls_for_another_rehearsal(changes, is_same):
    assert (rehearsal_key(spec(**changes)) == rehearsal_key(spec())) == is_same


class PerLatentFrame:
    def __init__(self) -> None:
        self.calls: list[int] = []

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        self.calls.append(latents_BFCHW.shape[1])
        return latents_BFCHW


def test_a_decoder_is_rehearsed_with_a_first_block_and_another():
    decoder = PerLatentFrame()
    rehearse_decoding(decoder, LIKE, spec().parts_of(0))
    assert decoder.calls == [BLOCK, BLOCK]


def test_a_decoder_is_rehearsed_with_the_parts_of_a_first_block():
    decoder = PerLatentFrame()
    rehearse_decoding(decoder, LIKE, spec(first_frame_alone=True).parts_of(0))
    assert decoder.calls == [1, BLOCK - 1, BLOCK]


def test_a_decoder_that_knows_no_pieces_shows_a_block_at_once():
    shown: list[Tensor] = []
    frames_of = decode_and_show(PerLatentFrame(), LIKE, shown.append)
    assert shown == [LIKE]
    assert frames_of() is LIKE
