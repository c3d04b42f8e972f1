"""Layers whose way from the projections to the attention is one operation."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from graph_tape import TapeRecorder
from nano import Rollout, nano_dit, spec
from nano_model import SETTINGS
from torch import Tensor
from torch._dynamo.utils import counters

from longlive.attention.backends import sdpa_attention
from longlive.attention.core import FullAttention
from longlive.attention.rope import rotation
from longlive.callbacks import fuse_layers
from longlive.callbacks.compile import CompileLayers
from longlive.callbacks.cuda_graph import CaptureDenoiser
from longlive.callbacks.fuse_layers import FuseLayers, fused_norm_and_attend
from longlive.callbacks.fuse_projections import FuseProjections
from longlive.distillation.caches import TrainingCache
from longlive.errors import UserError
from longlive.models.layers import SelfAttention
from longlive.modules.longlive import LongLive
from longlive.rollout.denoiser import CausalDenoiser
from longlive.rollout.prompts import PromptTimeline

SWITCHING = PromptTimeline.switching(("a large red circle", "a small blue square"), [6])


pytestmark = pytest.mark.usefixtures("nothing_compiled")


@pytest.fixture
def calls(monkeypatch) -> list[float]:
    """What each call of the operation was told last."""
    seen: list[float] = []
    operation = fuse_layers.norm_rotate_write

    def counted(*args: Any) -> Tensor:
        seen.append(args[-1])
        return operation(*args)

    monkeypatch.setattr(fuse_layers, "norm_rotate_write", counted)
    return seen


def model_of(folder: Path, **changes: Any) -> LongLive:
    settings = {"weights": str(folder), "latent_frames": 15, **SETTINGS, **changes}
    return LongLive(**settings).prepare("cpu")


def latents(model: LongLive, *callbacks: pl.Callback) -> Tensor:
    blocks = model.stream(SWITCHING, seed=1, callbacks=callbacks)
    return torch.cat([block.latents for block in blocks], 1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "relative"},
        {"guidance": 2.0},
        {"keeps_sink": False},
        {"window_latent_frames": None},
        {"window_latent_frames": 8, "sink_latent_frames": 1},
    ],
    ids=str,
)
def test_a_fused_rollout_with_a_prompt_switch_equals_the_plain_one(folder, changes, calls):
    model = model_of(folder, **changes)
    expected = latents(model)
    assert not calls
    torch.testing.assert_close(latents(model, FuseLayers()), expected)
    # In both layers of a denoising step, in the first one of a context update and of the recache;
    # before that there is no context update.
    assert len(calls) == 5 * 2 * 2 + 4 + 1


def test_with_projections_fused_as_well_the_numbers_are_the_same(folder, calls):
    expected = latents(model_of(folder))
    for callbacks in ([FuseLayers(), FuseProjections()], [FuseProjections(), FuseLayers()]):
        calls.clear()
        torch.testing.assert_close(latents(model_of(folder), *callbacks), expected)
        assert calls


def test_layers_that_were_fused_before_stay_so_when_their_projections_are(folder, calls):
    model = model_of(folder)
    expected = latents(model, FuseLayers())
    calls.clear()
    torch.testing.assert_close(latents(model, FuseProjections()), expected)
    assert calls


@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_compiled_layers_are_whole_and_see_one_operation_that_writes_in_place(folder, positions):
    expected = latents(model_of(folder, positions=positions))
    callbacks = CompileLayers(backend="aot_eager"), FuseProjections(), FuseLayers()
    torch.testing.assert_close(latents(model_of(folder, positions=positions), *callbacks), expected)
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]


def test_a_captured_pass_repeats_the_operation(folder):
    capture, recorder = CaptureDenoiser(), TapeRecorder()
    capture._recorder = lambda device: recorder
    capture.missing = lambda device: None
    model = model_of(folder)
    expected = latents(model_of(folder))
    for _ in range(2):
        torch.testing.assert_close(latents(model, capture, FuseLayers()), expected)
    assert recorder.count == 5


def fused_attention() -> SelfAttention:
    attention = SelfAttention(24, 2, 1e-6)
    attention.norm_and_attend = fused_norm_and_attend
    return attention


def test_a_teacher_attends_as_it_always_did(calls):
    attention = fused_attention()
    turns = rotation(torch.arange(1), 2, 3, 12, torch.float32)
    with torch.no_grad():
        attention(torch.randn(1, 6, 24), FullAttention(turns, sdpa_attention))
    assert not calls


@pytest.mark.parametrize("how", ["with gradients", "with the cache of training", "in float64"])
def test_a_rollout_of_another_kind_attends_as_it_always_did(how, calls):
    dit = nano_dit(torch.float64 if how == "in float64" else torch.float32)
    rollout = Rollout(dit, spec())
    state, denoiser = rollout.state, rollout.denoiser
    assert isinstance(denoiser, CausalDenoiser)
    state.cross_cache.store(rollout.text("a"))
    x, inputs = rollout.noise.draw(0, 0), state.step_inputs(state.plan_block(), 0.5)
    expected = denoiser(x, inputs).detach()
    for layer in dit.layers:
        layer.self_attn.norm_and_attend = fused_norm_and_attend
    if how == "with the cache of training":
        denoiser.cache = TrainingCache(state.cache, leaks=False)
    with torch.set_grad_enabled(how == "with gradients"):
        assert torch.equal(denoiser(x, inputs), expected)
    assert not calls


def test_a_gpu_without_triton_is_told_so_in_one_line(monkeypatch):
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    callback = FuseLayers()
    assert callback.missing(torch.device("cpu")) is None
    assert callback.missing(torch.device("mps")) == "Triton and a GPU it supports"
    with pytest.raises(UserError, match="FuseLayers needs Triton") as refused:
        callback._find_out(torch.device("cuda"))
    assert "\n" not in str(refused.value)
