"""The files of a rollout: what is in them, and that they are there however it ends."""

import gc
import json
import logging
import threading
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from longlive.callbacks.frame_writer import FrameWriter
from longlive.errors import UserError
from longlive.geometry import frames_of
from longlive.rollout.job import UNKNOWN_JOB, RolloutJob, job_of
from longlive.video import h264
from longlive.video.latents import read_latents
from longlive.video.read import read_metadata, read_video
from longlive.video.sidecar import read_sidecar

# What H.264 at crf 18 may do to a flat gray.
GRAY_LEVELS = 3


def levels(path: Path) -> list[float]:
    return read_video(path).float().mean((1, 2, 3)).tolist()


def expected_levels(frames: int, darker: int = 0) -> list[int]:
    return [(37 * i) % 200 + 30 - darker for i in range(frames)]


def assert_shows(path: Path, frames: int, darker: int = 0) -> None:
    """``path`` shows exactly the first ``frames`` of the decoder, in order."""
    assert levels(path) == pytest.approx(expected_levels(frames, darker), abs=GRAY_LEVELS)


class FailingDenoiser:
    """Raises at one call; a block of two steps makes three, the last for its clean keys."""

    def __init__(self, denoiser, call: int, error: BaseException) -> None:
        self.denoiser, self.left, self.error = denoiser, call, error

    def __call__(self, x_BFCHW, inputs):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.denoiser(x_BFCHW, inputs)


def failing(block: int, error: BaseException):
    return lambda denoiser: FailingDenoiser(denoiser, 3 * block, error)


def test_a_rollout_becomes_one_video_with_every_frame_in_order(tmp_path, rollout):
    writer = FrameWriter(tmp_path)
    rollout([writer]).run()
    path = tmp_path / "0000-a-red-circle-s0.mp4"
    assert writer.written == [path]
    assert_shows(path, frames_of(12))
    assert {file.name for file in tmp_path.iterdir()} == {path.name, f"{path.stem}.json"}


def test_the_sidecar_tells_how_the_video_was_made(tmp_path, rollout):
    job = RolloutJob(index=3, seed=7, weights_kind="embedded", weights_source="assets/tiny")
    writer = FrameWriter(tmp_path)
    rollout([writer], job=job, guidance=2.5, sampler="euler", window_latent_frames=9).run()
    path = tmp_path / "0003-a-red-circle-s7.mp4"
    found = read_sidecar(path)
    assert found["prompts"] == [{"latent_frame": 0, "frame": 0, "prompt": "a red circle"}]
    assert (found["seed"], found["latent_frames"], found["frames"]) == (7, 12, 45)
    assert found["weights"] == {"kind": "embedded", "source": "assets/tiny"}
    assert found["geometry"]["width_px"] == 96
    assert found["versions"]["torch"] == str(torch.__version__)
    options = found["options"]
    assert options["window_latent_frames"] == 9
    assert options["sink_latent_frames"] == 3
    assert options["denoising_steps"] == 2
    assert options["timesteps"] == pytest.approx([1000, 833.333], abs=1e-2)
    assert (options["guidance"], options["sampler"]) == (2.5, "euler")
    assert options["positions"] == "absolute"
    assert (options["ended"], options["device"]) == ("complete", "cpu")


def test_the_video_itself_carries_title_seed_and_weights(tmp_path, rollout):
    writer = FrameWriter(tmp_path)
    rollout([writer], job=RolloutJob(0, 7, "synthetic", "seed 0")).run()
    found = read_metadata(writer.written[0])
    assert found["title"] == "a red circle"
    assert found["comment"]["seed"] == 7
    assert found["comment"]["weights"] == {"kind": "synthetic", "source": "seed 0"}
    assert found["comment"]["options"]["window_latent_frames"] == 12
    assert "ended" not in found["comment"]["options"]


def test_timings_are_those_of_the_whole_rollout(tmp_path, rollout):
    pause_s = 0.1

    def slow(denoiser):
        def denoise(x_BFCHW, inputs):
            time.sleep(pause_s)
            return denoiser(x_BFCHW, inputs)

        return denoise

    writer = FrameWriter(tmp_path)
    start = time.perf_counter()
    rollout([writer], wrap=slow, latent_frames=6).run()
    seconds = time.perf_counter() - start
    timings = read_sidecar(writer.written[0])["timings"]
    assert 6 * pause_s <= timings["seconds"] <= seconds
    assert timings["fps"] == pytest.approx(frames_of(6) / timings["seconds"], rel=1e-2)
    # Two of the six calls of the network come before the first frame.
    assert 2 * pause_s <= timings["first_frame_ms"] / 1000 < 0.7 * timings["seconds"]


def test_a_planned_switch_is_a_chapter_at_its_frame(tmp_path, rollout):
    writer = FrameWriter(tmp_path)
    rollout([writer], ["a red circle", "a blue square"], [4]).run()
    path = writer.written[0]
    # Due at latent frame 4, it acts at the next block, latent frame 6: frame 21.
    assert read_metadata(path)["chapters"] == [(0, "a red circle"), (21, "a blue square")]
    assert [(p["latent_frame"], p["frame"]) for p in read_sidecar(path)["prompts"]] == [
        (0, 0),
        (6, 21),
    ]


def test_a_prompt_typed_while_the_video_runs_is_recorded_where_it_took_effect(tmp_path, rollout):
    writer = FrameWriter(tmp_path)
    running = rollout([writer])
    next(running.blocks)
    next(running.blocks)
    running.prompts.request("a green triangle")
    running.run()
    path = writer.written[0]
    assert read_metadata(path)["chapters"] == [(0, "a red circle"), (21, "a green triangle")]
    assert read_sidecar(path)["prompts"][1] == {
        "latent_frame": 6,
        "frame": 21,
        "prompt": "a green triangle",
    }


def test_a_prompt_whose_block_was_never_shown_is_not_in_the_record(tmp_path, rollout):
    writer = FrameWriter(tmp_path)
    # The recache of the switch at block 2 is the denoiser's seventh call.
    running = rollout([writer], ["a", "b"], [6], wrap=failing(2, ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        running.run()
    assert [p["prompt"] for p in read_sidecar(writer.written[0])["prompts"]] == ["a"]
    assert read_metadata(writer.written[0])["chapters"] == [(0, "a")]


def test_a_crash_leaves_a_playable_video_of_what_was_made_and_a_sidecar(tmp_path, rollout):
    writer = FrameWriter(tmp_path, png=True, latents=True)
    with pytest.raises(ZeroDivisionError):
        rollout([writer], wrap=failing(2, ZeroDivisionError())).run()
    path = writer.written[0]
    assert_shows(path, frames_of(6))
    found = read_sidecar(path)
    assert (found["latent_frames"], found["frames"]) == (6, 21)
    assert found["options"]["ended"] == "failed: ZeroDivisionError"
    assert len(list(path.with_suffix("").glob("*.png"))) == 21
    assert read_latents(path.with_suffix(".safetensors"))[0].shape[1] == 6


class FailingDecoder:
    """Raises at its second block."""

    def __init__(self, decoder) -> None:
        self.decoder = decoder

    def decode(self, latents_BFCHW):
        if self.decoder.latent_frames:
            raise ZeroDivisionError
        return self.decoder.decode(latents_BFCHW)


def test_a_failure_outside_the_loop_is_recorded_as_one(tmp_path, rollout, numbered_frames):
    writer = FrameWriter(tmp_path)
    with pytest.raises(ZeroDivisionError):
        rollout([writer], decoder=FailingDecoder(numbered_frames)).run()
    assert_shows(writer.written[0], frames_of(3))
    ended = read_sidecar(writer.written[0])["options"]["ended"]
    assert ended == "failed: ZeroDivisionError"


def test_an_interrupt_between_blocks_keeps_the_video_through_lightnings_hook(tmp_path, rollout):
    writer = FrameWriter(tmp_path)
    running = rollout([writer])
    next(running.blocks)
    writer.on_exception(None, running.module, KeyboardInterrupt())
    assert_shows(writer.written[0], frames_of(3))
    assert read_sidecar(writer.written[0])["options"]["ended"] == "stopped"
    before = writer.written[0].read_bytes()
    running.blocks.close()
    assert len(writer.written) == 1
    assert writer.written[0].read_bytes() == before


def test_an_interrupt_inside_a_block_keeps_the_blocks_before_it(tmp_path, rollout):
    writer = FrameWriter(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        rollout([writer], wrap=failing(1, KeyboardInterrupt())).run()
    assert_shows(writer.written[0], frames_of(3))
    assert read_sidecar(writer.written[0])["options"]["ended"] == "stopped"


class Predicting(pl.LightningModule):
    """A module whose user presses Ctrl-C while the second block is on the screen."""

    def __init__(self, start) -> None:
        super().__init__()
        self.start = start
        self.job = RolloutJob(0, 5, "synthetic", "")

    def predict_step(self, batch, batch_index):
        running = self.start(self.trainer.callbacks)
        for index, _ in enumerate(running.blocks):
            if index == 1:
                raise KeyboardInterrupt


def test_ctrl_c_under_a_trainer_leaves_a_whole_video(tmp_path, rollout):
    writer = FrameWriter(tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[writer],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.predict(Predicting(rollout), dataloaders=[0], return_predictions=False)
    assert_shows(tmp_path / "0000-a-red-circle-s0.mp4", frames_of(6))


def test_a_stopped_endless_rollout_is_complete_as_far_as_it_went(tmp_path, rollout):
    writer = FrameWriter(tmp_path)
    running = rollout([writer], latent_frames=None, positions="relative")
    for _ in range(5):
        next(running.blocks)
    running.blocks.close()
    assert_shows(writer.written[0], frames_of(15))
    assert read_sidecar(writer.written[0])["options"]["ended"] == "stopped"


def test_an_abandoned_rollout_is_kept_and_does_not_end_the_next_one(tmp_path, rollout):
    writer = FrameWriter(tmp_path)
    abandoned = rollout([writer])
    next(abandoned.blocks)
    other = rollout([writer], ["a blue square"])
    next(other.blocks)
    del abandoned
    gc.collect()
    other.run()
    assert [path.name for path in writer.written] == [
        "0000-a-red-circle-s0.mp4",
        "0000-a-blue-square-s0.mp4",
    ]
    assert_shows(writer.written[0], frames_of(3))
    assert_shows(writer.written[1], frames_of(12))


def test_stopping_before_the_first_frame_leaves_no_file(tmp_path, rollout, caplog):
    writer = FrameWriter(tmp_path, latents=True)
    with pytest.raises(ZeroDivisionError):
        rollout([writer], wrap=failing(0, ZeroDivisionError())).run()
    assert writer.written == []
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


def test_every_video_of_a_run_gets_its_own_files(tmp_path, rollout):
    writer = FrameWriter(tmp_path)
    for index, prompt in enumerate(("a red circle", "a blue square")):
        rollout([writer], [prompt], job=RolloutJob(index, index, "synthetic", "")).run()
    assert [path.name for path in writer.written] == [
        "0000-a-red-circle-s0.mp4",
        "0001-a-blue-square-s1.mp4",
    ]
    assert [read_sidecar(path)["seed"] for path in writer.written] == [0, 1]


def test_the_same_video_made_twice_in_one_run_does_not_replace_the_first(tmp_path, rollout):
    writer = FrameWriter(tmp_path)
    rollout([writer]).run()
    rollout([writer], latent_frames=3).run()
    assert [path.name for path in writer.written] == [
        "0000-a-red-circle-s0.mp4",
        "0000-a-red-circle-s0-2.mp4",
    ]
    assert len(levels(writer.written[0])) == 45


@pytest.mark.parametrize(
    ("indices", "names"),
    [
        ((0, 1, 2), ["clip.mp4", "clip-0001.mp4", "clip-0002.mp4"]),
        ((0, 0), ["clip.mp4", "clip-0001.mp4"]),
        ((2,), ["clip-0002.mp4"]),
    ],
)
def test_a_named_file_is_the_first_video_and_the_others_are_numbered(
    tmp_path, rollout, indices, names
):
    writer = FrameWriter(tmp_path / "new" / "clip.mp4")
    for index in indices:
        job = RolloutJob(index, 0, "synthetic", "")
        rollout([writer], latent_frames=3, job=job).run()
    assert writer.written == [tmp_path / "new" / name for name in names]
    assert all(path.is_file() for path in writer.written)


def test_a_batch_becomes_one_video_for_each_sample(tmp_path, rollout):
    writer = FrameWriter(tmp_path / "clip.mp4", latents=True)
    running = rollout([writer], ["a", "b"], [3], batch=2, latent_frames=6)
    latents = torch.cat([latents for latents, _ in running.blocks], 1)
    paths = [tmp_path / "clip-b0.mp4", tmp_path / "clip-b1.mp4"]
    assert writer.written == paths
    for sample, path in enumerate(paths):
        assert_shows(path, frames_of(6), darker=5 * sample)
        assert [frame for frame, _ in read_metadata(path)["chapters"]] == [0, frames_of(3)]
        kept, _ = read_latents(path.with_suffix(".safetensors"))
        assert torch.equal(kept, latents[sample : sample + 1])


def test_latents_and_png_files_are_those_of_the_rollout(tmp_path, rollout):
    import av

    writer = FrameWriter(tmp_path / "clip.mp4", png=True, latents=True)
    latents = torch.cat([latents for latents, _ in rollout([writer]).blocks], 1)
    kept, about = read_latents(tmp_path / "clip.safetensors")
    assert torch.equal(kept, latents)
    assert about["prompt"] == "a red circle"
    files = sorted((tmp_path / "clip").glob("frame_*.png"))
    found = []
    for file in files:
        with av.open(file) as container:
            found.append(float(next(container.decode()).to_ndarray(format="rgb24").mean()))
    assert found == expected_levels(45)


def test_frames_may_be_overwritten_as_soon_as_the_hook_returns(tmp_path, rollout):
    writer = FrameWriter(tmp_path, latents=True)
    running = rollout([writer])
    expected = []
    for latents, frames in running.blocks:
        expected.append(latents.clone())
        frames.untyped_storage().fill_(0)
        latents.zero_()
    assert_shows(writer.written[0], 45)
    kept, _ = read_latents(writer.written[0].with_suffix(".safetensors"))
    assert torch.equal(kept[:, :3], expected[0])


def test_the_rollout_does_not_wait_for_the_encoder(tmp_path, rollout, monkeypatch):
    may_encode = threading.Event()
    encode = h264.H264File.encode

    def wait_and_encode(self, x_THWC):
        assert may_encode.wait(10)
        encode(self, x_THWC)

    monkeypatch.setattr(h264.H264File, "encode", wait_and_encode)
    writer = FrameWriter(tmp_path)
    running = rollout([writer], latent_frames=6)
    next(running.blocks)
    next(running.blocks)
    may_encode.set()
    running.run()
    assert_shows(writer.written[0], frames_of(6))


def test_a_full_disk_ends_the_rollout_with_one_line_and_keeps_the_first_frames(
    tmp_path, rollout, monkeypatch, caplog
):
    write = h264._PartFile.write

    def write_until_full(self, data):
        if self.tell() > 6_000:
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(h264._PartFile, "write", write_until_full)
    writer = FrameWriter(tmp_path)
    running = rollout([writer], latent_frames=600, positions="relative")
    with pytest.raises(UserError, match="no space left on device"), caplog.at_level("WARNING"):
        running.run()
    assert len(writer.written) == 1
    made = levels(writer.written[0])
    assert made == pytest.approx(expected_levels(len(made)), abs=GRAY_LEVELS)
    found = read_sidecar(writer.written[0])
    assert (found["frames"], found["options"]["ended"]) == (None, "failed: UserError")
    assert caplog.records == []


def test_a_file_that_cannot_be_finished_is_an_error_although_the_rollout_was_fine(
    tmp_path, rollout, monkeypatch
):
    def refuse(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h264.H264File, "_write_end", refuse)
    with pytest.raises(UserError, match="its first 45 frames are kept"):
        rollout([FrameWriter(tmp_path)]).run()


def test_a_file_that_cannot_be_finished_is_an_error_of_a_stopped_rollout_too(
    tmp_path, rollout, monkeypatch
):
    def refuse(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h264.H264File, "_write_end", refuse)
    running = rollout([FrameWriter(tmp_path)])
    next(running.blocks)
    with pytest.raises(UserError, match="its first 9 frames are kept"):
        running.blocks.close()


def test_an_error_at_the_end_does_not_hide_what_ended_the_rollout(
    tmp_path, rollout, monkeypatch, caplog
):
    def refuse(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h264.H264File, "_write_end", refuse)
    with pytest.raises(ZeroDivisionError):
        rollout([FrameWriter(tmp_path)], wrap=failing(2, ZeroDivisionError())).run()
    assert "no space left" in caplog.text


def test_one_line_says_where_the_video_is_and_how_fast_it_came(tmp_path, rollout, caplog):
    with caplog.at_level(logging.INFO):
        rollout([FrameWriter(tmp_path / "clip.mp4")]).run()
    lines = [record.getMessage() for record in caplog.records if "frames/s" in record.message]
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path / 'clip.mp4'}: 45 frames, 2.8 s of video, in ")


class Counting:
    """Counts network calls."""

    def __init__(self, denoiser) -> None:
        self.denoiser, self.calls = denoiser, 0

    def __call__(self, x_BFCHW, inputs):
        self.calls += 1
        return self.denoiser(x_BFCHW, inputs)


def assert_refused_before_the_first_block(writer, rollout, message) -> None:
    counters: list[Counting] = []

    def wrap(denoiser):
        counters.append(Counting(denoiser))
        return counters[0]

    with pytest.raises(UserError, match=message) as caught:
        rollout([writer], wrap=wrap).run()
    assert "\n" not in str(caught.value)
    assert counters[0].calls == 0
    assert writer.written == []


def test_a_folder_that_is_a_file_is_refused_before_anything_is_computed(tmp_path, rollout):
    (tmp_path / "taken").write_text("")
    writer = FrameWriter(tmp_path / "taken")
    assert_refused_before_the_first_block(writer, rollout, "taken is a file: name a folder")


def test_a_folder_inside_a_file_is_refused(tmp_path, rollout):
    (tmp_path / "taken").write_text("")
    writer = FrameWriter(tmp_path / "taken" / "more" / "clip.mp4")
    assert_refused_before_the_first_block(writer, rollout, "cannot write .*another output folder")


def test_a_named_file_that_is_a_folder_is_refused(tmp_path, rollout):
    (tmp_path / "clip.mp4").mkdir()
    writer = FrameWriter(tmp_path / "clip.mp4")
    assert_refused_before_the_first_block(writer, rollout, "it is a folder; choose another name")


def test_a_folder_without_permission_is_refused(tmp_path, rollout, monkeypatch):
    # Somebody who may do everything, as in a container, is never refused by the file system.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    writer = FrameWriter(tmp_path)
    assert_refused_before_the_first_block(writer, rollout, "permission denied; choose another")


def test_a_png_folder_that_is_a_file_is_refused_and_leaves_nothing_half_open(tmp_path, rollout):
    (tmp_path / "clip").write_text("")
    writer = FrameWriter(tmp_path / "clip.mp4", png=True)
    assert_refused_before_the_first_block(writer, rollout, "cannot write")
    assert [file.name for file in tmp_path.iterdir()] == ["clip"]


@pytest.mark.parametrize("output", ["clip.mov", "clip.MP4", "clip.gif"])
def test_another_kind_of_video_is_refused_at_once(output):
    with pytest.raises(UserError, match=r"written as \.mp4"):
        FrameWriter(output)


def test_a_quality_that_x264_does_not_have_is_refused_at_once():
    with pytest.raises(UserError, match="crf goes from 0"):
        FrameWriter(crf=52)


@pytest.mark.parametrize("module", [object(), pl.LightningModule()])
def test_a_module_that_does_not_say_what_it_makes_is_no_error(module):
    assert job_of(module) == UNKNOWN_JOB


def test_a_video_of_an_unknown_job_says_so(tmp_path, rollout):
    writer = FrameWriter(tmp_path)
    rollout([writer], job=None, latent_frames=3).run()
    assert writer.written == [tmp_path / "0000-a-red-circle-s0.mp4"]
    assert json.loads((tmp_path / "0000-a-red-circle-s0.json").read_text())["weights"] == {
        "kind": "unknown",
        "source": "",
    }


@pytest.mark.gpu
def test_writing_does_not_make_the_host_wait_for_the_device(tmp_path, rollout):
    pytest.importorskip("av")

    class Watched(FrameWriter):
        """Fails where a hook of a block synchronizes."""

        def on_latents_ready(self, *args) -> None:
            self._watch(super().on_latents_ready, *args)

        def on_frames_ready(self, *args) -> None:
            self._watch(super().on_frames_ready, *args)

        def _watch(self, hook, *args) -> None:
            torch.cuda.set_sync_debug_mode("error")
            try:
                hook(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    writer = Watched(tmp_path, latents=True)
    running = rollout([writer], device="cuda")
    latents = torch.cat([latents for latents, _ in running.blocks], 1)
    assert_shows(writer.written[0], 45)
    kept, _ = read_latents(writer.written[0].with_suffix(".safetensors"))
    assert torch.equal(kept, latents.cpu())
