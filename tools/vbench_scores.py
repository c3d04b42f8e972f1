"""Official VBench scores of an evaluation: checks the videos, runs VBench, reads its results back.

    longlive evaluate --config configs/eval/vbench.yaml --prompts all_dimension.txt --output OUT
    python tools/vbench_scores.py OUT --full-info VBench_full_info.json

The second command runs in the environment in which ``vbench`` is installed. Results of a run
elsewhere are read with ``--read FOLDER`` instead; ``--long`` is VBench-Long.
"""

import argparse
import sys
from pathlib import Path

from longlive.errors import UserError
from longlive.evaluation.table import Study
from longlive.evaluation.vbench import (
    DIMENSIONS,
    VBenchScores,
    missing_videos,
    read_scores,
    run_vbench,
    save_scores,
)

_SHOWN = 5


def scores_of(args: argparse.Namespace, variant: str) -> VBenchScores:
    if args.read:
        return read_scores([args.read])
    if args.full_info is None:
        raise UserError("VBench needs --full-info VBench_full_info.json, or --read FOLDER")
    videos = args.results / "videos" / variant
    if not args.own_prompts:
        missing = missing_videos(videos, args.full_info, args.dimension)
        for name in missing[:_SHOWN]:
            print(f"missing: {name}")
        if len(missing) > _SHOWN:
            print(f"missing: {len(missing) - _SHOWN} more")
    output = args.results / "vbench"
    path = run_vbench(
        videos,
        output,
        name=variant,
        full_info=args.full_info,
        dimensions=args.dimension,
        is_long=args.long,
        has_own_prompts=args.own_prompts,
        device=args.device,
    )
    return read_scores([path])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder that longlive evaluate wrote")
    parser.add_argument("--variant", help="folder name of the variant; the first by default")
    parser.add_argument("--full-info", type=Path, help="VBench_full_info.json")
    parser.add_argument("--read", type=Path, help="result file or folder of a run elsewhere")
    parser.add_argument("--dimension", nargs="+", default=list(DIMENSIONS))
    parser.add_argument("--long", action="store_true", help="VBench-Long")
    parser.add_argument("--own-prompts", action="store_true", help="prompts that are not VBench's")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args(argv)
    try:
        variants = [variant.folder for variant in Study.load(args.results).variants]
        variant = args.variant or variants[0]
        if variant not in variants:
            raise UserError(f"there is no variant {variant!r}: use one of {', '.join(variants)}")
        found = scores_of(args, variant)
        path = save_scores(args.results, {variant: found})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in found.dimensions.items():
        print(f"{name}: {100 * value:.2f} %")
    totals = {"quality": found.quality, "semantic": found.semantic, "total": found.total}
    for name, total in totals.items():
        print(f"{name}: {'dimensions are missing' if total is None else f'{100 * total:.2f} %'}")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
