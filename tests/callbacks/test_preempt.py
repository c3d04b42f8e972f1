"""Prompts that interrupt a block, through the model: from other threads, and paced on a GPU."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from nano_model import SETTINGS
from torch import Tensor

from longlive.callbacks.cuda_graph import CaptureDenoiser
from longlive.callbacks.preempt import PreemptBlock
from longlive.callbacks.profiler import LongLiveProfiler
from longlive.callbacks.prompt_cache import PromptCache
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.stream import RolloutStream

CIRCLE, SQUARE = "a large red circle", "a small blue square"
SWITCHED = PromptTimeline.switching([CIRCLE, SQUARE], [9])


def model_of(folder: Path, device: str = "cpu", **changes: Any) -> LongLive:
    settings = {"weights": str(folder), "latent_frames": 15, **SETTINGS, **changes}
    return LongLive(**settings).prepare(device)


def latents(stream: RolloutStream) -> Tensor:
    return torch.cat([block.latents for block in stream], 1)


class Typist(RolloutCallback):
    """Types a prompt in a thread of its own while the first step of block 3 is made."""

    def __init__(self) -> None:
        self.stream: RolloutStream | None = None
        self.steps = 0

    def on_denoise_step_start(self, trainer, pl_module, state, sigma) -> None:
        self.steps += 1
        if (state.block_index, state.step_index) == (3, 0) and state.prompt == CIRCLE:
            assert self.stream is not None
            thread = threading.Thread(target=self.stream.change_prompt, args=(SQUARE,))
            thread.start()
            thread.join()


def interrupted(model: LongLive, *callbacks: pl.Callback) -> tuple[Tensor, Typist]:
    typist = Typist()
    typist.stream = model.stream(CIRCLE, callbacks=[*callbacks, typist])
    return latents(typist.stream), typist


@pytest.mark.parametrize("changes", [{}, {"recached_latent_frames": 3}], ids=str)
def test_a_prompt_from_another_thread_begins_with_the_block_at_hand(folder, changes):
    model = model_of(folder, window_latent_frames=9, **changes)
    made, typist = interrupted(model, PreemptBlock(), PromptCache())
    assert torch.equal(made, latents(model.stream(SWITCHED)))
    assert typist.steps == 5 * 2 + 1
    late, _ = interrupted(model)
    assert not torch.equal(late[:, 9:12], made[:, 9:12])


def test_a_block_that_is_given_up_counts_nowhere_in_a_profile(folder):
    profiler = LongLiveProfiler()
    interrupted(model_of(folder), PreemptBlock(), profiler)
    rows = {row["path"][-1]: row["count"] for row in profiler.summary()["regions"]}
    assert rows["block"] == rows["context update"] == 5
    assert (rows["recache"], rows["text encoding"]) == (1, 2)
    steps = [row for row in profiler.summary()["regions"] if "step" in row["path"][-1]]
    assert [row["count"] for row in steps] == [5, 5]


def test_the_host_waits_for_the_step_it_has_handed_over_to_begin_and_for_nothing_else(monkeypatch):
    said: list[str] = []

    class Event:
        def record(self, stream: object) -> None:
            said.append(f"record in {stream}")

        def synchronize(self) -> None:
            said.append("wait")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "main")
    pacer: Any = PreemptBlock()
    state = SimpleNamespace(device=torch.device("cuda"))
    for _ in range(2):
        pacer.on_denoise_step_start(None, None, state, 1.0)
        said.append("hand over")
        pacer.on_denoise_step_end(None, None, state, None)
    assert said == ["record in main", "hand over", "wait"] * 2


def test_on_a_cpu_there_is_nothing_to_wait_for(folder, monkeypatch):
    monkeypatch.delattr(torch.cuda, "Event")
    latents(model_of(folder).stream(CIRCLE, callbacks=[PreemptBlock()]))


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("changes", [{}, {"recached_latent_frames": 3}], ids=str)
def test_on_a_gpu_an_interrupted_video_is_the_planned_one(folder, changes, graphs):
    model = model_of(folder, "cuda", window_latent_frames=9, dtype="bfloat16", **changes)
    captured = [CaptureDenoiser()] if graphs else []
    made, _ = interrupted(model, PreemptBlock(), PromptCache(), *captured)
    assert torch.equal(made, latents(model.stream(SWITCHED, callbacks=captured)))


@pytest.mark.gpu
def test_on_a_gpu_the_host_is_at_most_one_step_ahead(folder):
    class Looks(RolloutCallback):
        """Whether the step before the one just handed over is done."""

        def __init__(self) -> None:
            self.before: torch.cuda.Event | None = None
            self.is_done: list[bool] = []

        def on_denoise_step_end(self, trainer, pl_module, state, x0_BFCHW) -> None:
            if self.before is not None:
                self.is_done.append(self.before.query())
            self.before = torch.cuda.Event()
            self.before.record()

    looks = Looks()
    model = model_of(folder, "cuda", denoising_steps=[1000, 750, 500, 250])
    latents(model.stream(CIRCLE, callbacks=[PreemptBlock(), looks]))
    assert len(looks.is_done) == 19
    assert all(looks.is_done)
