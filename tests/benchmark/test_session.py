"""Real rollouts, timed: what is put into them is found again, in the right place and size."""

import threading
import time
from dataclasses import replace
from statistics import median

import pytest
import torch

from longlive.benchmark import latency as latency_module
from longlive.benchmark import session as session_module
from longlive.benchmark.config import BenchmarkConfig
from longlive.benchmark.latency import first_frame, steady_blocks, switches_from_border
from longlive.benchmark.plan import arrival_jobs
from longlive.benchmark.prompt_text import RememberedText
from longlive.benchmark.rollouts import BatchSize, Job, Runner
from longlive.benchmark.samples import (
    ARRIVAL,
    CACHED,
    CONTEXT,
    COPY,
    DECODE,
    DIFFUSION,
    LATENTS,
    OTHER,
    PLAIN,
    RECACHE,
    TEXT,
    WARM_UP,
)
from longlive.benchmark.session import Session
from longlive.callbacks.frame_writer import FrameWriter
from longlive.callbacks.progress import RolloutProgress
from longlive.errors import UserError
from longlive.metrics.clocks import memory_gauge_of
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.prompts import PromptTimeline

CPU = torch.device("cpu")
CIRCLE, SQUARE = "a red circle", "a small square"
SLEEP_MS = 120.0
GIB = 1 << 30

needs_memory = pytest.mark.skipif(
    memory_gauge_of(CPU) is None, reason="the system does not tell how much memory is resident"
)


class SlowDecoder(RolloutCallback):
    """Sleeps in every decode, and notes how long that and the decode really took."""

    def __init__(self) -> None:
        self.slept_ms: list[float] = []
        self.decoded_ms: list[float] = []

    def configure_decoder(self, trainer, pl_module, decoder):
        noted = self

        class Slow:
            def decode(self, latents_BFCHW):
                begun_s = time.perf_counter()
                time.sleep(SLEEP_MS / 1000)
                slept_s = time.perf_counter()
                frames_BTCHW = decoder.decode(latents_BFCHW)
                noted.slept_ms.append(1000 * (slept_s - begun_s))
                noted.decoded_ms.append(1000 * (time.perf_counter() - begun_s))
                return frames_BTCHW

        return Slow()


class PieceDecoder(RolloutCallback):
    """Shows the first latent frame of a video before the others, which are slow."""

    def configure_decoder(self, trainer, pl_module, decoder):
        class Pieces:
            is_first = True

            def decode(self, latents_BFCHW):
                return self.decode_pieces(latents_BFCHW, lambda frames: None)()

            def decode_pieces(self, latents_BFCHW, show):
                sizes = [1, latents_BFCHW.shape[1] - 1] if self.is_first else -1
                self.is_first, pieces = False, []
                for piece in latents_BFCHW.split(sizes, 1) if sizes != -1 else [latents_BFCHW]:
                    if pieces:
                        time.sleep(SLEEP_MS / 1000)
                    pieces.append(decoder.decode(piece))
                    show(pieces[-1])
                return lambda: torch.cat(pieces, 1)

        return Pieces()


class HungryDecoder(RolloutCallback):
    """Keeps a gigabyte from the decode of the fifth block on."""

    def configure_decoder(self, trainer, pl_module, decoder):
        kept = []
        blocks = iter(range(1000))

        class Hungry:
            def decode(self, latents_BFCHW):
                if next(blocks) == 4:
                    kept.append(torch.ones(GIB, dtype=torch.uint8, device=latents_BFCHW.device))
                return decoder.decode(latents_BFCHW)

        return Hungry()


class WallClock(RolloutCallback):
    """Reads the wall clock at the end of every block."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []

    def on_block_end(self, trainer, pl_module, state):
        self.ends_s.append(time.perf_counter())


def plain(latent_frames: int = 24, switches: tuple[int, ...] = ()) -> Job:
    prompts = PromptTimeline.switching((CIRCLE, SQUARE)[: 1 + len(switches)], switches)
    return Job(PLAIN, 0, 0, prompts, latent_frames)


def measured(model, config: BenchmarkConfig, *callbacks):
    session = Session(model.prepare(CPU), callbacks, config, CPU)
    session.run()
    return session.results()


def test_the_wall_clock_over_twenty_blocks_agrees_with_the_sum_of_their_periods(model):
    clock = WallClock()
    runner = Runner(model.prepare(CPU), [clock], CPU)
    started_s = time.perf_counter()
    sample = runner.run(plain(latent_frames=69))
    whole_ms = 1000 * (time.perf_counter() - started_s)
    assert len(sample.blocks) == 23
    periods_ms = [block.period_ms for block in sample.blocks]
    outside_ms = 1000 * (clock.ends_s[22] - clock.ends_s[2])
    assert sum(periods_ms[3:]) == pytest.approx(outside_ms, rel=0.02)
    assert sample.initialization_ms + sum(periods_ms) == pytest.approx(whole_ms, rel=0.02)
    assert sample.wall_ms == pytest.approx(whole_ms, rel=0.02)


def test_parts_add_up_to_their_block_and_hardly_anything_is_left_over(model):
    runner = Runner(model.prepare(CPU), [], CPU)
    left: dict[str, list[float]] = {"blocks": [], "first frame": [], "switch": []}
    # A busy machine puts something between the parts, not every time.
    for _ in range(12):
        sample = runner.run(plain(24, (12,)))
        for block in sample.blocks:
            assert sum(block.parts_ms.values()) == pytest.approx(block.period_ms)
        left["blocks"] += [b.parts_ms[OTHER] / b.period_ms for b in steady_blocks(sample)]
        (switch,) = switches_from_border(sample)
        for name, split in (("first frame", first_frame(sample)), ("switch", switch)):
            assert sum(split.parts_ms.values()) == pytest.approx(split.total_ms)
            left[name].append(split.parts_ms[OTHER] / split.total_ms)
        least = [min(map(abs, shares)) for shares in left.values()]
        if max(least) < 0.05:
            break
    assert max(least) < 0.05


def test_a_first_frame_that_is_made_alone_waits_for_its_own_steps_only(model):
    alone = LongLive(**{**model.settings, "first_frame_alone": True}).prepare(CPU)
    sample = Runner(alone, [], CPU).run(plain(24))
    first, second = sample.blocks[:2]
    assert [piece.frames for piece in first.pieces] == [1, 8]
    assert 0 < first.first_diffusion_ms < first.parts_ms[DIFFUSION]
    assert min(piece.decode_ms for piece in first.pieces) > 0
    split = first_frame(sample)
    assert split.parts_ms[DIFFUSION] == first.first_diffusion_ms
    assert sum(split.parts_ms.values()) == pytest.approx(split.total_ms)
    assert second.first_diffusion_ms is None
    assert not second.pieces


def test_parts_happen_where_they_belong(model):
    sample = Runner(model.prepare(CPU), [], CPU).run(plain(24, (12,)))
    assert [block.index for block in sample.blocks] == list(range(8))
    assert [block.frames for block in sample.blocks] == [9] + 7 * [12]
    assert [block.switches for block in sample.blocks] == [i == 4 for i in range(8)]
    for block in sample.blocks:
        assert (block.parts_ms[TEXT] > 0) == (block.index in (0, 4))
        assert (block.parts_ms[RECACHE] > 0) == (block.index == 4)
        assert min(block.parts_ms[part] for part in (DIFFUSION, DECODE, COPY)) > 0
        # What it would store is replaced by the recache after it.
        assert (block.parts_ms[CONTEXT] > 0) == (block.index != 3)
        assert block.start_ms < block.on_host_ms
    assert sample.blocks[0].start_ms == sample.initialization_ms
    for before, after in zip(sample.blocks, sample.blocks[1:], strict=False):
        assert before.end_ms == after.start_ms
        assert before.on_host_ms < after.on_host_ms


def test_a_first_frame_counts_when_it_is_shown_and_not_when_its_block_is(model):
    sample = Runner(model.prepare(CPU), [PieceDecoder()], CPU).run(plain(9))
    first, *later = sample.blocks
    assert [piece.frames for piece in first.pieces] == [1, 8]
    assert first.frames == 9
    assert not any(block.pieces for block in later)
    shown, rest = first.pieces
    assert rest.on_host_ms - shown.on_host_ms > SLEEP_MS
    assert rest.on_host_ms == first.on_host_ms
    assert first_frame(sample).total_ms == shown.on_host_ms
    assert first_frame(sample).parts_ms[DECODE] == shown.decode_ms < rest.decode_ms - SLEEP_MS
    assert first.parts_ms[DECODE] == rest.decode_ms
    assert sum(first.parts_ms.values()) == pytest.approx(first.period_ms)


def test_a_prompt_cache_of_the_recipe_is_emptied_before_cold_prompts_only(model, short):
    emptied = []

    class Cache(RolloutCallback):
        def forget_prompts(self):
            emptied.append(True)

    measured(model, replace(short, breakdown=False, arrival="none"), Cache())
    # A warm-up and two plain rollouts; the two with cached prompts leave it alone.
    assert len(emptied) == 3


def test_a_sleep_in_the_decode_shows_in_the_rows_of_the_decode_and_nowhere_else(model, short):
    config = replace(short, arrival="none", warmup_iterations=0, benchmark_iterations=1)
    decoder = SlowDecoder()
    results = measured(model, config, decoder)
    # One plain rollout, one of a block, and one with the profiler; the detailed one has no decode.
    noted = decoder.decoded_ms
    assert len(noted) == 8 + 1 + 8
    assert min(decoder.slept_ms) >= SLEEP_MS
    (plain_one,) = (rollout for rollout in results.rollouts if rollout.kind == PLAIN)
    rows = [block.parts_ms[DECODE] for block in plain_one.blocks]
    # The machine may take the processor away between two stamps, not every time.
    beside = [row - ms for row, ms in zip(rows, noted, strict=False)]
    assert -0.01 < min(beside) < 0.02 * SLEEP_MS
    assert results.figures["decode_ms"].value == median(rows[3:])
    regions = {row.path: row.p50_ms for row in results.breakdown.regions}
    decode = regions["rollout", "block", "VAE decode"]
    assert min(noted[12:17]) < decode < 1.2 * max(noted[12:17])
    cached = results.figures["first_frame_cached_ms"].components[DECODE]
    assert noted[8] < cached < 1.2 * noted[8]
    others = [median(b.parts_ms[name] for b in plain_one.blocks) for name in (DIFFUSION, CONTEXT)]
    assert max(others) < SLEEP_MS / 2
    assert regions["rollout", "block", "context update"] < SLEEP_MS / 2
    assert results.figures["diffusion_ms"].value < SLEEP_MS


@needs_memory
def test_a_gigabyte_shows_in_the_memory_of_the_region_that_took_it(model, short):
    config = replace(short, arrival="none", warmup_iterations=0, benchmark_iterations=1)
    results = measured(model, config, HungryDecoder())
    grown = {row.path[-1]: row.grown_bytes for row in results.breakdown.regions}
    assert grown["VAE decode"] == pytest.approx(GIB, rel=0.1)
    assert max(grown[name] for name in ("output", "context update", "text encoding")) < 0.1 * GIB
    (sample,) = (rollout for rollout in results.rollouts if rollout.kind == PLAIN)
    allocated = [block.memory.allocated_bytes for block in sample.blocks]
    steps = [after - before for before, after in zip(allocated, allocated[1:], strict=False)]
    assert steps.index(max(steps)) == 3
    assert max(steps) == pytest.approx(GIB, rel=0.1)
    figures = results.figures
    assert figures["peak_memory_bytes"].value - figures["weights_memory_bytes"].value > 0.9 * GIB


@pytest.mark.gpu
def test_a_gigabyte_on_a_gpu_shows_in_the_memory_of_the_region_that_took_it(nano, model, short):
    device = torch.device("cuda", 0)
    config = replace(short, arrival="none", benchmark_iterations=1)
    session = Session(model.prepare(device), [HungryDecoder()], config, device)
    session.run()
    results = session.results()
    grown = {row.path[-1]: row.grown_bytes for row in results.breakdown.regions}
    assert grown["VAE decode"] == pytest.approx(GIB, rel=0.1)
    assert results.figures["peak_memory_bytes"].value > GIB


@pytest.mark.gpu
def test_the_wall_clock_agrees_with_events_on_a_gpu(model):
    device = torch.device("cuda", 0)
    runner = Runner(model.prepare(device), [], device)
    runner.run(plain(24))
    sample = runner.run(plain(latent_frames=69))
    summed = sample.initialization_ms + sum(block.period_ms for block in sample.blocks)
    assert sample.wall_ms == pytest.approx(summed, rel=0.02)


def test_a_prompt_at_a_random_moment_is_asked_for_inside_its_block(model, short):
    config = replace(short, arrival_changes=4, num_output_frames=60)
    runner = Runner(model.prepare(CPU), [], CPU)
    steady = [block.period_ms for block in steady_blocks(runner.run(plain(24)))]
    runner.period_ms = sorted(steady)[len(steady) // 2]
    (job,) = arrival_jobs(config, 3)
    sample = runner.run(job)
    assert [change.block for change in sample.changes] == [3, 6, 9, 12]
    assert [block.index for block in sample.blocks if block.switches] == [
        change.acted_block for change in sample.changes
    ]
    for change in sample.changes:
        before = sample.blocks[change.block - 1]
        # A busy machine may wake the thread late, never early.
        assert change.requested_ms >= before.on_host_ms + change.share * runner.period_ms - 1
        assert change.acted_block in range(change.block, change.block + 3)
        assert change.on_host_ms == sample.blocks[change.acted_block].on_host_ms
        assert change.prompt_to_pixel_ms > 0
    assert sample.prompts == (CIRCLE, *(arrival.prompt for arrival in job.arrivals))


def test_random_moments_depend_on_their_seed_alone():
    config = BenchmarkConfig(arrival_changes=30)

    def shares(config):
        return [a.share for job in arrival_jobs(config, 3) for a in job.arrivals]

    assert len(shares(config)) == 30
    assert shares(config) == shares(replace(config, benchmark_iterations=3))
    assert shares(config) != shares(replace(config, arrival_seed=1))
    assert 0.3 < sum(shares(config)) / 30 < 0.7


def test_a_prompt_never_follows_itself_at_a_random_moment():
    config = BenchmarkConfig(num_output_frames=60, arrival_changes=17, prompts=[CIRCLE, SQUARE])
    for job in arrival_jobs(config, 3):
        prompts = [*job.prompts.prompts, *(arrival.prompt for arrival in job.arrivals)]
        assert all(a != b for a, b in zip(prompts, prompts[1:], strict=False))


def test_a_remembered_prompt_is_encoded_once_and_gives_the_same_video(model):
    calls = []
    encode = model.prepare(CPU).encode
    model.encode = lambda prompts: calls.append(prompts) or encode(prompts)
    remembered = RememberedText(model, 1)
    videos = []
    for embed in (None, remembered, remembered):
        stream = model.stream(CIRCLE, latent_frames=6, embed=embed)
        videos.append(torch.cat([block.latents for block in stream], 1))
    assert len(calls) == 2
    assert torch.equal(videos[0], videos[1])
    assert torch.equal(videos[0], videos[2])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_videos_side_by_side_are_run_in_one_batch(nano, model, short, guidance):
    guided = type(model)(**{**model.settings, "guidance": guidance})
    shapes = []

    class Shapes(RolloutCallback):
        def on_frames_ready(self, trainer, pl_module, state, frames_BTCHW):
            shapes.append(frames_BTCHW.shape[:2])

    config = replace(short, batch_size=2, arrival="none", breakdown=False, warmup_iterations=0)
    results = measured(guided, config, Shapes())
    assert set(shapes) == {(2, 9), (2, 12)}
    assert results.recipe.batch_size == 2
    assert BatchSize.__qualname__ not in str(results.recipe.callbacks)


def test_observers_are_left_out_and_named(model, short, tmp_path):
    config = replace(short, arrival="none", breakdown=False, benchmark_iterations=1)
    results = measured(model, config, FrameWriter(tmp_path / "x"), SlowDecoder(), RolloutProgress())
    assert not (tmp_path / "x").exists()
    assert [name.rpartition(".")[2] for name in results.recipe.left_out] == [
        "FrameWriter",
        "RolloutProgress",
    ]
    assert [name.rpartition(".")[2] for name in results.recipe.callbacks] == ["SlowDecoder"]


def test_a_session_runs_what_was_asked_for(model, short):
    results = measured(model, replace(short, arrival_changes=2))
    kinds = [rollout.kind for rollout in results.rollouts]
    assert kinds == [WARM_UP, PLAIN, PLAIN, CACHED, CACHED, ARRIVAL, ARRIVAL]
    assert results.complete
    assert all(figure.value is not None for figure in results.figures.values())
    assert [r.seed for r in results.rollouts if r.kind == PLAIN] == [0, 1]
    assert all(len(r.blocks) == 1 for r in results.rollouts if r.kind == CACHED)
    assert len(results.start_up.warm_up_s) == 1
    assert results.start_up.load_s > 0
    assert results.recipe.weights_kind == "converted"
    assert results.environment.torch == torch.__version__
    assert results.environment.gpu_before is None
    parts = {row.part for row in results.breakdown.layers}
    assert {"attention", "FFN", "RoPE", "QKV projection"} <= parts
    assert any("200" in note for note in results.notes)


def test_the_transformer_is_timed_alone_where_the_decoder_runs_beside_it(model, short, monkeypatch):
    for module in (session_module, latency_module):
        monkeypatch.setattr(module, "decodes_beside", lambda rollouts: True)
    slow = SlowDecoder()
    results = measured(model, replace(short, arrival="none", breakdown=False), slow)
    kinds = [rollout.kind for rollout in results.rollouts]
    assert kinds == [WARM_UP, PLAIN, PLAIN, LATENTS, LATENTS, CACHED, CACHED]
    assert len(slow.slept_ms) == 3 * 8 + 2
    for shown, alone in zip(results.rollouts[1:3], results.rollouts[3:5], strict=True):
        assert alone.seed == shown.seed
        assert [b.frames for b in alone.blocks] == [b.frames for b in shown.blocks]
        for block in alone.blocks:
            assert block.parts_ms[DECODE] == block.parts_ms[COPY] == 0
            assert block.parts_ms[DIFFUSION] > 0
            assert block.period_ms < SLEEP_MS
            assert sum(block.parts_ms.values()) == pytest.approx(block.period_ms)
    assert any("beside the transformer" in note for note in results.notes)


def test_nothing_of_a_session_stays_behind(model, short):
    before = set(threading.enumerate())
    measured(model, replace(short, benchmark_iterations=1))
    assert {thread for thread in threading.enumerate() if thread.is_alive()} <= before


def test_rates_of_another_type_are_refused_before_weights_are_read(model, short, tmp_path):
    path = tmp_path / "ceilings.yaml"
    rates = {"gemm_tflops": 1, "attention_tflops": 1, "conv_tflops": 1, "copy_tb_s": 1}
    path.write_text("\n".join(f"{k}: {v}" for k, v in rates.items()) + "\nname: x\ndtype: bfloat16")
    with pytest.raises(UserError, match=r"bfloat16, and the model computes in float32: set"):
        Session(model, [], replace(short, ceilings=path), CPU)
    assert model.parts is None
