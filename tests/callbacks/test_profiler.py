"""The profiler on rollouts of the nano transformer: which regions, how long, and nothing else."""

import gc
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from inspect import signature
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from nano import CONFIG, embed, nano_dit, spec, text_of
from torch import Tensor, nn
from torch.utils.data import DataLoader

from longlive.attention.backends import sdpa_attention
from longlive.callbacks import rollout_recording
from longlive.callbacks.frame_writer import FrameWriter
from longlive.callbacks.profiler import LongLiveProfiler, report
from longlive.errors import UserError
from longlive.geometry import frames_of
from longlive.metrics import clocks
from longlive.metrics.clocks import CudaClock, memory_gauge_of
from longlive.metrics.regions import Sample
from longlive.models.dit import DiT
from longlive.models.text_encoder import UMT5Config, UMT5Encoder
from longlive.rollout.denoiser import CausalDenoiser, Denoiser, GuidedDenoiser
from longlive.rollout.hooks import CallbackHooks, RolloutCallback
from longlive.rollout.noise import SeededNoise
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.state import RolloutState
from longlive.rollout.stream import RolloutStream
from longlive.schedule import DenoisingSchedule

CPU = torch.device("cpu")
STEPS = ("step 1000", "step 833.333")
LAYER_PARTS = {
    "norms and modulation": 4,
    "QKV projection": 1,
    "RoPE": 2,
    "KV-cache update": 1,
    "attention": 1,
    "output projection": 1,
    "cross-attention": 1,
    "FFN": 1,
}
KEYS_ONLY_PARTS = {"norms and modulation": 1, "QKV projection": 1, "RoPE": 1, "KV-cache update": 1}


class Module(pl.LightningModule):
    """A module that runs rollouts of the nano transformer."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.dit = nano_dit(dtype)

    def stream(
        self,
        callbacks: Sequence[pl.Callback],
        *,
        decode: Callable[[Tensor], None] = lambda latents: None,
        text: Callable[[str], list[tuple[Tensor, Tensor]]] | None = None,
        switch: int | None = None,
        trainer: pl.Trainer | None = None,
        device: torch.device = CPU,
        **changes: object,
    ) -> RolloutStream:
        """What LongLive.stream does, for the nano transformer; ``decode`` is told the latents."""
        dit = self.dit.to(device)
        dtype = dit.dtype_of_weights
        hooks = CallbackHooks(callbacks, self, trainer)
        asked = hooks.configure_rollout(spec(**changes))
        state = RolloutState.allocate(asked, dit.config, dtype, device)
        caches = state.cache, state.cross_cache
        denoiser: Denoiser
        denoiser = CausalDenoiser(dit, *caches, asked.geometry, sdpa_attention)
        denoiser = hooks.configure_denoiser(denoiser)
        if asked.guidance != 1:
            denoiser = GuidedDenoiser(denoiser, asked.guidance)
        timeline = PromptTimeline.single("a")
        if switch is not None:
            timeline = PromptTimeline.switching(["a", "b"], [switch])
        shape = asked.geometry.block_shape(asked.batch)
        return RolloutStream(
            state,
            denoiser,
            hooks.configure_decoder(Decoder(decode)),
            SeededNoise(0, shape, dtype, device),
            timeline.start(),
            text or (lambda prompt: dit.text_keys_values(embed(prompt).to(device))),
            hooks,
        )


class Decoder:
    """Gray frames, as many as a real one gives."""

    def __init__(self, tell: Callable[[Tensor], None]) -> None:
        self.tell = tell
        self.latent_frames = 0

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        self.tell(latents_BFCHW)
        before = frames_of(self.latent_frames) if self.latent_frames else 0
        self.latent_frames += latents_BFCHW.shape[1]
        height, width = (8 * side for side in latents_BFCHW.shape[-2:])
        count = frames_of(self.latent_frames) - before
        return latents_BFCHW.new_full((len(latents_BFCHW), count, 3, height, width), 0.5)


def run(callbacks: Sequence[pl.Callback], module: Module | None = None, **more: object) -> Tensor:
    """The latents of a whole rollout."""
    stream = (module or Module()).stream(callbacks, **more)
    return torch.cat([block.latents for block in stream], 1)


def rows_of(profiler: LongLiveProfiler, from_block: int = 0) -> dict[str, dict]:
    """Rows of the summary by their path below the rollout."""
    rows = profiler.summary(from_block)["regions"]
    return {"/".join(row["path"][1:]) or row["path"][0]: row for row in rows}


def counts_of(profiler: LongLiveProfiler) -> dict[str, int]:
    return {name: row["count"] for name, row in rows_of(profiler).items()}


def hooks_of(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def assert_nothing_exceeds_what_is_round_it(samples: Sequence[Sample]) -> None:
    """Every sample lies inside one of the region round it, and neighbors do not overlap."""
    for sample in samples:
        outer = [s for s in samples if s.path == sample.path[:-1]]
        if len(sample.path) > 1 and sample.is_whole:
            end = sample.start_ms + sample.ms
            assert any(
                s.start_ms <= sample.start_ms and end <= s.start_ms + s.ms + 1e-6 for s in outer
            ), sample.path
    by_path: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        by_path.setdefault(sample.path[:-1], []).append(sample)
    for inside in by_path.values():
        inside.sort(key=lambda s: s.start_ms)
        for left, right in zip(inside, inside[1:], strict=False):
            assert left.start_ms + left.ms <= right.start_ms + 1e-6


def test_a_rollout_with_a_switch_has_every_region_as_often_as_it_happened():
    profiler = LongLiveProfiler()
    run([profiler], latent_frames=8, switch=4)
    assert counts_of(profiler) == {
        "rollout": 1,
        "initialization": 1,
        "text encoding": 2,
        "text encoding/cross-attention reset": 2,
        "block": 4,
        **{f"block/{step}": 4 for step in STEPS},
        "block/VAE decode": 4,
        "block/output": 4,
        # The one before the switch has none.
        "block/context update": 3,
        "recache": 1,
    }
    recache = next(s for s in profiler.profile().samples if s.path[-1] == "recache")
    assert (recache.rollout, recache.block) == (0, 2)


def test_without_a_switch_there_is_no_recache_and_one_text_encoding():
    profiler = LongLiveProfiler()
    run([profiler], latent_frames=4)
    counts = counts_of(profiler)
    assert "recache" not in counts
    assert counts["text encoding"] == 1


def test_the_text_encoder_is_told_apart_from_the_reset_and_guidance_has_two_of_each():
    module = Module(torch.float32)
    config = UMT5Config(
        vocab=16, width=8, attention_width=8, ffn_width=8, heads=2, layers=1, text_len=5
    )
    module.text_encoder = UMT5Encoder(config)
    ids = torch.tensor([[3, 1, 0, 0, 0]])

    def text(prompt: str) -> list[tuple[Tensor, Tensor]]:
        halves = []
        for _ in range(2):
            module.text_encoder(ids, (ids > 0).long())
            time.sleep(0.01)
            halves.append(module.dit.text_keys_values(embed(prompt)))
        return [
            (torch.cat([k for k, _ in pair]), torch.cat([v for _, v in pair]))
            for pair in zip(*halves, strict=True)
        ]

    profiler = LongLiveProfiler()
    run([profiler], module, latent_frames=4, text=text, guidance=2.0)
    rows = rows_of(profiler)
    assert rows["text encoding/text encoder"]["count"] == 2
    assert rows["text encoding/cross-attention reset"]["count"] == 2
    # The pause after each encoding is in neither: it is the region's own.
    assert 2 * 10 <= rows["text encoding"]["own_ms"] <= 2 * 20
    assert hooks_of(module) == 0


def test_a_first_block_with_steps_of_its_own_is_timed_by_their_names():
    profiler = LongLiveProfiler()
    first = DenoisingSchedule.from_steps([1000, 750, 500], shift=5.0)
    run([profiler], latent_frames=4, first_schedule=first)
    steps = {name: n for name, n in counts_of(profiler).items() if "step" in name}
    assert sum(steps.values()) == 3 + 2
    assert "block/step 937.5" in steps


class Pause(RolloutCallback):
    """A callback that takes its time over the frames."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_frames_ready(self, trainer, pl_module, state, frames_BTCHW) -> None:
        time.sleep(self.seconds)

    def on_denoise_step_end(self, trainer, pl_module, state, x0_BFCHW) -> None:
        # Between two steps, in none of them.
        time.sleep(self.seconds / 10)


class VirtualTime:
    """A clock that only sleeping moves: how busy the machine is must not show in a test."""

    def __init__(self) -> None:
        self.now_ns = 0

    def perf_counter_ns(self) -> int:
        # No moment comes twice.
        self.now_ns += 100
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@pytest.fixture(autouse=True)
def _virtual_time(request, monkeypatch):
    if "gpu" in request.keywords:
        # The device's events know nothing of it.
        return
    virtual = VirtualTime()
    for module in (clocks, rollout_recording, sys.modules[__name__]):
        monkeypatch.setattr(module, "time", virtual)


PAUSE_MS = 40


def slow_decode(profiler: LongLiveProfiler) -> None:
    run([profiler], latent_frames=6, switch=4, decode=lambda latents: time.sleep(PAUSE_MS / 1000))


def slow_callback(profiler: LongLiveProfiler) -> None:
    run([Pause(PAUSE_MS / 1000), profiler], latent_frames=6, switch=4)


def slow_caller(profiler: LongLiveProfiler) -> None:
    for _ in Module().stream([profiler], latent_frames=6, switch=4):
        time.sleep(PAUSE_MS / 1000)


def slow_text(profiler: LongLiveProfiler) -> None:
    module = Module()

    def text(prompt: str) -> list[tuple[Tensor, Tensor]]:
        time.sleep(PAUSE_MS / 1000)
        return text_of(module.dit)(prompt)

    run([profiler], module, latent_frames=6, switch=4, text=text)


@pytest.mark.parametrize(
    ("slow", "row"),
    [
        (slow_decode, "block/VAE decode"),
        (slow_callback, "block/output"),
        (slow_caller, "block/output"),
        (slow_text, "text encoding"),
    ],
)
def test_a_slowed_region_shows_in_its_row_with_its_size_and_in_no_other(slow, row):
    run([], latent_frames=6, switch=4)
    profiler = LongLiveProfiler()
    slow(profiler)
    rows = rows_of(profiler)
    assert PAUSE_MS <= rows[row]["p50_ms"] <= 1.5 * PAUSE_MS
    inner = {name: r for name, r in rows.items() if name not in (row, "rollout", "block")}
    assert max(r["p50_ms"] for r in inner.values()) < PAUSE_MS / 2


def test_what_other_callbacks_do_after_a_step_is_not_in_the_step():
    quick, slow = LongLiveProfiler(), LongLiveProfiler()
    run([quick], latent_frames=6)
    run([Pause(0.2), slow], latent_frames=6)
    assert rows_of(slow)["block"]["own_ms"] > 3 * 2 * 20
    assert rows_of(slow)["block/step 1000"]["p50_ms"] < rows_of(quick)["block"]["p50_ms"] + 15


@pytest.mark.skipif(memory_gauge_of(CPU) is None, reason="needs /proc")
def test_memory_that_the_decoder_keeps_shows_in_its_row_and_in_no_other():
    # What earlier tests left behind must not be freed meanwhile.
    gc.collect()
    kept: list[Tensor] = []
    mib = 64

    def keep(latents: Tensor) -> None:
        kept.append(torch.ones(mib * 2**18))

    run([], latent_frames=4)
    profiler = LongLiveProfiler()
    run([profiler], latent_frames=4, decode=keep)
    rows = rows_of(profiler)
    grown = {name: row["memory"]["grown"] / 2**20 for name, row in rows.items()}
    assert grown["block/VAE decode"] == pytest.approx(2 * mib, rel=0.1)
    assert grown["rollout"] == pytest.approx(2 * mib, rel=0.2)
    others = [g for name, g in grown.items() if name.count("/") and name != "block/VAE decode"]
    assert max(others) < mib / 4
    peak = rows["block/VAE decode"]["memory"]["peak"]
    assert peak == rows["rollout"]["memory"]["peak"]


def test_without_memory_nothing_is_read():
    profiler = LongLiveProfiler(memory=False)
    run([profiler], latent_frames=4)
    assert profiler.summary()["memory"] is None
    assert all(row["memory"] is None for row in rows_of(profiler).values())


@pytest.mark.parametrize("detailed", [False, True])
def test_regions_nest_and_never_exceed_what_is_round_them(detailed):
    profiler = LongLiveProfiler(detailed=detailed)
    run([profiler], latent_frames=8, switch=4)
    samples = profiler.profile().samples
    assert_nothing_exceeds_what_is_round_it(samples)
    assert all(row["own_ms"] >= -1e-6 for row in rows_of(profiler).values())
    assert all(0 <= (r["share_of_parent"] or 0) <= 1 for r in rows_of(profiler).values())
    assert min(s.ms for s in samples) >= 0


@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_every_part_of_every_layer_is_timed_once_where_it_happens(positions):
    profiler = LongLiveProfiler(detailed=True)
    run([profiler], latent_frames=8, switch=4, positions=positions, sink_latent_frames=0)
    inside = [s for s in profiler.profile().samples if s.path[-2:-1] == ("layer",)]

    def parts(layer: int, *where: str) -> dict[str, int]:
        names = [s.path[-1] for s in inside if s.path[1:-2] == where and s.layer == layer]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    for step in STEPS:
        for layer in range(CONFIG.layers):
            found = parts(layer, "block", step)
            assert found == {name: 4 * count for name, count in LAYER_PARTS.items()}
    last = CONFIG.layers - 1
    assert parts(0, "recache") == LAYER_PARTS
    # A pass that only stores keys stops there in its last layer.
    assert parts(last, "recache") == KEYS_ONLY_PARTS
    # Of four blocks the one before the switch has none.
    stored = {name: 3 * count for name, count in KEYS_ONLY_PARTS.items()}
    assert parts(last, "block", "context update") == stored


def test_the_parts_of_the_layers_add_up_to_them():
    profiler = LongLiveProfiler(detailed=True)
    run([profiler], latent_frames=8, switch=4)
    rows = rows_of(profiler)
    for name in (*(f"block/{step}" for step in STEPS), "block/context update", "recache"):
        layer = rows[f"{name}/layer"]
        assert layer["own_ms"] == pytest.approx(0, abs=1e-6)
        assert layer["total_ms"] < rows[name]["total_ms"]
    steps, context, recache = profiler.summary()["layers"]
    assert [steps["kind"], context["kind"]] == ["denoising step", "context update"]
    assert (steps["passes"], context["passes"], recache["passes"]) == (8, 3, 1)
    per_pass = sum(map(sum, steps["parts_ms"].values()))
    totals = [rows[f"block/{step}/layer"]["total_ms"] for step in STEPS]
    assert per_pass == pytest.approx(sum(totals) / 8)


@contextmanager
def slow_forward(module: nn.Module, seconds: float) -> Iterator[None]:
    handle = module.register_forward_hook(lambda *_: time.sleep(seconds))
    yield
    handle.remove()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("self_attn.v", "QKV projection"),
        ("self_attn.norm_q", "QKV projection"),
        ("self_attn.o", "output projection"),
        ("cross_attn.norm_q", "cross-attention"),
        ("ffn.1", "FFN"),
        ("norm1", "norms and modulation"),
        ("norm2", "norms and modulation"),
        ("norm3", "norms and modulation"),
    ],
)
def test_a_slowed_module_of_one_layer_shows_in_its_part_of_that_layer(name, part):
    module, profiler = Module(), LongLiveProfiler(detailed=True)
    with slow_forward(module.dit.blocks[1].get_submodule(name), 0.01):
        run([profiler], module, latent_frames=4)
    parts = profiler.summary()["layers"][0]["parts_ms"]
    assert 10 <= parts[part][1] <= 20
    others = [ms for name, layers in parts.items() for ms in layers if ms is not parts[part][1]]
    assert max(others) < 8


def test_slowed_pieces_of_the_attention_show_in_their_parts(monkeypatch):
    pause_ms = {"cache": 8, "kernel": 16, "rotate": 2}

    def slowed(name: str, function: Callable) -> Callable:
        def slow(*args: object) -> object:
            time.sleep(pause_ms[name] / 1000)
            return function(*args)

        return slow

    core = import_module("longlive.attention.core")
    monkeypatch.setattr(core, "rotate", slowed("rotate", core.rotate))
    cache = import_module("longlive.attention.kv_cache").LayerCache
    monkeypatch.setattr(cache, "update", slowed("cache", cache.update))
    monkeypatch.setitem(globals(), "sdpa_attention", slowed("kernel", sdpa_attention))
    profiler = LongLiveProfiler(detailed=True)
    run([profiler], latent_frames=6)
    parts = profiler.summary()["layers"][0]["parts_ms"]
    # Keys are turned before they are stored, and queries after it.
    for name, ms in (("KV-cache update", 8), ("attention", 16), ("RoPE", 2 * 2)):
        assert ms <= parts[name][0] <= 1.6 * ms + 2


def test_detailed_mode_changes_no_bit_and_leaves_no_hook():
    module = Module()
    before = run([], module, switch=4)
    for positions in ("absolute", "relative"):
        plain = run([], module, switch=4, positions=positions)
        timed = run([LongLiveProfiler(detailed=True)], module, switch=4, positions=positions)
        assert torch.equal(plain, timed)
        assert hooks_of(module) == 0
    assert torch.equal(run([], module, switch=4), before)


def test_hooks_are_there_while_a_rollout_runs_and_gone_however_it_ends():
    module = Module()

    def fail(latents: Tensor) -> None:
        raise ZeroDivisionError

    stream = iter(module.stream([LongLiveProfiler(detailed=True)]))
    next(stream)
    assert hooks_of(module) > 0
    stream.close()
    assert hooks_of(module) == 0
    with pytest.raises(ZeroDivisionError):
        run([LongLiveProfiler(detailed=True)], module, decode=fail)
    assert hooks_of(module) == 0


def test_a_block_that_was_cut_short_counts_nowhere():
    profiler = LongLiveProfiler()
    stream = Module().stream([profiler])
    for block in stream:
        if block.index == 2:
            stream.stop()
    counts = counts_of(profiler)
    # The third block was shown, but its clean keys were never stored.
    assert counts["block"] == counts["block/context update"] == counts["block/VAE decode"] == 2
    cut = [s.path[-1] for s in profiler.profile().samples if not s.is_whole]
    assert set(cut) == {"block", *STEPS, "VAE decode", "output"}
    assert_nothing_exceeds_what_is_round_it(profiler.profile().samples)


def test_rollouts_add_up_until_they_are_forgotten():
    profiler, module = LongLiveProfiler(), Module()
    for _ in range(3):
        run([profiler], module, latent_frames=4)
    assert profiler.summary()["rollouts"] == 3
    assert counts_of(profiler)["block"] == 6
    assert [s.rollout for s in profiler.profile().samples if s.path == ("rollout",)] == [0, 1, 2]
    profiler.reset()
    assert profiler.summary()["regions"] == []
    run([profiler], module, latent_frames=4)
    assert counts_of(profiler)["block"] == 2


def test_a_rollout_that_is_prepared_and_never_begun_leaves_nothing():
    profiler, module = LongLiveProfiler(), Module()
    module.stream([profiler])
    run([profiler], module, latent_frames=4)
    counts = counts_of(profiler)
    assert (counts["rollout"], counts["initialization"]) == (1, 1)


def test_an_abandoned_rollout_does_not_disturb_the_next_one():
    profiler, module = LongLiveProfiler(detailed=True), Module()
    abandoned = iter(module.stream([profiler]))
    next(abandoned)
    following = iter(module.stream([profiler], latent_frames=4))
    next(following)
    abandoned.close()
    for _ in following:
        pass
    assert rows_of(profiler)["block"]["count"] == 2
    assert profiler.summary()["rollouts"] == 2
    assert hooks_of(module) == 0


def test_latents_without_a_decoder_have_no_decode():
    from nano import Rollout

    dit, profiler = nano_dit(), LongLiveProfiler()
    module = pl.LightningModule()
    hooks = CallbackHooks([profiler], module)
    Rollout(dit, spec(latent_frames=4), hooks=hooks).latents()
    counts = counts_of(profiler)
    assert "block/VAE decode" not in counts
    assert counts["block/context update"] == counts["block"] == 2
    assert "initialization" not in counts


def test_one_profiler_refuses_a_second_device():
    profiler, module = LongLiveProfiler(), Module()
    run([profiler], module, latent_frames=2)
    with pytest.raises(UserError, match="take another one for meta"):
        profiler._recording.prepare(torch.device("meta"))


def test_compiled_layers_are_not_timed_and_the_report_says_so():
    module, profiler = Module(), LongLiveProfiler(detailed=True)
    for layer in module.dit.layers:
        # What Module.compile sets, without the compiler.
        layer._compiled_call_impl = layer._call_impl
    run([profiler], module, latent_frames=4, switch=2)
    assert profiler.summary()["layers"] == []
    text = report(profiler)
    assert "the layers of 6 of 6 passes could not be timed" in text
    assert "the transformer's layers are compiled" in text
    assert "inside the layers" not in text


class Replayed(RolloutCallback):
    """From the third pass on the layers are not called as modules any more."""

    def configure_denoiser(self, trainer, pl_module, denoiser):
        calls = iter(range(1000))

        def call(x_BFCHW, inputs):
            return denoiser(x_BFCHW, inputs) if next(calls) < 2 else torch.zeros_like(x_BFCHW)

        return call


def test_passes_that_are_not_run_layer_by_layer_are_counted_and_told():
    profiler = LongLiveProfiler(detailed=True)
    run([profiler, Replayed()], latent_frames=4)
    assert "the layers of 4 of 6 passes could not be timed: they are captured" in report(profiler)
    assert profiler.summary()["layers"][0]["passes"] == 2


class FakeEvent:
    """A CUDA event on a device that runs 5 ms behind the host; waiting is forbidden in a run."""

    is_running = True

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        self.ms = time.perf_counter_ns() / 1e6 + 5

    def query(self) -> bool:
        raise AssertionError("the device was asked while a rollout ran")

    def synchronize(self) -> None:
        assert not FakeEvent.is_running, "the host waited for the device"

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert not FakeEvent.is_running, "an event was read while a rollout ran"
        return end.ms - self.ms


@pytest.fixture
def fake_cuda(monkeypatch) -> None:
    """A CUDA clock on a CPU, with ranges, and a device that must not be waited for."""

    def wait(*_: object) -> None:
        raise AssertionError("the host waited for the device")

    for name in ("synchronize", "current_blas_handle"):
        monkeypatch.setattr(torch.cuda, name, wait)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name: None)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(
        rollout_recording, "clock_of", lambda device, nvtx: CudaClock(device, nvtx=nvtx)
    )
    monkeypatch.setattr(FakeEvent, "is_running", True)


@pytest.mark.parametrize("detailed", [False, True])
def test_nothing_waits_for_the_device_while_a_rollout_runs(fake_cuda, detailed, tmp_path):
    profiler = LongLiveProfiler(detailed=detailed)
    run([profiler], latent_frames=8, switch=4)
    FakeEvent.is_running = False
    rows = rows_of(profiler)
    assert profiler.summary()["clock"] == "CUDA events"
    assert rows["block"]["count"] == 4
    inner = sum(r["total_ms"] for name, r in rows.items() if name.count("/") == 1)
    assert 0 < inner <= rows["rollout"]["total_ms"]
    assert_nothing_exceeds_what_is_round_it(profiler.profile().samples)
    profiler.export_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {e["tid"] for e in events if e["ph"] == "X"} == {1, 2}


def test_a_pass_that_is_being_captured_is_left_alone(fake_cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    profiler = LongLiveProfiler(detailed=True)
    run([profiler], latent_frames=4)
    FakeEvent.is_running = False
    assert profiler.summary()["layers"] == []
    assert "the layers of 6 of 6 passes could not be timed" in report(profiler)


def test_frames_are_timed_on_their_way_through_a_writer_that_is_watched(tmp_path):
    profiler, writer = LongLiveProfiler(), FrameWriter(tmp_path)
    profiler.watch(writer)
    run([writer, profiler], latent_frames=6)
    counts = counts_of(profiler)
    assert counts["block/output/copy to host"] == counts["block"] == 3
    assert counts["write"] == 3
    row = next(r for r in profiler.summary()["regions"] if r["path"] == ("write",))
    assert row["share_of_parent"] is None
    assert_nothing_exceeds_what_is_round_it(
        [s for s in profiler.profile().samples if s.track == "rollout"]
    )


def test_a_slow_writer_shows_in_its_own_row(tmp_path, monkeypatch):
    from longlive.video.recording import Recording

    append = Recording.append_frames

    def slow(self: Recording, frames: Tensor) -> None:
        time.sleep(0.03)
        append(self, frames)

    monkeypatch.setattr(Recording, "append_frames", slow)
    profiler, writer = LongLiveProfiler(), FrameWriter(tmp_path)
    profiler.watch(writer)
    run([profiler, writer], latent_frames=4)
    rows = rows_of(profiler)
    assert 30 <= rows["write"]["p50_ms"] <= 31
    assert rows["write"]["count"] == 2


def test_exports_hold_every_sample_and_events_that_perfetto_opens(tmp_path):
    profiler = LongLiveProfiler(detailed=True)
    run([profiler], latent_frames=4, switch=2)
    profiler.export_json(tmp_path / "new" / "profile.json")
    profiler.export_trace(tmp_path / "new" / "trace.json")
    document = json.loads((tmp_path / "new" / "profile.json").read_text())
    samples = profiler.profile().samples
    assert len(document["samples"]) == len(samples) > 100
    assert {row["path"][-1] for row in document["regions"]} >= {"block", "RoPE", "recache"}
    assert document["samples"][0]["path"] == ["rollout"]
    block = next(s for s in document["samples"] if s["path"][-1] == "block")
    assert block["block"] == 0
    assert set(block["memory"] or {"peak": 0}) >= {"peak"}
    trace = json.loads((tmp_path / "new" / "trace.json").read_text())
    complete = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert len(complete) == len(samples)
    assert all({"name", "ts", "dur", "pid", "tid"} <= set(event) for event in complete)


def test_the_report_names_every_region_and_what_it_was_timed_with():
    profiler = LongLiveProfiler(detailed=True)
    run([profiler], latent_frames=8, switch=4)
    text = report(profiler)
    assert text.startswith("cpu, wall clock, 1 rollout(s)\n")
    names = {line.strip().split("  ")[0] for line in text.splitlines()}
    expected = {"rollout", "initialization", "text encoding", "recache", "block", *STEPS}
    assert expected | {"VAE decode", "output", "context update"} | set(LAYER_PARTS) <= names
    assert "…" not in text
    steady = report(profiler, from_block=3)
    assert "blocks from 3 on" in steady
    assert "initialization" not in steady


class Predicting(Module):
    """Makes one video per batch, as LongLive does."""

    def predict_step(self, batch: object, batch_idx: int = 0) -> int:
        stream = self.stream(self.trainer.callbacks, trainer=self.trainer, latent_frames=4)
        for block in stream:
            if batch == "fail" and block.index:
                raise ZeroDivisionError
        return block.index


def predict(callbacks: list[pl.Callback], batches: list[str]) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        callbacks=callbacks,
    )
    loader = DataLoader(batches, batch_size=None)
    trainer.predict(Predicting(), loader, return_predictions=False)


def test_under_lightning_it_finds_the_writer_and_leaves_a_report_and_two_files(tmp_path, caplog):
    profiler = LongLiveProfiler(output=tmp_path / "profile")
    with caplog.at_level(logging.INFO, logger="longlive"):
        predict([FrameWriter(tmp_path), profiler], ["one", "two"])
    assert {path.name for path in (tmp_path / "profile").iterdir()} == {
        "profile.json",
        "trace.json",
    }
    counts = counts_of(profiler)
    assert (counts["rollout"], counts["block"], counts["write"]) == (2, 4, 4)
    assert "where the time went\ncpu, wall clock, 2 rollout(s)" in caplog.text


def test_a_run_that_fails_leaves_the_samples_it_has(tmp_path):
    with pytest.raises(ZeroDivisionError):
        predict([LongLiveProfiler(output=tmp_path)], ["one", "fail"])
    document = json.loads((tmp_path / "profile.json").read_text())
    assert document["rollouts"] == 2
    assert sum(s["path"][-1] == "block" and s["is_whole"] for s in document["samples"]) == 3


def test_the_overlay_appends_a_profiler_with_arguments_that_it_has():
    path = Path(__file__).parents[2] / "configs" / "observe" / "profiler.yaml"
    (entry,) = yaml.safe_load(path.read_text())["trainer"]["callbacks+"]
    module, name = entry["class_path"].rsplit(".", 1)
    assert getattr(import_module(module), name) is LongLiveProfiler
    signature(LongLiveProfiler).bind(**entry["init_args"])


@pytest.mark.gpu
@pytest.mark.parametrize("detailed", [False, True])
def test_event_times_are_positive_and_add_up_to_the_wall_clock(detailed):
    device = torch.device("cuda")
    config = replace(CONFIG, width=512, ffn_width=2048, heads=8, layers=6)
    module, profiler = Module(), LongLiveProfiler(detailed=detailed)
    module.dit = DiT(config).to(device, torch.float32).eval()
    device = module.dit.patch_embedding.weight.device
    run([], module, device=device, switch=4)
    torch.cuda.synchronize()
    start_s = time.perf_counter()
    run([profiler], module, device=device, switch=4)
    torch.cuda.synchronize()
    wall_ms = 1000 * (time.perf_counter() - start_s)
    rows = rows_of(profiler)
    samples = profiler.profile().samples
    assert min(s.ms for s in samples) >= 0
    assert min(rows[f"block/{step}"]["p50_ms"] for step in STEPS) > 0
    assert rows["rollout"]["total_ms"] == pytest.approx(wall_ms, rel=0.05)
    outer = sum(r["total_ms"] for name, r in rows.items() if "/" not in name and name != "rollout")
    assert outer == pytest.approx(rows["rollout"]["total_ms"], rel=0.05)
    assert rows["block"]["memory"]["peak"] > rows["initialization"]["memory"]["allocated"] / 2
    assert_nothing_exceeds_what_is_round_it(samples)
    if detailed:
        steps = profiler.summary()["layers"][0]
        assert steps["passes"] == 16
        assert rows["block/step 1000/layer"]["own_ms"] == pytest.approx(0, abs=1e-3)
