"""The few-step students of the embedded model: train, export and score them, on all GPUs there are.

    python train/students.py --minutes 3                       # one after another, on one GPU
    python train/students.py --minutes 3 --at-once 4           # four at a time, on all GPUs
    python train/students.py --minutes 2 --only 4step 2step --teacher runs/embedded/weights

Every command is printed before it runs, so each can be repeated alone; what it says is in a file. A
student is exported as soon as it is trained.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import Any

import torch
import yaml

ROOT = Path(__file__).parents[1]
CONFIGS = {
    "init": "tiny_consistency",
    "4step": "tiny_dmd",
    "3step": "tiny_3step",
    "2step": "tiny_2step",
    "1step": "tiny_1step",
    "4step_long": "tiny_long",
}
"""What is trained: the causal initialization, which is no student yet, and students."""


@dataclass
class Machine:
    """Where commands run, and what they share.

    Attributes:
        output: Folder of all results.
        devices: Places for a job: numbers for ``CUDA_VISIBLE_DEVICES``, None for a CPU.
        exports: Held while the folder of weights is written.
    """

    output: Path
    devices: "Queue[str | None]" = field(default_factory=Queue)
    exports: Lock = field(default_factory=Lock)

    @contextmanager
    def device(self) -> Iterator[str | None]:
        """A device for one job, once there is one."""
        device = self.devices.get()
        try:
            yield device
        finally:
            self.devices.put(device)

    def run(self, name: str, device: str | None, *command: str | Path) -> int:
        """Run a command, print it and its last line; all of what it says is in a file."""
        words = [sys.executable, *map(str, command)]
        print(f"\n[{name}] $ {shlex.join(words)}", flush=True)
        environment = {**os.environ}
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        log = self.output / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            code = subprocess.run(words, stdout=file, stderr=file, env=environment).returncode
        outcome = "done" if code == 0 else f"failed ({code})"
        print(f"[{name}] {outcome}: {self.last_line(name)}", flush=True)
        return code

    def last_line(self, name: str) -> str:
        """What the last command of a name said last."""
        log = self.output / "logs" / f"{name}.log"
        return log.read_text(errors="replace").strip().rpartition("\n")[2]


@dataclass(frozen=True)
class Options:
    """What the command line asked for.

    Attributes:
        teacher: Folder of the many-step model; ``embedded`` for the one in the package.
        minutes: Of training, for each student.
        batch: Videos of a training step; None for those of the configurations.
        clips: True clips of the initialization, likewise.
        precision: Of the trainer.
        prompts: Held-out prompts to score.
        sets: More options of every training.
    """

    teacher: str
    minutes: float
    batch: int | None
    clips: int | None
    precision: str
    prompts: int
    sets: tuple[str, ...]


def train(machine: Machine, device: str | None, name: str, start: str, options: Options) -> bool:
    """Train one student; tell whether there is a checkpoint of it."""
    folder = machine.output / name
    seconds = round(60 * options.minutes)
    words: list[str] = [
        *("-m", "longlive", "fit", f"--config={ROOT}/configs/distill/{CONFIGS[name]}.yaml"),
        f"--trainer.precision={options.precision}",
        "--trainer.max_steps=-1",
        f"--trainer.logger.save_dir={folder}",
        f"--model.weights={options.teacher}",
        f"--model.max_seconds={seconds}",
        # Those of the configuration are for people who watch: here the export makes the videos.
        f"--trainer.callbacks={json.dumps(callbacks(folder))}",
    ]
    if start != "teacher":
        words.append(f"--model.student={machine.output / start / 'last.ckpt'}")
    if options.batch is not None:
        words.append(f"--data.batch_size={options.batch}")
    if name == "init" and options.teacher != "embedded":
        words.append(f"--data.vae={options.teacher}")
    if name == "init" and options.clips is not None:
        words.append(f"--data.clips={options.clips}")
    words += options.sets
    if machine.run(name, device, *words) and machine.run(name, device, *words, *EAGER):
        return False
    return (folder / "last.ckpt").exists()


EAGER = ("--model.compiles_scores=false", "--model.compiles_student=false")
"""The second try of a training that failed, in case it was the compiler."""


def callbacks(folder: Path) -> list[dict[str, Any]]:
    checkpoint = "longlive.callbacks.safe_checkpoint.SafeCheckpoint"
    return [
        {"class_path": checkpoint, "init_args": {"folder": str(folder), "every": 300, "keep": 1}}
    ]


def export_and_score(
    machine: Machine, device: str | None, name: str, weights: Path, options: Options
) -> None:
    """Put a student beside its teacher, and judge it."""
    # The initialization is judged by the steps that the first student takes.
    steps_of = "4step" if name == "init" else name
    config = yaml.safe_load((ROOT / "configs" / "student" / f"{steps_of}.yaml").read_text())
    steps = ["--denoising", *map(str, config["model"]["init_args"]["denoising_steps"])]
    noted = [] if name == "init" else steps
    base = [] if options.teacher == "embedded" else ["--base", options.teacher]
    with machine.exports:
        export = ROOT / "tools" / "export_student.py"
        checkpoint = machine.output / name / "last.ckpt"
        failed = machine.run(
            name, None, export, checkpoint, weights, "--student", name, *base, *noted
        )
    if failed or not options.prompts:
        return
    failed = machine.run(
        *(name, device, ROOT / "tools" / "evaluate_embedded.py", "--folder", weights),
        *("--student", name, "--prompts", str(options.prompts), *steps),
        *("--sheet", machine.output / f"{name}.png"),
    )
    if not failed:
        where = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
        scores = machine.last_line(name)
        with machine.exports, (machine.output / "students.md").open("a") as file:
            file.write(
                f"| {name} | {CONFIGS[name]} | {options.minutes:g} min | {where} | {scores} |\n"
            )


def tables(machine: Machine, weights: Path, students: list[str]) -> None:
    """Judge students, teacher and undistilled steps: short videos, long ones, switches."""
    devices = machine.devices.qsize()
    workers = max(1, (os.cpu_count() or 1) // devices - 1)
    study = yaml.safe_load((ROOT / "configs" / "eval" / "students.yaml").read_text())
    axis = study["model"]["init_args"]["axes"]["model"]
    made = {name: {"configs": [f"{ROOT}/configs/student/{name}.yaml"]} for name in students}
    rows = {name: row for name, row in axis.items() if name.startswith("teacher")} | made
    fours = {name: row for name, row in made.items() if name.startswith("4step")}
    unbuilt = {
        f"{name}, no recache": {**row, "settings": {"recaches": False}}
        for name, row in fours.items()
    }
    teacher = {"teacher": axis["teacher"]}
    asked: dict[str, tuple[dict[str, Any], str, int]] = {
        "students": (rows, "held_out.txt", 5),
        "switches": ({**teacher, **fours, **unbuilt}, "interactive.jsonl", 60),
        "long_60s": ({**teacher, **fours}, "long.txt", 60),
        "long_240s": (fours, "long.txt", 240),
    }

    def make(name: str) -> None:
        values, prompts, seconds = asked[name]
        reference = {"model": next(iter(values))}
        with machine.device() as device:
            machine.run(
                f"table_{name}",
                device,
                *("-m", "longlive", "evaluate", f"--config={ROOT}/configs/eval/students.yaml"),
                f"--prompts={ROOT}/configs/eval/prompts/{prompts}",
                f"--output={machine.output / 'tables' / name}",
                f"--model.settings={json.dumps({'seconds': seconds, 'weights': str(weights)})}",
                f"--model.axes={json.dumps({'model': values})}",
                f"--model.reference={json.dumps(reference)}",
                *("--batch=50", f"--workers={workers}"),
            )
        table = machine.output / "tables" / name / "table.md"
        print(table.read_text() if table.exists() else f"no {table}", flush=True)

    with ThreadPoolExecutor(devices) as pool:
        list(pool.map(make, [name for name, (values, *_) in asked.items() if values]))


def machine_of(output: Path, at_once: int) -> Machine:
    """A machine for so many jobs at once, spread over the GPUs that this program may use."""
    given, count = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","), torch.cuda.device_count()
    free = [str(index) for index in range(count)] if given == [""] else given[:count]
    machine = Machine(output)
    for place in range(at_once):
        # Small networks wait for the host most of the time: several fit on one GPU.
        machine.devices.put(free[place % len(free)] if free else None)
    return machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="embedded", help="folder of the many-step model")
    parser.add_argument("--output", type=Path, default=Path("runs/students"))
    parser.add_argument("--minutes", type=float, default=4.0, help="of training for each student")
    names = list(CONFIGS)
    parser.add_argument("--only", nargs="+", choices=names, default=names[1:], metavar="STUDENT")
    parser.add_argument(
        "--begin", choices=["teacher", "init"], default="teacher", help="what 4step starts from"
    )
    parser.add_argument(
        "--then", choices=["teacher", "init", "4step"], default="4step", help="what others do"
    )
    parser.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="students in training, over all GPUs"
    )
    parser.add_argument("--batch", type=int, help="videos of a training step")
    parser.add_argument("--clips", type=int, help="true clips of the initialization")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--prompts", type=int, default=100, help="held-out prompts to score; or 0")
    parser.add_argument("--no-tables", action="store_true", help="score short videos only")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="more options of every training"
    )
    args = parser.parse_args()
    if args.at_once < 1:
        parser.error("--at-once starts at 1")
    machine, weights = machine_of(args.output, args.at_once), args.output / "weights"
    options = Options(
        args.teacher,
        args.minutes,
        args.batch,
        args.clips,
        args.precision,
        args.prompts,
        tuple(f"--{setting}" for setting in args.set),
    )

    def make(name: str) -> None:
        start = {"init": "teacher", "4step": args.begin}.get(name, args.then)
        # What was left out and is not there from an earlier run is passed over.
        if not (args.output / start / "last.ckpt").exists():
            start = "teacher"
        with machine.device() as device:
            if train(machine, device, name, start, options):
                export_and_score(machine, device, name, weights, options)

    # What others start from comes first, by itself.
    waited = ["init", "4step"] if args.then == "4step" else ["init"]
    for name in waited:
        if name in args.only:
            make(name)
    with ThreadPoolExecutor(machine.devices.qsize()) as pool:
        list(pool.map(make, [name for name in args.only if name not in waited]))
    if not args.no_tables and weights.exists():
        known = json.loads((weights / "config.json").read_text())
        students = [name for name in names[1:] if f"dit_{name}" in known]
        tables(machine, weights, students)


if __name__ == "__main__":
    main()
