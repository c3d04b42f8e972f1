"""Compares variants of a recipe on one machine in one go: one table, one plot.

    python tools/ablate.py --matrix configs/benchmark/ablation_window.yaml --output results/window \
        --config configs/base.yaml --config configs/weights/synthetic.yaml

Whatever else is given, the configurations above all, is what `longlive benchmark` takes; it is the
recipe that every row is based on. Repeats are interleaved, and the order of the rows rotates. A row
that cannot run here is reported with the reason. The last line is JSON.
"""

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from statistics import median

from longlive.benchmark.ablation import Ablation, Variant, reason_of
from longlive.benchmark.ablation_matrix import Matrix, load_matrix
from longlive.benchmark.ablation_report import ablation_markdown
from longlive.benchmark.ablation_table import AblationResults
from longlive.benchmark.config import BenchmarkConfig
from longlive.benchmark.run import Terminated, prepare_folder, terminated_by_signal
from longlive.cli.benchmark import Asked, read_command
from longlive.cli.config_files import named_config_files
from longlive.cli.recipe_option import with_recipes_spelled_out
from longlive.errors import UserError
from longlive.video.atomic import write_bytes

REPORT, PLOT = "ablation.md", "ablation.png"
BAD_INPUT, INTERRUPTED = 2, 130


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--matrix", type=Path, required=True, help="rows: names with overlays")
    parser.add_argument("--output", type=Path, default=Path("results"), help="an empty folder")
    parser.add_argument("--overwrite", action="store_true", help="it may have files")
    parser.add_argument("--repeats", type=int, help="in place of the matrix's")
    args, recipe = parser.parse_known_args(given)
    logging.basicConfig(format="ablate: %(message)s", level=logging.INFO)
    logging.getLogger("longlive.attention").setLevel(logging.WARNING)
    try:
        matrix = load_matrix(args.matrix)
        if args.repeats is not None:
            if args.repeats < 1:
                raise UserError(f"--repeats must be at least 1, got {args.repeats}")
            matrix = replace(matrix, repeats=args.repeats)
        recipe = with_recipes_spelled_out(recipe)
        asked = read_command(["benchmark", *recipe])
        command = shlex.join(["python", "tools/ablate.py", *given])
        ablation = Ablation(
            matrix,
            recipe=[*named_config_files(recipe)],
            build=lambda overlays: variant(recipe, overlays),
            config=config_of(matrix, asked),
            origin=(str(args.matrix), command),
        )
        prepare_folder(args.output, overwrite=args.overwrite)
        results = run(ablation, args.output)
    except ValueError as error:
        print(f"ablate: error: {reason_of(error)}", file=sys.stderr)
        return BAD_INPUT
    except (KeyboardInterrupt, Terminated):
        print(f"ablate: interrupted; what was measured is in {args.output}", file=sys.stderr)
        return INTERRUPTED
    print((args.output / REPORT).read_text(encoding="utf-8"))
    print(json.dumps(summary(results)))
    return 0


def config_of(matrix: Matrix, asked: Asked) -> BenchmarkConfig:
    """What the recipe says of the benchmark, and the matrix over it.

    Raises:
        UserError: If the matrix names a setting that there is not.
    """
    known = {field.name for field in fields(BenchmarkConfig)}
    for name in matrix.benchmark:
        if name not in known:
            raise UserError(f"the matrix sets benchmark.{name}, which there is not")
    changed = BenchmarkConfig(**{**asdict(asked.config), **matrix.benchmark})
    return replace(changed, benchmark_iterations=matrix.repeats).check(
        asked.model.block_latent_frames
    )


def variant(recipe: Sequence[str], overlays: Sequence[str]) -> Variant:
    """The recipe with some overlays on top; options that are no configurations stay last.

    Raises:
        UserError: If an overlay does not fit.
    """
    asked = read_command(["benchmark", *with_overlays(recipe, overlays)])
    return Variant(asked.model, asked.callbacks, asked.device, dict(asked.model.settings))


def with_overlays(recipe: Sequence[str], overlays: Sequence[str]) -> list[str]:
    """Put overlays behind the last configuration of a command line."""
    last = 0
    for place, word in enumerate(recipe):
        if word in ("--config", "-c"):
            last = place + 2
        elif word.startswith(("--config=", "-c=")):
            last = place + 1
    return [*recipe[:last], *(f"--config={path}" for path in overlays), *recipe[last:]]


def run(ablation: Ablation, output: Path) -> AblationResults:
    """Measure, and keep what there is whatever ends it."""
    try:
        with terminated_by_signal():
            ablation.run(lambda: save(ablation.results(complete=False), output))
    except BaseException:
        save(ablation.results(complete=False), output)
        raise
    results = ablation.results()
    save(results, output)
    return results


def save(results: AblationResults, output: Path) -> None:
    """Write the results and the table, and the plot once they are complete."""
    results.save(output)
    plots = draw(results, output) if results.complete else []
    text = ablation_markdown(results, plots[0].name if plots else None)
    write_bytes(output / REPORT, text.encode())


def draw(results: AblationResults, output: Path) -> list[Path]:
    """Draw the plot, if there is what draws it."""
    from longlive.benchmark.plot_style import Unavailable
    from longlive.benchmark.plots import ablation_plot

    try:
        return ablation_plot(results, output / PLOT)
    except Unavailable as error:
        logging.warning("no plot: %s", error)
        return []


def summary(results: AblationResults) -> dict[str, object]:
    """What the last line says."""
    return {
        "title": results.title,
        "baseline": results.baseline,
        "complete": results.complete,
        "weights": results.weights_kind,
        "device": results.environment.device_name,
        "rows": {
            row.name: {"reason": row.reason, **{k: median(v) for k, v in row.samples.items()}}
            for row in results.rows
        },
    }


if __name__ == "__main__":
    sys.exit(main())
