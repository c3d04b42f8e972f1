"""What each decision of distillation gains: the students that the reference's choices make.

    python train/decisions.py --minutes 2 --at-once 4
    python train/decisions.py --steps 600 --at-once 4     # each as many, whatever compilation takes

One student is trained with the defaults, one more with another seed, to show how much chance there
is, and one with each option at the reference's setting (longlive/distillation/decisions.py), all
from the same start by streaming long tuning, which is where every option acts. Held-out prompts and
switches between them are scored. Not here: what is another name for a number (guidance_from) and
what only hides errors (hides_nan).
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from students import ROOT, Machine, callbacks, machine_of

from longlive.distillation.decisions import Decisions
from longlive.weights.embedded import component_of, embedded_folder, read_config

NO_CHOICES = ("guidance_from", "hides_nan")
STEPS = ("1000", "750", "500", "250")


def variants() -> dict[str, list[str]]:
    """Options of each training, by its name."""
    default, reference = asdict(Decisions()), asdict(Decisions.reference())
    # The reference has this one where it recomputes activations, and not where it does not.
    reference["text_gradients"] = False
    flipped = {
        f"{name}={value}".lower(): [f"--model.decisions={json.dumps({**default, name: value})}"]
        for name, value in reference.items()
        if name not in NO_CHOICES
    }
    return {"default": [], "another_seed": ["--seed_everything=4"], **flipped}


def student_of(name: str) -> str:
    """A name for a file."""
    return name.replace("=", "_")


def train_and_score(machine: Machine, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train one variant; adherence and all five of short videos, empty if it failed."""
    student, weights = student_of(name), args.output / "weights"
    folder = args.output / student
    with machine.device() as device:
        failed = machine.run(
            *(student, device, "-m", "longlive", "fit"),
            f"--config={ROOT}/configs/distill/tiny_long.yaml",
            f"--trainer.max_steps={args.steps or -1}",
            f"--trainer.precision={args.precision}",
            f"--trainer.logger.save_dir={folder}",
            *([] if args.steps else [f"--model.max_seconds={round(60 * args.minutes)}"]),
            f"--trainer.callbacks={json.dumps(callbacks(folder))}",
            *(f"--{setting}" for setting in args.set),
            *variants()[name],
        )
        if failed:
            return {}
        export = ROOT / "tools" / "export_student.py"
        with machine.exports:
            machine.run(student, None, export, folder / "last.ckpt", weights, "--student", student)
        failed = machine.run(
            *(student, device, ROOT / "tools" / "evaluate_embedded.py", "--folder", weights),
            *("--student", student, "--prompts", str(args.prompts), "--denoising", *STEPS),
        )
    scores: dict[str, Any] = {} if failed else json.loads(machine.last_line(student))[0]
    return scores


def score_switches(machine: Machine, names: list[str], args: argparse.Namespace) -> None:
    """Judge videos of six prompts, for all variants that were trained."""
    weights, output = args.output / "weights", args.output / "switches"
    four = [f"{ROOT}/configs/student/4step.yaml"]
    axis = {name: {"configs": four, "settings": {"student": student_of(name)}} for name in names}
    with machine.device() as device:
        machine.run(
            *("switches", device, "-m", "longlive", "evaluate"),
            f"--config={ROOT}/configs/eval/students.yaml",
            f"--prompts={ROOT}/configs/eval/prompts/interactive.jsonl",
            f"--output={output}",
            f"--model.settings={json.dumps({'seconds': 60, 'weights': str(weights)})}",
            f"--model.axes={json.dumps({'model': axis})}",
            f"--model.reference={json.dumps({'model': names[0]})}",
            *("--model.videos=0", "--batch=16", f"--workers={args.workers}"),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/decisions"))
    parser.add_argument("--minutes", type=float, default=2.0, help="of training for each student")
    parser.add_argument("--steps", type=int, help="training steps for each, in place of minutes")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="students in training")
    names = list(variants())
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="DECISION")
    parser.add_argument("--prompts", type=int, default=250, help="held-out prompts to score")
    parser.add_argument("--workers", type=int, default=8, help="processes that judge")
    parser.add_argument("--no-switches", action="store_true", help="score short videos only")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    if args.at_once < 1:
        parser.error("--at-once starts at 1")
    machine = machine_of(args.output, args.at_once)
    with ThreadPoolExecutor(args.at_once) as pool:
        scores = list(pool.map(lambda name: train_and_score(machine, name, args), args.only))
    lines = ["| decision | adherence | all five |", "| --- | ---: | ---: |"]
    for name, row in zip(args.only, scores, strict=True):
        cells = (f"{row[key]:.3f}" if row else "–" for key in ("adherence", "all_five"))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    table = "\n".join([*lines, ""])
    (args.output / "decisions.md").write_text(table)
    print(table)
    weights = args.output / "weights"
    known = read_config(weights if weights.exists() else embedded_folder())
    trained = [name for name in args.only if component_of(student_of(name)) in known]
    if trained and not args.no_switches:
        score_switches(machine, trained, args)
        print((args.output / "switches" / "table.md").read_text())


if __name__ == "__main__":
    main()
