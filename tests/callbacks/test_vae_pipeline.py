"""The first frame before the rest of its block, and decoding in a stream of its own."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from graph_tape import TapeRecorder
from nano_model import SETTINGS

from longlive.callbacks.capture_decoder import CaptureDecoder
from longlive.callbacks.cuda_graph import CaptureDenoiser
from longlive.callbacks.vae_pipeline import PipelinedDecoder, PipelineDecoding
from longlive.errors import UserError
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.prompts import PromptTimeline

CIRCLE = "a large red circle"


class Shown(RolloutCallback):
    """Notes what it is shown, and when."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.frames: list[torch.Tensor] = []

    def on_frames_ready(self, trainer, pl_module, state, frames_BTCHW):
        self.diary.append(f"{frames_BTCHW.shape[1]} frames")
        # As a writer does, in the stream that is current.
        self.frames.append(frames_BTCHW.clone())

    def on_context_update_start(self, trainer, pl_module, state):
        self.diary.append("update")


class PerLatentFrame:
    """A decoder that says what it was given."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def decode(self, latents_BFCHW):
        self.calls.append(latents_BFCHW.shape[1])
        return latents_BFCHW[:, :, :3].repeat_interleave(2, 1)


def model_of(folder: Path, device: str = "cpu", **more: object) -> LongLive:
    settings = {"weights": str(folder), "latent_frames": 9, "dtype": "float32", **SETTINGS}
    return LongLive(**{**settings, **more}).prepare(device)


def test_the_first_frame_of_a_video_is_shown_before_the_rest_of_its_block(folder):
    shown = Shown()
    blocks = list(model_of(folder).stream(CIRCLE, callbacks=[PipelineDecoding(), shown]))
    assert shown.diary == [
        *("1 frames", "8 frames", "update"),
        *("12 frames", "update"),
        *("12 frames", "update"),
    ]
    assert [block.frames.shape[1] for block in blocks] == [9, 12, 12]
    frames = torch.cat([block.frames for block in blocks], 1)
    assert torch.equal(torch.cat(shown.frames, 1), frames)


def test_a_first_frame_that_is_made_alone_is_decoded_alone_in_either_way(folder):
    model = model_of(folder, first_frame_alone=True)
    frames = []
    for callbacks in ([PipelineDecoding()], []):
        shown = Shown()
        blocks = list(model.stream(CIRCLE, latent_frames=6, callbacks=[*callbacks, shown]))
        assert shown.diary == ["1 frames", "update", "8 frames", "update", "12 frames", "update"]
        frames.append(torch.cat([block.frames for block in blocks], 1))
        assert torch.equal(torch.cat(shown.frames, 1), frames[-1])
    assert torch.equal(*frames)


def test_if_asked_the_first_block_is_decoded_whole(folder):
    shown = Shown()
    callbacks = [PipelineDecoding(first_alone=False), shown]
    next(iter(model_of(folder).stream(CIRCLE, callbacks=callbacks)))
    assert shown.diary == ["9 frames"]


def test_only_the_first_latent_frame_of_a_video_is_alone():
    inner = PerLatentFrame()
    decoder = PipelinedDecoder(inner, None, first_alone=True)
    latents = torch.randn(1, 3, 4, 2, 2)
    shown: list[int] = []
    frames = decoder.decode_pieces(latents, lambda piece: shown.append(piece.shape[1]))()
    assert torch.equal(frames, latents[:, :, :3].repeat_interleave(2, 1))
    decoder.decode(latents)
    assert inner.calls == [1, 2, 3]
    assert shown == [2, 4]


@pytest.mark.parametrize("captured", [False, True])
def test_the_first_frames_under_a_new_prompt_are_alone_too_unless_told_otherwise(folder, captured):
    timeline = PromptTimeline.switching((CIRCLE, "a small blue square"), [3])
    capture, recorder = CaptureDecoder(), TapeRecorder()
    capture.missing = lambda device: None
    capture._recorder = lambda device: recorder
    others = [capture] if captured else []
    whole, shown = Shown(), Shown()
    together = PipelineDecoding(prompt_alone=False)
    list(model_of(folder).stream(timeline, callbacks=[*others, together, whole]))
    callbacks = [*others, PipelineDecoding(), shown]
    model = model_of(folder)
    blocks = model.stream(timeline, callbacks=callbacks)
    rehearsed = recorder.count
    list(blocks)
    assert shown.diary == [
        # No context update before a prompt.
        *("1 frames", "8 frames"),
        *("4 frames", "8 frames", "update"),
        *("12 frames", "update"),
    ]
    got, expected = torch.cat(shown.frames, 1), torch.cat(whole.frames, 1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    # What a viewer waits for is not what is recorded in the middle of a video.
    assert recorder.count == rehearsed


def test_a_block_of_one_latent_frame_is_not_cut():
    inner = PerLatentFrame()
    PipelinedDecoder(inner, None, first_alone=True).decode(torch.randn(1, 1, 4, 2, 2))
    assert inner.calls == [1]


def test_a_decoder_goes_back_to_a_snapshot_with_whether_it_has_begun(folder):
    stream = model_of(folder).vae.open_stream()
    decoder = PipelinedDecoder(stream, None, first_alone=True)
    latents = torch.randn(2, 1, 3, 16, 4, 6)
    start = decoder.snapshot()
    with torch.no_grad():
        expected = [decoder.decode(part) for part in latents]
        decoder.restore(start)
        again = [decoder.decode(part) for part in latents]
    for before, after in zip(expected, again, strict=True):
        assert torch.equal(before, after)


def test_a_decoder_that_cannot_go_back_says_so():
    with pytest.raises(UserError, match="PerLatentFrame cannot be rewound"):
        PipelinedDecoder(PerLatentFrame(), None, first_alone=True).snapshot()


@pytest.mark.gpu
def test_in_a_stream_of_its_own_every_frame_is_the_serial_one(folder):
    model = model_of(folder, "cuda")
    expected = [block.frames.clone() for block in model.stream(CIRCLE, latent_frames=60)]
    for callback in (PipelineDecoding(first_alone=False), PipelineDecoding(side_stream=False)):
        shown = Shown()
        blocks = model.stream(CIRCLE, latent_frames=60, callbacks=[callback, shown])
        # Some blocks are asked for and some are not, so the main stream is ahead of the decoder.
        asked = {block.index: block.frames.clone() for block in blocks if block.index % 3 == 1}
        torch.cuda.synchronize()
        whole = torch.cat(expected, 1)
        torch.testing.assert_close(torch.cat(shown.frames, 1), whole, rtol=0, atol=1e-3)
        for index, frames in asked.items():
            torch.testing.assert_close(frames, expected[index], rtol=0, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("is_urgent", [False, True])
def test_decoding_leaves_the_main_stream_alone_until_frames_are_asked_for(folder, is_urgent):
    decoding = PipelineDecoding(is_urgent=is_urgent)
    blocks = model_of(folder, "cuda").stream(CIRCLE, callbacks=[decoding])
    main = torch.cuda.current_stream()

    class SlowDown(RolloutCallback):
        def on_frames_ready(self, trainer, pl_module, state, frames_BTCHW):
            assert torch.cuda.current_stream() != main
            assert (torch.cuda.current_stream().priority < main.priority) == is_urgent
            torch.cuda._sleep(200_000_000)

    blocks._hooks.callbacks.append(SlowDown())
    for block in islice(blocks, 1):
        done = torch.cuda.Event()
        done.record(main)
        done.synchronize()
        waited = torch.cuda.Event()
        block.frames_of()
        waited.record(main)
        assert not waited.query()
        torch.cuda.synchronize()


def test_a_second_device_that_is_not_there_is_one_line(folder):
    with pytest.raises(UserError, match="needs the device cuda:9 beside cpu, and there are"):
        model_of(folder).stream(CIRCLE, callbacks=[PipelineDecoding(device="cuda:9")])
    with pytest.raises(UserError, match="leave side_stream out"):
        PipelineDecoding(side_stream=False, device="cuda:1")


@pytest.mark.gpu
def test_on_a_second_gpu_every_frame_is_the_serial_one_captured_too(folder):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    expected = [block.frames.clone() for block in model_of(folder, "cuda:0").stream(CIRCLE)]
    for beside in ([], [CaptureDenoiser(), CaptureDecoder()]):
        shown = Shown()
        callbacks = [PipelineDecoding(device="cuda:1"), shown, *beside]
        blocks = list(model_of(folder, "cuda:0").stream(CIRCLE, callbacks=callbacks))
        for block, frames in zip(blocks, expected, strict=True):
            assert (block.latents.device.index, block.frames.device.index) == (0, 1)
            torch.testing.assert_close(block.frames.cpu(), frames.cpu(), rtol=0, atol=1e-3)
        torch.cuda.synchronize(1)
        whole = torch.cat(expected, 1).cpu()
        torch.testing.assert_close(torch.cat(shown.frames, 1).cpu(), whole, rtol=0, atol=1e-3)


def test_a_misspelled_device_is_named():
    with pytest.raises(UserError, match="no device 'gpu1': write cuda:1"):
        PipelineDecoding(device="gpu1")
