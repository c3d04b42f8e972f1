"""Captured passes and decoder steps, with tapes in place of CUDA graphs."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_tape import TapeRecorder
from nano_model import SETTINGS
from torch import Tensor

from longlive.callbacks.capture_decoder import CaptureDecoder
from longlive.callbacks.cuda_graph import CaptureDenoiser
from longlive.callbacks.vae_pipeline import PipelineDecoding
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.snapshot import RolloutSnapshot, restore_snapshot, take_snapshot
from longlive.rollout.stream import RolloutStream
from longlive.rollout.transitions import SWITCH

CIRCLE, SQUARE = "a large red circle", "a small blue square"
SWITCHING = PromptTimeline.switching([CIRCLE, SQUARE, CIRCLE], [3, 9])


def model_of(folder: Path, **changes: Any) -> LongLive:
    settings = {"weights": str(folder), "latent_frames": 15, **SETTINGS, **changes}
    return LongLive(**settings).prepare("cpu")


def on_tape(callback: Any) -> Any:
    """Let a callback record tapes, where it would record graphs."""
    recorder = TapeRecorder()
    callback._recorder = lambda device: recorder
    callback.missing = lambda device: None
    callback.tapes = recorder
    return callback


def graphs(**options: Any) -> CaptureDenoiser:
    return on_tape(CaptureDenoiser(**options))


def latents(stream: Any) -> Tensor:
    return torch.cat([block.latents for block in stream], 1)


def frames(stream: Any) -> Tensor:
    return torch.cat([block.frames for block in stream], 1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "relative"},
        {"guidance": 2.0},
        {"keeps_sink": False},
        {"window_latent_frames": None},
        {"window_latent_frames": 8, "sink_latent_frames": 1},
        {"sampler": "euler"},
    ],
    ids=str,
)
def test_a_captured_rollout_with_prompt_switches_equals_the_eager_one(folder, changes):
    model, callback = model_of(folder, **changes), graphs()
    expected = latents(model.stream(SWITCHING, seed=1))
    assert torch.equal(latents(model.stream(SWITCHING, seed=1, callbacks=[callback])), expected)
    assert torch.equal(
        latents(model.stream(CIRCLE, seed=2, callbacks=[callback])),
        latents(model.stream(CIRCLE, seed=2)),
    )


def test_every_kind_of_pass_is_captured_before_the_first_block_and_none_later(folder):
    model, callback = model_of(folder), graphs()
    stream = model.stream(SWITCHING, callbacks=[callback])
    # Two lengths of the window, each with a step and a context update; recaches of 6 and, with the
    # sink kept, of 3 latent frames, which is a context update of the full window.
    captured = callback.tapes.count
    assert captured == 5
    latents(stream)
    assert callback.tapes.count == captured


def test_the_next_rollout_replays_the_graphs_of_the_one_before(folder):
    model, callback = model_of(folder), graphs()
    latents(model.stream(SWITCHING, callbacks=[callback]))
    captured = callback.tapes.count
    again = model.stream(SWITCHING, seed=5, callbacks=[callback])
    assert not again.state.spec.rehearses
    assert torch.equal(latents(again), latents(model.stream(SWITCHING, seed=5)))
    assert callback.tapes.count == captured


def test_two_rollouts_at_a_time_do_not_share_their_caches(folder):
    model, callback = model_of(folder), graphs()
    first = iter(model.stream(CIRCLE, seed=1, callbacks=[callback]))
    second = iter(model.stream(SQUARE, seed=2, callbacks=[callback]))
    mixed = [[next(first).latents, next(second).latents] for _ in range(4)]
    for video, (prompt, seed) in enumerate([(CIRCLE, 1), (SQUARE, 2)]):
        alone = islice(model.stream(prompt, seed=seed), 4)
        for block, expected in zip(mixed, alone, strict=True):
            assert torch.equal(block[video], expected.latents)


def test_a_rollout_that_was_never_begun_leaves_its_caches_to_the_next(folder):
    model, callback = model_of(folder), graphs()
    model.stream(CIRCLE, callbacks=[callback])
    captured = callback.tapes.count
    model.stream(CIRCLE, callbacks=[callback])
    assert callback.tapes.count == captured


def test_other_weights_are_captured_anew(folder):
    model, callback = model_of(folder), graphs()
    latents(model.stream(CIRCLE, callbacks=[callback]))
    captured = callback.tapes.count
    ffn = model.dit.blocks[0].ffn[0]
    ffn.weight = torch.nn.Parameter(2 * ffn.weight, requires_grad=False)
    got = latents(model.stream(CIRCLE, callbacks=[callback]))
    assert torch.equal(got, latents(model.stream(CIRCLE)))
    assert callback.tapes.count == 2 * captured


def test_passes_beyond_the_limit_run_as_they_are_and_the_log_says_so_once(folder, caplog):
    model, callback = model_of(folder), graphs(most_graphs=2)
    got = latents(model.stream(SWITCHING, callbacks=[callback]))
    assert torch.equal(got, latents(model.stream(SWITCHING)))
    assert callback.tapes.count == 2
    assert len(caplog.messages) == 1
    assert "2 graphs already" in caplog.messages[0]


def test_a_capture_that_fails_leaves_the_eager_pass_and_one_line_in_the_log(folder, caplog):
    model, callback = model_of(folder), graphs()
    callback.tapes.fails = True
    got = latents(model.stream(SWITCHING, callbacks=[callback]))
    assert torch.equal(got, latents(model.stream(SWITCHING)))
    assert len(caplog.messages) == 1
    assert "not permitted when stream is capturing" in caplog.messages[0]


class OnePrompt:
    """Stays the same wherever a rollout goes back to."""

    prompt = CIRCLE
    transition = SWITCH

    def expects(self, block_start_latent_frame, /):
        return None

    def advance(self, block_start_latent_frame, /):
        return None

    def request(self, prompt, /):
        raise NotImplementedError


class RewindOnce(RolloutCallback):
    """Goes back to the end of block 1 after block 3."""

    stream: RolloutStream
    taken: RolloutSnapshot | None = None

    def on_block_end(self, trainer, pl_module, state):
        if state.block_index == 1 and self.taken is None:
            self.taken = take_snapshot(state, self.stream.decoder)
        elif state.block_index == 3 and self.taken is not None:
            restore_snapshot(state, self.stream.decoder, self.taken)
            self.taken = None


def test_a_restored_snapshot_goes_on_as_the_first_time_in_captured_passes(folder):
    rewind = RewindOnce()
    callbacks = [graphs(), on_tape(CaptureDecoder()), PipelineDecoding(), rewind]
    rewind.stream = model_of(folder).stream(OnePrompt(), callbacks=callbacks)
    made = [(block.index, block.latents, block.frames) for block in islice(rewind.stream, 6)]
    assert [index for index, *_ in made] == [0, 1, 2, 3, 2, 3]
    for before, after in zip(made[2:4], made[4:6], strict=True):
        assert torch.equal(before[1], after[1])
        assert torch.equal(before[2], after[2])


# The decoder.


def test_a_captured_decoder_gives_the_frames_of_the_eager_one(folder):
    model, callback = model_of(folder), on_tape(CaptureDecoder())
    expected = frames(model.stream(CIRCLE))
    stream = model.stream(CIRCLE, callbacks=[callback])
    # A first block and one after it.
    assert callback.tapes.count == 2
    assert torch.equal(frames(stream), expected)
    assert torch.equal(frames(model.stream(CIRCLE, callbacks=[callback])), expected)
    assert callback.tapes.count == 2


def test_videos_that_take_turns_at_a_captured_decoder_do_not_mix(folder):
    model, callback = model_of(folder), on_tape(CaptureDecoder())
    streams = [iter(model.stream(CIRCLE, seed=seed, callbacks=[callback])) for seed in (1, 2)]
    mixed = [[next(stream).frames for stream in streams] for _ in range(4)]
    for video, seed in enumerate((1, 2)):
        alone = islice(model.stream(CIRCLE, seed=seed), 4)
        for block, expected in zip(mixed, alone, strict=True):
            assert torch.equal(block[video], expected.frames)


def test_a_decoder_that_cannot_be_captured_runs_as_it_is(folder, caplog):
    model, callback = model_of(folder), on_tape(CaptureDecoder())
    callback.tapes.fails = True
    got = frames(model.stream(CIRCLE, callbacks=[callback]))
    assert torch.equal(got, frames(model.stream(CIRCLE)))
    assert [message for message in caplog.messages if "decoder" in message] == [
        "the decoder runs without a graph: operation not permitted when stream is capturing"
    ]


def test_the_tape_repeats_what_it_saw_and_nothing_else():
    x, number = torch.zeros(3), [1.0]
    recording = TapeRecorder().record(lambda: (x + number[0]).mul_(2))
    assert recording.out.tolist() == [2, 2, 2]
    x.fill_(1)
    number[0] = 5.0
    recording.replay()
    assert recording.out.tolist() == [4, 4, 4]
