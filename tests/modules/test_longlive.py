"""The text-to-video model: as a stream, and below the Trainer."""

import gc
import os
import threading
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from nano_model import SETTINGS, TEXT, write_nano_model
from torch import Tensor

from longlive.callbacks.frame_writer import FrameWriter
from longlive.data.prompts import PromptDataModule
from longlive.errors import UserError
from longlive.geometry import frames_of
from longlive.models.sizes import SIZES
from longlive.modules import longlive as module_of_longlive
from longlive.modules.components import build_components
from longlive.modules.longlive import DENOISING_STEPS, LongLive, RolloutReport
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.stream import RolloutStream
from longlive.video.sidecar import read_sidecar

CIRCLE, SQUARE = "a large red circle", "a small blue square"
STATM = Path("/proc/self/statm")
# The VAE sums the same products, in other shapes.
ROUNDING = 5e-4


class Recorder(RolloutCallback):
    """Keeps the latents of each video and counts how the videos began and ended."""

    def __init__(self) -> None:
        self.blocks: list[list[Tensor]] = []
        self.jobs: list[Any] = []
        self.ends = 0

    @property
    def videos(self) -> list[Tensor]:
        return [torch.cat(blocks, 1) for blocks in self.blocks]

    def on_rollout_start(self, trainer, pl_module, state):
        self.blocks.append([])
        self.jobs.append(pl_module.job)

    def on_latents_ready(self, trainer, pl_module, state, x0_BFCHW):
        self.blocks[-1].append(x0_BFCHW.clone())

    def on_rollout_end(self, trainer, pl_module, state):
        self.ends += 1


@pytest.fixture(scope="session")
def nano(tmp_path_factory) -> Path:
    return write_nano_model(tmp_path_factory.mktemp("nano"))


def build(nano: Path, **changes: Any) -> LongLive:
    """The model before it reads its weights."""
    length = {} if "seconds" in changes else {"latent_frames": 9}
    return LongLive(**{"weights": str(nano), **SETTINGS, **length, **changes})


def ready(nano: Path, **changes: Any) -> LongLive:
    return build(nano, **changes).prepare("cpu")


@pytest.fixture(scope="module")
def model(nano) -> LongLive:
    return ready(nano)


def latents(stream: RolloutStream) -> Tensor:
    return torch.cat([block.latents for block in stream], 1)


def predict(
    model: LongLive, data: PromptDataModule, callbacks: Sequence[pl.Callback] = ()
) -> list[RolloutReport]:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        inference_mode=False,
    )
    return trainer.predict(model, data)


# As a stream.


def test_a_stream_gives_blocks_of_latents_and_of_frames_in_the_unit_range(model):
    blocks = list(model.stream(CIRCLE))
    assert [block.index for block in blocks] == [0, 1, 2]
    assert [block.latents.shape for block in blocks] == [(1, 3, 16, 4, 6)] * 3
    assert [block.frames.shape for block in blocks] == [
        (1, frames, 3, 32, 48) for frames in (9, 12, 12)
    ]
    frames = torch.cat([block.frames for block in blocks], 1)
    assert 0 <= frames.min() < frames.max() <= 1
    assert not frames.requires_grad


def test_the_video_depends_on_seed_and_prompt_and_on_nothing_else(model):
    first = latents(model.stream(CIRCLE, seed=3))
    others = [latents(model.stream(*args)) for args in ((SQUARE,), (CIRCLE,))]
    assert torch.equal(latents(model.stream(CIRCLE, seed=3)), first)
    assert not torch.equal(latents(model.stream(CIRCLE, seed=4)), first)
    assert not torch.equal(latents(model.stream(SQUARE, seed=3)), first)
    assert not torch.equal(*others)


def test_a_longer_video_begins_with_the_shorter_one(model):
    short = latents(model.stream(CIRCLE))
    long = latents(model.stream(CIRCLE, latent_frames=15))
    assert long.shape[1] == 15
    assert torch.equal(long[:, :9], short)


def test_streamed_frames_equal_those_of_decoding_the_whole_video(model):
    blocks = list(model.stream(CIRCLE))
    whole = model.parts.decoder.decode(torch.cat([b.latents for b in blocks], 1))
    streamed = torch.cat([b.frames for b in blocks], 1)
    at_once = model.vae.decode(torch.cat([b.latents for b in blocks], 1), latents_at_once=None)
    assert streamed.shape[1] == frames_of(9)
    for frames in (whole, at_once):
        assert (streamed - frames).abs().max() <= ROUNDING


def test_a_prompt_from_another_thread_acts_at_the_next_block(model):
    stream = model.stream(CIRCLE)
    found = []
    for block in stream:
        found.append(block.latents)
        if block.index == 0:
            typist = threading.Thread(target=stream.change_prompt, args=(SQUARE,))
            typist.start()
            typist.join()
            assert stream.prompts.history == [(0, CIRCLE)]
    assert stream.prompts.history == [(0, CIRCLE), (3, SQUARE)]
    planned = latents(model.stream(PromptTimeline.switching([CIRCLE, SQUARE], [3])))
    assert torch.equal(torch.cat(found, 1), planned)
    assert not torch.equal(planned, latents(model.stream(CIRCLE)))


def test_a_stopped_stream_ends_after_the_block_at_hand_and_says_so(model):
    recorder = Recorder()
    stream = model.stream(CIRCLE, latent_frames=300, callbacks=[recorder])
    for block in stream:
        if block.index == 1:
            stream.stop()
    assert block.index == 1
    assert recorder.ends == 1
    assert torch.equal(recorder.videos[0], latents(model.stream(CIRCLE))[:, :6])


def test_a_stream_without_an_end_needs_relative_positions(nano, model):
    with pytest.raises(UserError, match="set positions to relative"):
        model.stream(CIRCLE, latent_frames=None)
    stream = ready(nano, positions="relative").stream(CIRCLE, latent_frames=None)
    for block in stream:
        if block.index == 4:
            stream.stop()
    assert block.index == 4


def test_guidance_leads_from_the_negative_prompt_to_the_prompt_and_beyond(nano):
    one_step = {"denoising_steps": [1000], "latent_frames": 3}
    prompted, negative = (
        latents(ready(nano, **one_step).stream(prompt)) for prompt in (CIRCLE, SQUARE)
    )
    for scale in (0.0, 2.5):
        guided = ready(nano, guidance=scale, negative_prompt=SQUARE, **one_step)
        wanted = negative + scale * (prompted - negative)
        torch.testing.assert_close(latents(guided.stream(CIRCLE)), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.equal(prompted, negative)


def test_guidance_away_from_the_prompt_itself_changes_nothing(nano, model):
    guided = ready(nano, guidance=3.0, negative_prompt=CIRCLE)
    found = latents(guided.stream(CIRCLE))
    torch.testing.assert_close(found, latents(model.stream(CIRCLE)), rtol=1e-3, atol=1e-3)


def test_text_embeddings_are_zero_past_the_end_of_each_prompt(model):
    text_BME = model.encode(["a circle", ""])
    assert text_BME.shape == (2, TEXT.text_len, TEXT.width)
    lengths = [int(row.abs().sum(-1).ne(0).sum()) for row in text_BME]
    assert lengths == [3, 1]
    assert not text_BME[0, 3:].any()


# Settings.


@pytest.mark.parametrize("length", [{}, {"seconds": 5, "latent_frames": 21}])
def test_the_length_is_given_exactly_once(length):
    with pytest.raises(UserError, match="length of a video once"):
        LongLive(**length)


def test_settings_are_checked_before_weights_are_read():
    with pytest.raises(UserError, match="set window_latent_frames to at least 6"):
        LongLive(weights="nowhere", seconds=1, window_latent_frames=5)


def test_the_default_steps_are_those_of_the_published_model():
    given = LongLive(seconds=1, denoising_steps=list(DENOISING_STEPS))
    assert LongLive(seconds=1).spec == given.spec
    assert len(LongLive(seconds=1, denoising_steps=7).spec.schedule.sigmas) == 7


def test_weights_are_read_once_and_neither_trained_nor_in_training_mode(nano, monkeypatch):
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return build_components(*args, **kwargs)

    monkeypatch.setattr(module_of_longlive, "build_components", counted)
    model = build(nano)
    assert not calls
    for _ in range(2):
        latents(model.prepare("cpu").stream(CIRCLE))
    assert len(calls) == 1
    assert len(list(model.parameters())) > 50
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not any(part.training for part in (model.dit, model.text_encoder, model.vae))


@pytest.mark.parametrize(("name", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_weights_have_the_type_that_is_asked_for(nano, name, dtype):
    model = ready(nano, dtype=name)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    block = next(iter(model.stream(CIRCLE)))
    assert (block.latents.dtype, block.frames.dtype) == (dtype, torch.float32)


# Below the Trainer.


@pytest.fixture
def two_prompts(tmp_path) -> PromptDataModule:
    path = tmp_path / "prompts.txt"
    path.write_text(f"{CIRCLE}\n{SQUARE}\n")
    return PromptDataModule(prompts_file=path, seed=5)


def test_each_of_several_videos_is_the_one_that_it_would_be_alone(nano, model, two_prompts):
    recorder = Recorder()
    predict(build(nano), two_prompts, [recorder])
    alone = [latents(model.stream(CIRCLE, seed=5)), latents(model.stream(SQUARE, seed=6))]
    assert len(recorder.videos) == recorder.ends == 2
    for found, wanted in zip(recorder.videos, alone, strict=True):
        assert torch.equal(found, wanted)


def test_predict_reports_each_video_without_its_frames(nano, two_prompts):
    reports = predict(build(nano, seconds=1), two_prompts)
    assert [(type(report), report.index, report.frames) for report in reports] == [
        (RolloutReport, 0, 21),
        (RolloutReport, 1, 21),
    ]
    assert all(report.seconds > 0 for report in reports)
    assert not any(isinstance(value, Tensor) for report in reports for value in astuple(report))


def test_prompts_that_do_not_fit_the_video_are_refused_before_weights_are_read(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompts": ["a"]}\n{"prompts": ["a", "b"], "switch_frame_indices": [9]}\n')
    model = LongLive(weights="nowhere", **SETTINGS, latent_frames=9)
    with pytest.raises(UserError, match=r"^video 1: prompt 2 would never be shown"):
        predict(model, PromptDataModule(prompts_file=path))
    with pytest.raises(UserError, match=r"^prompt 2 would never be shown"):
        predict(model, PromptDataModule(["a", "b"], switch_latent_frames=[9]))


def test_the_same_optimization_twice_is_refused(model):
    with pytest.raises(UserError, match="Recorder is configured twice"):
        model.stream(CIRCLE, callbacks=[Recorder(), Recorder()])


# Which weights made a video.


def test_random_weights_say_so_in_the_job_and_beside_the_video(monkeypatch, tmp_path, caplog):
    tiny = SIZES["tiny"]
    small = {"width": 16, "ffn_width": 16, "heads": 2, "layers": 1}
    nano_size = type(tiny)(
        **small, text_width=tiny.text_width, text_len=tiny.text_len, patch=tiny.patch
    )
    monkeypatch.setitem(SIZES, "tiny", nano_size)
    recorder, writer = Recorder(), FrameWriter(tmp_path)
    model = LongLive(weights="synthetic", **SETTINGS, latent_frames=3).prepare("cpu")
    found = latents(model.stream(CIRCLE, seed=8, callbacks=[recorder, writer]))
    assert found.isfinite().all()
    assert found.std() > 0.1
    [job] = recorder.jobs
    assert (job.weights_kind, job.weights_source, job.seed) == (
        "synthetic",
        "random weights, tiny",
        8,
    )
    assert read_sidecar(writer.written[0])["weights"] == {
        "kind": "synthetic",
        "source": "random weights, tiny",
    }
    assert "synthetic weights: the video shows noise" in caplog.text


def test_a_folder_of_converted_weights_says_which(nano, model):
    recorder = Recorder()
    latents(model.stream(CIRCLE, index=4, callbacks=[recorder]))
    [job] = recorder.jobs
    assert (job.weights_kind, job.weights_source, job.index) == ("converted", str(nano), 4)


# How long it can go on.


def resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tensors() -> int:
    gc.collect()
    return sum(type(found) is Tensor for found in gc.get_objects())


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="needs /proc/self/statm")
def test_five_minutes_take_no_more_memory_than_forty_five_seconds(nano):
    early_block, blocks = (seconds * 16 // 12 for seconds in (45, 5 * 60))
    model = ready(nano, height_px=8, width_px=8, denoising_steps=[1000], positions="relative")
    stream = model.stream(CIRCLE, latent_frames=None)
    for block in stream:
        if block.index == early_block:
            early = tensors(), resident_bytes()
        if block.index == blocks - 1:
            late = tensors(), resident_bytes()
            assert block.latents.isfinite().all()
            stream.stop()
    assert block.index == blocks - 1
    # These tensors are so small that a list of all of them would not show in the bytes.
    assert late[0] == early[0]
    # Six thousand bytes a block.
    assert late[1] - early[1] <= 2e6
