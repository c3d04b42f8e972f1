r"""Time and memory of one iteration of every stage of distillation, with random weights.

    python tools/measure_distillation.py --output docs/results/distillation
    python tools/measure_distillation.py --stages dmd long --set model.lora_rank=128 --output other
    python tools/measure_distillation.py --size tiny --output small         # on a CPU, in a minute

Each stage is its configuration, `configs/distill/synthetic.yaml` and a few options, in a process of
its own. Prompts, clips and pairs are made here; clips and pairs are noise. The last iteration
counts, those before it warm up. A stage that fails is a row, and the exit code is then 1.
"""

import argparse
import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from longlive.benchmark.environment import commit_of_checkout, environment_of, gpu_state
from longlive.benchmark.markdown import NOTHING, code, decimals, one_line, table
from longlive.benchmark.run import Terminated, prepare_folder, terminated_by_signal
from longlive.data.pair_shards import shard_path, write_shard
from longlive.errors import UserError
from longlive.models.sizes import dit_config
from longlive.modules.distillation_options import ClipOptions
from longlive.video.atomic import write_bytes

ROOT = Path(__file__).parents[1]
NAME = "distillation"
TERMINATED = 143
PROMPTS = ("a large red circle bounces over night", "a small blue star spins over snow")
COLUMNS = (
    *("stage", "losses and gradients", "iteration, s", "its peak, GiB", "peak of the run, GiB"),
    *("held, GiB", "start, s"),
)
PART_COLUMNS = ("stage", "part", "s", "peak, GiB")
BY_PART = (
    "The same iterations by part; `rest` lies between the parts. `image latent` is the last one of "
    "the iteration, and lies in a rollout."
)
STORED = 4
"""Clips and pairs of noise that are made."""
PARTS = (
    *("text", "target", "student_rollout", "student_scores", "student_forward", "student_backward"),
    *("student_step", "student_average", "critic_rollout", "critic_forward", "critic_backward"),
    *("critic_step", "image_latent"),
)
"""Of an iteration, in the order in which they are reported."""
INNER = ("image_latent",)
"""Lie in other parts, whose seconds hold theirs."""

LAST_EXIT = "--model.clip.exits=last"
"""The longest iteration: all steps of each block run, and the last one trains."""
BOTH = ("--model.matching.critic_updates=1", LAST_EXIT)
"""Student and critic in every iteration."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage, and how it is told to show one whole iteration.

    Attributes:
        title: For people.
        config: Name of its configuration in ``configs/distill``.
        options: On the command line.
        counts: What the last iterations show, one after the other.
    """

    title: str
    config: str
    options: tuple[str, ...]
    counts: tuple[str, ...] = ("",)


STAGES = {
    "flow": Stage("teacher-forced AR training", "flow", ("--data.folder=clips",)),
    "pairs": Stage("ODE-pair regression", "pairs", ("--data.folder=pairs",)),
    "consistency": Stage("causal consistency", "consistency", ("--data.folder=clips",)),
    "dmd": Stage("self-forcing DMD", "dmd", BOTH),
    "long": Stage(
        "streaming long tuning", "long", BOTH, ("first chunk of a video", "chunk after a switch")
    ),
    "dmd_2step": Stage(
        "self-forcing DMD, two steps", "dmd", (*BOTH, "--model.clip.denoising_steps=[1000,500]")
    ),
}
DEFAULT_STAGES = [name for name in STAGES if name != "dmd_2step"]


@dataclass(frozen=True, slots=True)
class Size:
    """A size to measure.

    Attributes:
        clip: What the options below make of the clip.
        options: Over those of the configurations.
        device: Where.
    """

    clip: ClipOptions
    options: tuple[str, ...]
    device: str


SMALL = ClipOptions(height_px=32, width_px=32, latent_frames=6, window_latent_frames=6)
SIZES = {
    "wan-1.3b": Size(ClipOptions(), (), "cuda"),
    "tiny": Size(
        SMALL,
        (
            "--model.size=tiny",
            *(
                f"--model.clip.{name}={getattr(SMALL, name)}"
                for name in ("height_px", "width_px", "latent_frames", "window_latent_frames")
            ),
            "--trainer.accelerator=cpu",
            "--trainer.precision=32-true",
        ),
        "cpu",
    ),
}


def streaming_options(clip: int) -> tuple[str, ...]:
    """Videos of four chunks, two an iteration; the student's second begins with another prompt.

    Args:
        clip: Latent frames of a clip.
    """
    later = clip - ClipOptions().block_latent_frames
    return (
        f"--model.streaming.latent_frames={clip + 3 * later}",
        f"--model.streaming.switch_latent_frames=[{clip + later}]",
    )


def make_data(folder: Path, size: str) -> None:
    """Write prompts, clips and pairs; latents are noise, in the format of real ones.

    Args:
        folder: For all of them.
        size: Name of the size.
    """
    clip = SIZES[size].clip
    geometry = clip.spec(dit_config(size), 1).geometry
    frame = geometry.block_shape(1)[2:]
    levels = {"clips": [0.0], "pairs": [*clip.schedule.sigmas, 0.0]}
    for name, sigmas in levels.items():
        generator = torch.Generator().manual_seed(0)
        shape = (STORED, len(sigmas), clip.latent_frames, *frame)
        latents = torch.randn(shape, generator=generator)
        write_shard(shard_path(folder / name, 0), latents, PROMPTS[:1] * STORED, sigmas)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")


def command_of(name: str, args: argparse.Namespace) -> list[str]:
    """The words behind ``longlive`` that run a stage in a folder with the data."""
    stage, size = STAGES[name], SIZES[args.size]
    configs = ROOT / "configs" / "distill"
    files = [stage.config, "synthetic", *(["sharded"] if args.devices > 1 else [])]
    words = [
        "fit",
        *(f"--config={configs / file}.yaml" for file in files),
        *([f"--trainer.devices={args.devices}"] if args.devices > 1 else []),
        f"--trainer.max_steps={args.iterations * len(stage.counts)}",
        "--trainer.log_every_n_steps=1",
        "--trainer.callbacks=[]",
        "--trainer.enable_checkpointing=false",
        f"--trainer.logger.save_dir={name}",
        *size.options,
        *stage.options,
    ]
    if name == "long":
        words += streaming_options(size.clip.latent_frames)
    if args.compile:
        words.append("--model.compiles_scores=true")
    return [*words, *(f"--{setting}" for setting in args.set)]


def measure(name: str, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run a stage, and return what the run logged."""
    stage, command = STAGES[name], command_of(name, args)
    log = args.output / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        try:
            exit_code = run_whole(
                [sys.executable, "-m", "longlive", *command],
                args.timeout,
                cwd=data,
                env=environment,
                stdout=file,
                stderr=file,
            )
            error = ""
        except subprocess.TimeoutExpired:
            exit_code, error = None, f"stopped after {args.timeout:g} s"
    wall_s = time.monotonic() - started
    if exit_code:
        said = log.read_text(encoding="utf-8", errors="replace").strip()
        error = one_line(said.rpartition("\n")[2]) or f"exit code {exit_code}"
    iterations = [
        row for path in sorted(data.glob(f"{name}/*/*/metrics.csv")) for row in read_metrics(path)
    ]
    wanted = args.iterations * len(stage.counts)
    if not error and len(iterations) != wanted:
        error = f"{len(iterations)} iterations were logged, not {wanted}"
    return {
        "name": name,
        "title": stage.title,
        "command": shlex.join(["longlive", *command]).replace(f"{ROOT}/", ""),
        "error": error,
        "finite": is_finite(iterations),
        "wall_s": wall_s,
        "counts": dict(zip(stage.counts, iterations[-len(stage.counts) :], strict=False))
        if not error
        else {},
        "iterations": iterations,
    }


def run_whole(words: list[str], timeout_s: float, **options: Any) -> int:
    """Run a program; when it or the wait ends, so do all of its processes: they would keep GPUs.

    Raises:
        subprocess.TimeoutExpired: If it takes longer.
    """
    with subprocess.Popen(words, start_new_session=True, **options) as process:
        try:
            return process.wait(timeout_s)
        finally:
            # Usually there are none left.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a CSVLogger, without what a row does not have."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {name: float(text) for name, text in row.items() if text}
            for row in csv.DictReader(file)
        ]


def is_finite(iterations: list[dict[str, float]]) -> bool:
    """Whether there are losses and gradients, and none is infinite or not a number."""
    values = [
        value
        for row in iterations
        for name, value in row.items()
        if name.endswith(("_loss", "_gradient_norm"))
    ]
    return bool(values) and all(map(math.isfinite, values))


def report(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    environment = results["environment"]
    lines = [
        "# What an iteration of distillation costs",
        "",
        f"{environment['device_name']}, torch {environment['torch']}, {results['size']}, clips of "
        f"{results['latent_frames']} latent frames at {results['height_px']}x"
        f"{results['width_px']}, batch 1{shared_by(results['devices'])}, commit "
        f"{code(results['commit'] or '')}.",
        "",
        f"{results['note']} Peaks are of what torch allocated; the run's holds the warm-up. "
        "`held` is allocated when the iteration is over; `start` is all but the iterations.",
        "",
    ]
    runs = results["stages"]
    lines += table(COLUMNS, (row for run in runs for row in rows(run)), left=2)
    lines += ["", BY_PART, ""]
    lines += table(PART_COLUMNS, (row for run in runs for row in part_rows(run)), left=2)
    lines += ["", "Commands, in a folder with `prompts.txt`, `clips` and `pairs`:", "", "```bash"]
    lines += [run["command"] for run in results["stages"] if run["command"]]
    return "\n".join([*lines, "```", ""])


def rows(run: Mapping[str, Any]) -> Iterator[list[str]]:
    """Cells of a stage: a row for each iteration that counts, or one that says why none does."""
    if run["error"]:
        yield [run["title"], f"failed: {run['error']}", *[NOTHING] * 5]
    for what, row in run["counts"].items():
        start_s = run["wall_s"] - sum(each["time/iteration_s"] for each in run["iterations"])
        peaks = [each.get("memory/iteration_gib") for each in run["iterations"]]
        yield [
            _title(run, what),
            "finite" if run["finite"] else "not finite",
            decimals(row["time/iteration_s"]),
            decimals(row.get("memory/iteration_gib")),
            decimals(max(filter(None, peaks), default=None)),
            decimals(row.get("memory/resident_gib")),
            decimals(start_s),
        ]


def part_rows(run: Mapping[str, Any]) -> Iterator[list[str]]:
    """Cells of the parts of a stage's iterations that count."""
    for what, row in run["counts"].items():
        parts = {part: row[f"time/{part}_s"] for part in PARTS if f"time/{part}_s" in row}
        for part, seconds in parts.items():
            peak = decimals(row.get(f"memory/{part}_gib"))
            yield [_title(run, what), part.replace("_", " "), decimals(seconds), peak]
        known_s = sum(seconds for part, seconds in parts.items() if part not in INNER)
        rest_s = max(0.0, row["time/iteration_s"] - known_s)
        yield [_title(run, what), "rest", decimals(rest_s), NOTHING]


def _title(run: Mapping[str, Any], what: str) -> str:
    return f"{run['title']}: {what}" if what else run["title"]


def shared_by(devices: int) -> str:
    """What the table says of more than one GPU."""
    if devices == 1:
        return ""
    return f" on each of {devices} GPUs that share the networks (FSDP2), memory of the first one"


def save(results: Mapping[str, Any], folder: Path) -> None:
    text = json.dumps(results, indent=1, ensure_ascii=False)
    write_bytes(folder / f"{NAME}.json", f"{text}\n".encode())
    write_bytes(folder / f"{NAME}.md", report(results).encode())


def left_out(name: str, reason: str) -> dict[str, Any]:
    nothing: dict[str, Any] = {"wall_s": 0.0, "counts": {}, "iterations": [], "finite": False}
    return {"name": name, "title": STAGES[name].title, "command": "", "error": reason, **nothing}


def measure_all(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the stages one after the other, and save after each."""
    size = SIZES[args.size]
    device = torch.device(size.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{args.size} needs a GPU: add --size tiny, or run it where there is one")
    prepare_folder(args.output, overwrite=args.overwrite)
    environment = replace(environment_of(device), gpu_before=gpu_state(device))
    results = {
        "commit": args.commit or commit_of_checkout(),
        "command": shlex.join(["python", "tools/measure_distillation.py", *args.words]),
        "note": "Synthetic weights, latents of noise: time and memory, and nothing about quality.",
        "size": args.size,
        "devices": args.devices,
        "latent_frames": size.clip.latent_frames,
        "height_px": size.clip.height_px,
        "width_px": size.clip.width_px,
        "environment": asdict(environment),
        "stages": [],
    }
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="distillation-") as folder:
        make_data(Path(folder), args.size)
        for name in args.stages:
            if time.monotonic() - started > args.seconds:
                run = left_out(name, f"left out, no stage is begun after {args.seconds:g} s")
            else:
                run = measure(name, Path(folder), args)
            results["stages"].append(run)
            results["environment"]["gpu_after"] = _state(device)
            save(results, args.output)
            print(f"{name}: {run['error'] or 'done'}, {run['wall_s']:.0f} s", flush=True)
    return results


def _state(device: torch.device) -> dict[str, Any] | None:
    state = gpu_state(device)
    return None if state is None else asdict(state)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="the folder may have files")
    parser.add_argument("--size", choices=list(SIZES), default="wan-1.3b")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=DEFAULT_STAGES)
    parser.add_argument("--iterations", type=int, default=2, help="the last one counts")
    parser.add_argument("--compile", action="store_true", help="the layers of teacher and critic")
    parser.add_argument("--devices", type=int, default=1, help="that share the networks (FSDP2)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no stage after this")
    parser.add_argument("--timeout", type=float, default=300, help="seconds of a stage")
    parser.add_argument("--commit", help="where it cannot be told from a checkout")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="more options of every stage"
    )
    args = parser.parse_args(argv)
    args.words = sys.argv[1:] if argv is None else argv
    if args.iterations < 2:
        parser.error("--iterations starts at 2: the first one warms up")
    try:
        with terminated_by_signal():
            results = measure_all(args)
    except Terminated:
        return TERMINATED
    except UserError as error:
        print(f"measure_distillation: error: {error}", file=sys.stderr)
        return 2
    print((args.output / f"{NAME}.md").read_text(encoding="utf-8"))
    is_good = all(run["finite"] and not run["error"] for run in results["stages"])
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
