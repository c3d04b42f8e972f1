"""One video made by several processes is the video that one process makes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from graph_tape import TapeRecorder
from nano_model import DIT, SETTINGS, write_nano_model
from processes import run_processes
from torch import Tensor

from longlive.callbacks.compile import CompileLayers
from longlive.callbacks.cuda_graph import CaptureDenoiser
from longlive.callbacks.fp8_attention import Fp8Attention
from longlive.callbacks.frame_writer import FrameWriter
from longlive.callbacks.sequence_parallel import SequenceParallel
from longlive.callbacks.token_exchange import apportion
from longlive.callbacks.vae_pipeline import PipelineDecoding
from longlive.errors import UserError
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback, WrapOrder
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.transitions import Transition

# Four heads whose pairs turn with rows and columns too, and a picture of four rows of tokens.
FOUR_HEADS = replace(DIT, width=48, ffn_width=48, heads=4)
PROMPTS = ("a large red circle", "a small blue square", "a circle spins")
SWITCHING = PromptTimeline.switching(PROMPTS[:2], [6])
BLENDING = PromptTimeline(PROMPTS[:2], (6,), (Transition("blend", 2),))
CASES: dict[str, tuple[dict[str, Any], PromptTimeline]] = {
    "plain": ({}, SWITCHING),
    "relative": ({"positions": "relative", "guidance": 2.0, "keeps_sink": False}, SWITCHING),
    "blend": ({}, BLENDING),
    "first frame alone": ({"first_frame_alone": True}, SWITCHING),
}


def model_of(folder: Path, **settings: Any) -> LongLive:
    given = {"weights": str(folder), "latent_frames": 15, "dtype": "float32", **SETTINGS}
    return LongLive(**{**given, **settings}).prepare("cpu")


def latents_of(
    model: LongLive, timeline: PromptTimeline, callbacks: Sequence[pl.Callback] = ()
) -> Tensor:
    blocks = model.stream(timeline, seed=1, callbacks=callbacks)
    return torch.cat([block.latents for block in blocks], 1)


class Asks(RolloutCallback):
    """Asks for another prompt in the middle of a video, in the process that may."""

    def __init__(self, prompts) -> None:
        self.prompts = prompts
        self.active: list[str] = []

    def on_block_start(self, trainer, pl_module, state):
        self.active.append(state.prompt)
        if state.block_index == 1 and state.spec.is_shown:
            self.prompts.request(PROMPTS[2])


class Counts(RolloutCallback):
    """Counts the passes of the process, by whether they have an output."""

    wrap_order = WrapOrder.KERNELS

    def __init__(self) -> None:
        self.passes = {True: 0, False: 0}

    def configure_denoiser(self, trainer, pl_module, denoiser):
        run = denoiser.denoiser.run

        def counted(x_BFCHW, inputs, attend):
            self.passes[inputs.keys_only] += 1
            return run(x_BFCHW, inputs, attend)

        denoiser.denoiser.run = counted
        return denoiser


def share_a_video(rank: int, folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, (settings, timeline) in CASES.items():
        model = model_of(folder, **settings)
        made[name] = latents_of(model, timeline, [SequenceParallel()])
    model = model_of(folder)
    made["unequal"] = latents_of(model, SWITCHING, [SequenceParallel(shares=[1, 3])])
    capture = CaptureDenoiser(required=False)
    capture.missing = lambda device: None
    capture._recorder = lambda device: TapeRecorder()
    made["captured"] = latents_of(model, SWITCHING, [capture, SequenceParallel()])
    for name in ("rests", "relative rests"):
        settings, timeline = CASES["relative" if "relative" in name else "plain"]
        rests = SequenceParallel(shares=[1, 3], first_rests=True)
        stream = model_of(folder, **settings).stream(timeline, seed=1, callbacks=[rests])
        made[f"heads, {name}"] = stream.state.cache.k.shape[-2]
        made[name] = torch.cat([block.latents for block in stream], 1)
    capture = CaptureDenoiser(required=False)
    capture.missing = lambda device: None
    capture._recorder = lambda device: TapeRecorder()
    rests = SequenceParallel(first_rests=True)
    made["rests, captured"] = latents_of(model_of(folder), SWITCHING, [capture, rests])
    capture = CaptureDenoiser(required=False)
    capture.missing = lambda device: None
    capture._recorder = lambda device: TapeRecorder()
    rests = SequenceParallel(first_rests=True, rested_steps=1)
    made["rests in a step"] = latents_of(model_of(folder), SWITCHING, [capture, rests])
    made["FP8"] = latents_of(model_of(folder), SWITCHING, [Fp8Attention(emulates=True), rests])
    with pytest.raises(UserError, match="set rested_steps to at most 1"):
        latents_of(model, SWITCHING, [SequenceParallel(first_rests=True, rested_steps=2)])
    settings = CASES["first frame alone"][0]
    made["rests, first frame"] = latents_of(model_of(folder, **settings), SWITCHING, [rests])
    counted = Counts()
    latents_of(model_of(folder), SWITCHING, [rests, counted])
    made["passes"] = counted.passes

    cursor = SWITCHING.start()
    asks = Asks(cursor)
    stream = model.stream(cursor, seed=1, callbacks=[SequenceParallel(), asks])
    heads = stream.state.cache.k.shape[-2]
    blocks = list(stream)
    made["asked"] = torch.cat([block.latents for block in blocks], 1)
    made["prompts"] = asks.active
    made["heads"] = heads
    try:
        made["frames"] = torch.cat([block.frames for block in blocks], 1)
    except UserError as error:
        made["frames"] = str(error)
    writer = FrameWriter(folder / f"videos of {rank}", latents=True)
    latents_of(model, SWITCHING, [SequenceParallel(), writer])
    made["written"] = [path.name for path in writer.written]
    for shares in ([1], [1, 1, 1]):
        with pytest.raises(UserError, match="shares do not fit 2 processes"):
            latents_of(model, SWITCHING, [SequenceParallel(shares=shares)])
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_nano_model(tmp_path_factory.mktemp("nano"), dit=FOUR_HEADS)


@pytest.fixture(scope="module")
def made(folder) -> list[dict[str, Any]]:
    return run_processes(share_a_video, folder)


def close(got: Tensor, expected: Tensor) -> None:
    # Of one process to another not even rounding differs: the velocity is put together once.
    assert float((got - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_two_processes_make_the_latents_that_one_makes(folder, made, name):
    settings, timeline = CASES[name]
    expected = latents_of(model_of(folder, **settings), timeline)
    close(made[0][name], expected)
    assert torch.equal(made[0][name], made[1][name])


RESTS = ["rests", "rests, captured", "rests in a step"]


@pytest.mark.parametrize("name", ["unequal", "captured", *RESTS])
def test_so_do_unequal_shares_recorded_passes_and_a_first_process_that_rests(folder, made, name):
    close(made[0][name], latents_of(model_of(folder), SWITCHING))
    assert torch.equal(made[0][name], made[1][name])


def test_a_first_process_that_rests_is_sent_what_an_fp8_cache_holds(folder, made):
    alone = latents_of(model_of(folder), SWITCHING, [Fp8Attention(emulates=True)])
    # What is rounded to eight bits may go to another number where only the order of sums differs.
    assert float((made[0]["FP8"] - alone).norm() / alone.norm()) < 1e-3
    assert torch.equal(made[0]["FP8"], made[1]["FP8"])


def test_it_rests_in_context_updates_recaches_and_first_steps_but_of_the_first_block(made):
    # Five blocks of two steps, a context update each but before the switch, and one recache.
    assert made[1]["passes"] == {False: 10, True: 5}
    assert made[0]["passes"] == {False: 6, True: 0}


def test_where_the_first_process_rests_the_others_keep_all_heads(folder, made):
    settings, timeline = CASES["relative"]
    close(made[0]["relative rests"], latents_of(model_of(folder, **settings), timeline))
    assert torch.equal(made[0]["relative rests"], made[1]["relative rests"])
    assert [one["heads, rests"] for one in made] == [1, 4]
    assert torch.equal(made[0]["rests, first frame"], made[1]["rests, first frame"])
    close(made[0]["rests, first frame"], made[0]["first frame alone"])


def test_a_prompt_that_the_first_process_is_asked_for_begins_at_one_block_in_all(folder, made):
    cursor = SWITCHING.start()
    asks = Asks(cursor)
    stream = model_of(folder).stream(cursor, seed=1, callbacks=[asks])
    expected = torch.cat([block.latents for block in stream], 1)
    assert made[0]["prompts"] == made[1]["prompts"] == asks.active
    assert asks.active[2] == PROMPTS[2]
    close(made[0]["asked"], expected)
    assert torch.equal(made[0]["asked"], made[1]["asked"])


def test_each_process_keeps_its_heads_and_the_first_one_shows_the_video(folder, made):
    assert [one["heads"] for one in made] == [2, 2]
    assert made[0]["frames"].shape[1] == 57
    assert "another process shows this video" in made[1]["frames"]
    assert [len(one["written"]) for one in made] == [1, 0]
    assert not (folder / "videos of 1").exists()


def share_among_three(rank: int, folder: Path) -> list[Tensor]:
    compiled = CompileLayers(backend="aot_eager")
    ways = (
        [compiled, SequenceParallel(shares=[1, 1, 2])],
        [SequenceParallel(shares=[2, 1, 1], first_rests=True, rested_steps=1)],
    )
    return [latents_of(model_of(folder), SWITCHING, callbacks) for callbacks in ways]


@pytest.mark.slow
def test_three_processes_share_four_heads_compiled_too(folder):
    expected = latents_of(model_of(folder), SWITCHING)
    for made in run_processes(share_among_three, folder, 3):
        for got in made:
            close(got, expected)


def test_alone_a_process_makes_the_whole_video(folder):
    expected = latents_of(model_of(folder), SWITCHING)
    assert torch.equal(latents_of(model_of(folder), SWITCHING, [SequenceParallel()]), expected)


@pytest.mark.parametrize(
    ("whole", "shares", "expected"),
    [
        (12, [1, 1], (6, 6)),
        (12, [1, 2], (4, 8)),
        (30, [1, 3], (8, 22)),
        (12, [1] * 5, (3, 3, 2, 2, 2)),
        (4, [1, 100], (1, 3)),
        (30, [1, 1, 1, 1], (8, 8, 7, 7)),
    ],
)
def test_what_is_shared_is_given_out_whole_and_everybody_gets_some(whole, shares, expected):
    assert sorted(apportion(whole, shares, "heads")) == sorted(expected)
    assert sum(apportion(whole, shares, "heads")) == whole


def test_more_processes_than_heads_are_too_many():
    with pytest.raises(UserError, match="2 attention heads cannot be shared by 3 processes"):
        apportion(2, [1, 1, 1], "attention heads")


@pytest.mark.parametrize("steps", [1, -1])
def test_only_who_rests_rests_in_steps(steps):
    with pytest.raises(UserError, match="set first_rests to true"):
        SequenceParallel(rested_steps=steps)


def test_shares_are_positive():
    with pytest.raises(UserError, match="positive"):
        SequenceParallel(shares=[0, 1])


def share_two_gpus(rank: int, folder: Path) -> dict[str, Any]:
    torch.cuda.set_device(rank)
    settings = {"weights": str(folder), "latent_frames": 15, **SETTINGS}
    ways: dict[str, list[pl.Callback]] = {
        "eager": [],
        "unequal": [PipelineDecoding()],
        "compiled and captured": [CompileLayers(), CaptureDenoiser(), PipelineDecoding()],
    }
    made: dict[str, Any] = {}
    for name, callbacks in ways.items():
        model = LongLive(dtype="float32", **settings).prepare(f"cuda:{rank}")
        shared = SequenceParallel([1, 3] if name == "unequal" else None)
        stream = model.stream(SWITCHING, seed=1, callbacks=[*callbacks, shared])
        made[name] = torch.cat([block.latents for block in stream], 1).cpu()
    return made


@pytest.mark.gpu
def test_two_gpus_make_the_latents_that_one_makes(folder):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    expected = latents_of(model_of(folder), SWITCHING)
    first, second = run_processes(share_two_gpus, folder, backend="cpu:gloo,cuda:nccl")
    for name, got in first.items():
        assert float((got - expected).norm() / expected.norm()) < 1e-4, name
        assert torch.equal(got, second[name]), name
