"""Results made by hand: numbers like those of a full-size run, none of them measured."""

from dataclasses import replace

import numpy as np

from longlive.benchmark.ablation_table import VERSION as ABLATION_VERSION
from longlive.benchmark.ablation_table import AblationResults, AblationRow
from longlive.benchmark.provenance import Environment, GpuState, Recipe, StartUp
from longlive.benchmark.results import (
    FORMAT,
    VERSION,
    Breakdown,
    Distribution,
    Figure,
    LayerRow,
    RegionRow,
    Results,
    WorkRow,
)
from longlive.benchmark.samples import (
    CONTEXT,
    COPY,
    DECODE,
    DIFFUSION,
    OTHER,
    PLAIN,
    RECACHE,
    TEXT,
    BlockSample,
    Memory,
    RolloutSample,
)

GIB = 1 << 30
BLOCKS = 14
SWITCH = 8

GPU = GpuState(1755.0, 1980.0, 2619.0, 412.5, 700.0, 51.0, "0x0000000000000000")

ENVIRONMENT = Environment(
    device="cuda:0",
    device_name="NVIDIA H200",
    driver="580.1",
    cuda="13.0",
    cudnn="9.15",
    torch="2.11.0",
    python="3.12.3",
    longlive="0.1.0",
    packages={"triton": "3.6.0", "flash-attn-4": None},
    system="Linux 6.8 x86_64",
    cpu="some processor",
    cores=16,
    threads=16,
    clock="CUDA events",
    memory="torch's CUDA allocator",
    gpu_before=replace(GPU, power_w=120.0, sm_clock_mhz=1980.0),
    gpu_after=GPU,
)

RECIPE = Recipe(
    name="base+synthetic",
    command="longlive benchmark --config configs/base.yaml --output results/base",
    config_files=("configs/base.yaml", "configs/weights/synthetic.yaml"),
    settings={
        "model": {"size": "wan-1.3b", "weights": "synthetic", "denoising_steps": [1000, 500]}
    },
    callbacks=("CompileDenoiser",),
    left_out=("FrameWriter",),
    weights_kind="synthetic",
    weights_source="synthetic",
    dtype="bfloat16",
    attention="flash_attn_4",
    height_px=480,
    width_px=832,
    steps=4,
    window_latent_frames=12,
    sink_latent_frames=3,
    block_latent_frames=3,
    guidance=1.0,
    batch_size=1,
)


def distribution(samples: list[float]) -> Distribution:
    p50, p95, p99 = (float(value) for value in np.percentile(samples, (50, 95, 99)))
    return Distribution(
        len(samples),
        float(np.mean(samples)),
        float(np.std(samples)),
        p50,
        p95,
        p99,
        float(max(samples)),
    )


def rollout(iteration: int, blocks: int = BLOCKS, speed: float = 1.0) -> RolloutSample:
    """A plain rollout with a switch at block 8; ``speed`` multiplies every time."""
    random = np.random.default_rng(iteration)
    samples = []
    now_ms = initialization_ms = 6.0
    for index in range(blocks):
        wobble = speed * float(1 + 0.006 * random.standard_normal())
        fill = min(1.0, 0.55 + 0.15 * index)
        parts = {
            TEXT: 59.0 if index in (0, SWITCH) else 0.0,
            RECACHE: 300.0 if index == SWITCH else 0.0,
            DIFFUSION: 376.0 * fill,
            DECODE: 245.0 if index else 210.0,
            COPY: 3.0,
            CONTEXT: 90.0 * fill,
            OTHER: 2.0,
        }
        parts = {part: ms * wobble for part, ms in parts.items()}
        end_ms = now_ms + sum(parts.values())
        in_use = int((19.5 + 0.25 * min(index, 3)) * GIB)
        samples.append(
            BlockSample(
                index=index,
                frames=12 if index else 9,
                latent_frames=3,
                start_ms=now_ms,
                end_ms=end_ms,
                on_host_ms=end_ms - parts[CONTEXT] + float(random.standard_normal()),
                parts_ms=parts,
                switches=index == SWITCH,
                memory=Memory(in_use, 26 * GIB, in_use + 3 * GIB),
            )
        )
        now_ms = end_ms
    return RolloutSample(
        kind=PLAIN,
        iteration=iteration,
        seed=iteration,
        prompts=("a cat", "a dog"),
        initialization_ms=initialization_ms,
        blocks=tuple(samples),
        wall_ms=now_ms + 4.0,
        memory=Memory(20 * GIB, 26 * GIB, 23 * GIB),
    )


def steady(rollout: RolloutSample) -> list[BlockSample]:
    near = [block.index for block in rollout.blocks if block.switches]
    near += [index - 1 for index in near]
    return [block for block in rollout.blocks if block.index >= 3 and block.index not in near]


def figures(rollouts: list[RolloutSample]) -> dict[str, Figure]:
    each = [[block.period_ms / block.frames for block in steady(one)] for one in rollouts]
    pooled = distribution([ms for one in each for ms in one])
    medians = tuple(float(np.median(one)) for one in each)
    first = [one.initialization_ms + one.blocks[0].period_ms for one in rollouts]
    initialization = float(np.mean([one.initialization_ms for one in rollouts]))
    return {
        "inter_frame_ms": Figure(pooled.p50, "ms", "inter_frame_ms", pooled, medians),
        "fps": Figure(
            1000 / pooled.mean, "fps", "fps", None, tuple(1000 / median for median in medians)
        ),
        "first_frame_cold_ms": Figure(
            distribution(first).p50,
            "ms",
            "first_frame_cold_ms",
            distribution(first),
            tuple(first),
            {
                "initialization": initialization,
                "block 0": float(np.mean(first)) - initialization - 2.0,
                "other": 2.0,
            },
        ),
        "prompt_to_pixel_ms": Figure(
            None, "ms", "prompt_to_pixel_ms", reason="no prompt arrived at random"
        ),
        "stalls": Figure(2.5, "count", "stalls", None, tuple(float(i % 2 + 2) for i in range(10))),
        "peak_memory_bytes": Figure(
            23.0 * GIB, "bytes", "peak_memory_bytes", None, (23.0 * GIB,) * len(rollouts)
        ),
        "load_s": Figure(12.5, "s", "load_s"),
    }


def breakdown() -> Breakdown:
    def region(path: str, ms: float, own: float, share: float | None, peak: float, grown: float):
        times = (ms, ms, 1.01 * ms, 1.02 * ms, 1.03 * ms)
        names = tuple(path.split("/"))
        return RegionRow(
            names, 10, 10 * ms, *times, 10 * own, share, int(peak * GIB), int(grown * GIB)
        )

    parts = {
        "attention": 0.95,
        "FFN": 0.42,
        "QKV projection": 0.28,
        "norms and modulation": 0.31,
        "cross-attention": 0.22,
        "output projection": 0.11,
        "RoPE": 0.12,
        "KV-cache update": 0.05,
    }
    wave = [1 + 0.03 * float(np.sin(layer)) for layer in range(30)]
    layers = tuple(
        LayerRow(kind, part, passes, tuple(factor * ms * value for value in wave))
        for kind, passes, factor in (("denoising step", 40, 1.0), ("context update", 10, 0.97))
        for part, ms in parts.items()
    )
    return Breakdown(
        blocks=13,
        regions=(
            region("rollout/block", 716, 2, None, 23, 0.25),
            region("rollout/block/VAE decode", 245, 245, 0.342, 23, 0.125),
            region("rollout/block/context update", 90, 90, 0.126, 21, 0.0),
        ),
        layers=layers,
        notes=("the layers of 4 of 54 passes could not be timed: they are captured",),
    )


def work() -> tuple[WorkRow, ...]:
    def row(piece, kind, unit, tflop, gb, floor, measured):
        return WorkRow(piece, kind, unit, int(tflop * 1e12), int(gb * 1e9), floor, measured)

    return (
        row("step, steady", "qkv", "gemm", 2.0, 3.1, 3.0, 8.4),
        row("step, steady", "attention output", "gemm", 0.66, 1.0, 1.0, 3.3),
        row("step, steady", "feed-forward", "gemm", 7.7, 5.1, 11.8, 12.6),
        row("step, steady", "embeddings and head", "gemm", 0.03, 0.05, 0.05, None),
        row("step, steady", "self-attention", "attention", 16.1, 4.3, 30.8, 31.2),
        row("step, steady", "cross-attention", "attention", 0.44, 0.95, 0.85, None),
        row("step, steady", "all", "", 28.3, 18.0, 49.6, 94.0),
        row("context update, steady", "all", "", 27.4, 17.0, 48.0, 90.0),
        row("vae decode, later blocks", "vae convolution", "conv", 40.5, 60.0, 70.1, None),
        row("vae decode, later blocks", "all", "", 40.7, 61.0, 70.5, 245.0),
        row("recache", "all", "", 82.2, 40.0, 150.0, 300.0),
        row("text encoder", "all", "", 4.84, 10.0, 7.4, 59.0),
    )


CEILINGS = {
    "name": "NVIDIA H200",
    "dtype": "bfloat16",
    "gemm_tflops": 657.0,
    "attention_tflops": 523.0,
    "conv_tflops": 578.0,
    "copy_tb_s": 4.23,
}


def results(iterations: int = 10, speed: float = 1.0, **changes: object) -> Results:
    """A whole benchmark.

    Args:
        iterations: Plain rollouts.
        speed: Multiplies every time of their blocks.
        changes: Other fields.
    """
    rollouts = [rollout(i, speed=speed) for i in range(iterations)]
    made = Results(
        format=FORMAT,
        version=VERSION,
        complete=True,
        ended="complete",
        started_at="2026-01-02T03:04:05+00:00",
        elapsed_s=321.0,
        commit="0123456789ab",
        benchmark={"num_output_frames": 42, "benchmark_iterations": iterations, "sync_cuda": True},
        recipe=RECIPE,
        environment=ENVIRONMENT,
        start_up=StartUp(12.5, (31.0, 10.5), 14 * GIB),
        rollouts=tuple(rollouts),
        figures=figures(rollouts),
        breakdown=breakdown(),
        work=work(),
        ceilings=CEILINGS,
        notes=("the GPU was shared with nobody",),
    )
    return replace(made, **changes)


def changed(made: Results, name: str, **values: object) -> Results:
    """The same results with another figure ``name``."""
    return replace(made, figures={**made.figures, name: replace(made.figures[name], **values)})


def ablation(**changes: object) -> AblationResults:
    def row(name: str, fps: float, reason: str = "") -> AblationRow:
        repeats = () if reason else tuple(fps * (1 + 0.01 * i) for i in range(3))
        gap = tuple(1000 / value for value in repeats)
        peak = tuple(23.0 * GIB for _ in repeats)
        samples = {"fps": repeats, "inter_frame_ms": gap, "peak_memory_bytes": peak}
        return AblationRow(name, (), {}, (), reason, samples, ())

    made = AblationResults(
        format="longlive ablation",
        version=ABLATION_VERSION,
        complete=True,
        title="Windows",
        recipe=("configs/base.yaml",),
        matrix="configs/ablation/window.yaml",
        baseline="window 12",
        kind="one by one",
        figures=("fps", "inter_frame_ms", "peak_memory_bytes"),
        rows=(
            row("window 12", 16.8),
            row("window 9", 18.3),
            row("window 6", 20.1),
            row("FP8", 0.0, "no FP8 on this device"),
        ),
        order=(),
        repeats=3,
        weights_kind="synthetic",
        environment=ENVIRONMENT,
        commit=None,
        command="python tools/ablate.py",
        started_at="2026-01-02T03:04:05+00:00",
    )
    return replace(made, **changes)
