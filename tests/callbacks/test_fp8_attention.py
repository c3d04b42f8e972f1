"""FP8 attention as an overlay: what it gives a rollout, what it goes with and what it refuses."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from graph_tape import TapeRecorder
from nano_model import SETTINGS, write_nano_model
from torch import Tensor
from torch._dynamo.utils import counters

from longlive.attention.fp8_cache import Fp8Cache
from longlive.attention.kv_cache import KVCache
from longlive.callbacks.compile import CompileLayers
from longlive.callbacks.cuda_graph import CaptureDenoiser
from longlive.callbacks.fp8_attention import Fp8Attention
from longlive.callbacks.fuse_layers import FuseLayers
from longlive.callbacks.fuse_projections import FuseProjections
from longlive.callbacks.lay_out_cache import LayOutCache
from longlive.callbacks.preempt import PreemptBlock
from longlive.cli import main
from longlive.errors import UserError
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.prompts import PromptTimeline

ROOT = Path(__file__).parents[2]
SWITCHING = PromptTimeline.switching(("a large red circle", "a small blue square"), [6])
# Of a whole rollout of the model below, as measured, and half as much again.
DISTANCE = 0.008


pytestmark = pytest.mark.usefixtures("nothing_compiled")


class Watch(RolloutCallback):
    """Keeps the cache of a rollout."""

    cache: KVCache

    def on_rollout_start(self, trainer, pl_module, state):
        self.cache = state.cache


def model_of(folder: Path, device: str = "cpu", **changes: Any) -> LongLive:
    settings = {"weights": str(folder), "latent_frames": 15, "dtype": "float32", **SETTINGS}
    return LongLive(**{**settings, **changes}).prepare(device)


def latents(model: LongLive, *callbacks: pl.Callback) -> Tensor:
    blocks = model.stream(SWITCHING, seed=1, callbacks=callbacks)
    return torch.cat([block.latents for block in blocks], 1)


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance": 2.0},
        {"keeps_sink": False},
        {"window_latent_frames": None},
        {"window_latent_frames": 8, "sink_latent_frames": 1},
    ],
    ids=str,
)
def test_a_rollout_with_a_prompt_switch_is_near_the_plain_one_and_not_the_same(folder, changes):
    model, watch = model_of(folder, **changes), Watch()
    expected = latents(model)
    assert 1e-5 < distance(latents(model, Fp8Attention(emulates=True), watch), expected) < DISTANCE
    assert isinstance(watch.cache, Fp8Cache)
    assert watch.cache.k.shape[1] == (2 if "guidance" in changes else 1)
    # Nothing of it stays with the model.
    assert torch.equal(latents(model), expected)


def test_an_emulation_computes_what_a_cpu_computes_for_the_kernels(folder):
    really = Fp8Attention()
    really.missing = lambda device: None
    expected = latents(model_of(folder), really)
    assert torch.equal(latents(model_of(folder), Fp8Attention(emulates=True)), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_layers_are_whole_and_see_two_operations(folder, backend):
    eager = latents(model_of(folder), Fp8Attention(emulates=True))
    callbacks = CompileLayers(backend=backend), Fp8Attention(emulates=True)
    assert distance(latents(model_of(folder), *callbacks), eager) < 1e-5
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]


def test_fused_layers_store_in_fp8_what_plain_ones_do(folder):
    expected = latents(model_of(folder), Fp8Attention(emulates=True))
    for callbacks in ([FuseLayers()], [FuseProjections(), FuseLayers()]):
        got = latents(model_of(folder), *callbacks, Fp8Attention(emulates=True))
        # A sum in another order may move a number by a step.
        assert distance(got, expected) < 2e-3


def test_scales_come_from_a_first_frame_that_is_made_alone(folder):
    model = model_of(folder, first_frame_alone=True)
    expected = latents(model)
    got = latents(model, Fp8Attention(emulates=True))
    assert 0 < distance(got, expected) < 0.1


def test_fused_and_compiled_layers_are_whole(folder):
    callbacks = CompileLayers(backend="aot_eager"), FuseProjections(), FuseLayers()
    got = latents(model_of(folder), *callbacks, Fp8Attention(emulates=True))
    assert distance(got, latents(model_of(folder), Fp8Attention(emulates=True))) < 2e-3
    assert not counters["graph_break"]


def test_a_captured_pass_repeats_it_and_serves_the_next_rollout(folder):
    capture, recorder = CaptureDenoiser(), TapeRecorder()
    capture._recorder = lambda device: recorder
    capture.missing = lambda device: None
    model, callback = model_of(folder), Fp8Attention(emulates=True)
    expected = latents(model_of(folder), Fp8Attention(emulates=True))
    assert torch.equal(latents(model, capture, callback), expected)
    count = recorder.count
    assert count > 0
    assert torch.equal(latents(model, capture, callback), expected)
    assert recorder.count == count


@pytest.mark.parametrize("is_first", [True, False])
def test_it_is_head_major_already_in_whatever_order_that_is_asked_for(folder, is_first):
    expected = latents(model_of(folder), Fp8Attention(emulates=True))
    callbacks = [Fp8Attention(emulates=True), LayOutCache()]
    got = latents(model_of(folder), *(callbacks if is_first else callbacks[::-1]))
    assert torch.equal(got, expected)


def test_a_block_that_gives_way_finds_the_slots_as_they_were(folder):
    class Impatient(RolloutCallback):
        stream: Any = None

        def on_denoise_step_end(self, trainer, pl_module, state, x0_BFCHW):
            if state.block_index == 3 and state.step_index == 0 and state.prompt == "a circle":
                self.stream.change_prompt("a small blue square")

    model, seen = model_of(folder, recached_latent_frames=3), []
    for is_preempted in (True, False):
        prompts = PromptTimeline.switching(("a circle", "a small blue square"), [9])
        impatient = Impatient()
        callbacks = [Fp8Attention(emulates=True)]
        if is_preempted:
            prompts = PromptTimeline.single("a circle")
            callbacks += [PreemptBlock(), impatient]
        impatient.stream = stream = model.stream(prompts, seed=1, callbacks=callbacks)
        seen.append(torch.cat([block.latents for block in stream], 1))
    assert torch.equal(seen[0], seen[1])


# What cannot work.


@pytest.mark.parametrize(
    ("device", "capability", "has_triton", "works"),
    [
        ("cuda", (8, 6), True, False),
        ("cuda", (8, 9), True, True),
        ("cuda", (9, 0), True, True),
        ("cuda", (9, 0), False, False),
        ("cpu", None, True, False),
    ],
)
def test_it_says_in_a_line_what_it_needs(device, capability, has_triton, works, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: has_triton)
    need = Fp8Attention().missing(torch.device(device))
    assert (need is None) == works
    if need is not None:
        assert "Triton and a GPU of compute capability 8.9" in need
        assert "emulates" in need
    assert Fp8Attention(emulates=True).missing(torch.device(device)) is None


def test_heads_that_the_kernel_cannot_take_are_named(folder, monkeypatch):
    monkeypatch.setattr("longlive.callbacks.fp8_attention._multiplies_fp8", lambda device: True)
    with pytest.raises(UserError, match="heads of 64 or 128 numbers, not 8") as refused:
        latents(model_of(folder), Fp8Attention())
    assert "\n" not in str(refused.value)


def test_without_fp8_the_run_ends_with_the_reason_or_goes_on_if_asked(folder, caplog):
    with pytest.raises(UserError, match=r"Fp8Attention needs .*8\.9") as refused:
        latents(model_of(folder), Fp8Attention())
    assert "\n" not in str(refused.value)
    got = latents(model_of(folder), Fp8Attention(required=False))
    assert torch.equal(got, latents(model_of(folder)))
    assert "Fp8Attention is off: it needs" in caplog.text


def test_a_sink_that_is_turned_is_as_far_from_the_plain_one_as_one_that_is_not(folder):
    distances = {}
    for positions in ("absolute", "relative"):
        model = model_of(folder, positions=positions)
        got, plain = latents(model, Fp8Attention(emulates=True)), latents(model)
        distances[positions] = float((got - plain).norm() / plain.norm())
    assert 0 < distances["relative"] < 1.5 * distances["absolute"]


def test_a_wrong_argument_is_one_line_with_what_is_allowed(capsys):
    name = "longlive.callbacks.fp8_attention.Fp8Attention"
    command = ["predict", f"--config={ROOT / 'configs' / 'tiny.yaml'}"]
    command += [f"--trainer.callbacks+={name}", "--trainer.callbacks.emulate=true"]
    assert main([*command, "--print_config"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "emulate" in lines[0]


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "relative"},
        # A recache stores a part of what it runs, in a length that is compiled as a variable.
        {"positions": "relative", "window_latent_frames": 6, "sink_latent_frames": 2},
    ],
    ids=str,
)
def test_compiled_and_captured_passes_are_those_of_the_eager_ones_and_near_the_emulation(
    tmp_path, changes
):
    if need := Fp8Attention().missing(torch.device("cuda")):
        pytest.skip(need)
    from nano_model import DIT

    from longlive.models.sizes import DiTConfig

    wide = DiTConfig(
        width=128, ffn_width=64, heads=2, layers=2, text_width=8, text_len=DIT.text_len, patch=1
    )
    folder = write_nano_model(tmp_path, dit=wide)
    settings = {"dtype": "bfloat16", "latent_frames": 24, **changes}
    models = [model_of(folder, "cuda", **settings) for _ in range(4)]
    eager = latents(models[0], Fp8Attention())
    emulated = latents(models[0], Fp8Attention(emulates=True))
    plain = latents(models[0])
    assert distance(eager, emulated) < distance(emulated, plain)
    graph = latents(models[1], Fp8Attention(), CaptureDenoiser())
    assert torch.equal(graph, eager)
    compiled = latents(models[2], Fp8Attention(), CompileLayers(), FuseLayers())
    both = latents(models[3], Fp8Attention(), CompileLayers(), FuseLayers(), CaptureDenoiser())
    assert torch.equal(both, compiled)
