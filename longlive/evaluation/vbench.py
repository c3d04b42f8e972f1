"""VBench: videos under the names it expects, its results read back, its package run if it is here.

VBench (arXiv:2311.17982) looks for ``{prompt}-{index}.mp4`` in one folder, five videos a prompt (25
for temporal flickering), and writes ``{name}_eval_results.json``: for each dimension a mean and the
values of the videos. VBench-Long expects the same names and cuts the videos into clips itself. Its
package needs old versions of transformers and numpy, so it usually lives in an environment of its
own; only :func:`run_vbench` touches it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlive.errors import UserError
from longlive.video.atomic import write_bytes

QUALITY = (
    *("subject_consistency", "background_consistency", "temporal_flickering"),
    *("motion_smoothness", "aesthetic_quality", "imaging_quality", "dynamic_degree"),
)
SEMANTIC = (
    *("object_class", "multiple_objects", "human_action", "color", "spatial_relationship"),
    *("scene", "appearance_style", "temporal_style", "overall_consistency"),
)
DIMENSIONS = (*QUALITY, *SEMANTIC)
CUSTOM = tuple(name for name in QUALITY if name != "temporal_flickering")
"""Dimensions that take prompts of one's own, in VBench-Long as well."""
SAMPLES = 5
FLICKER_SAMPLES = 25

# Range of each score over which it is stretched to [0, 1]; the leaderboard's constants.
_RANGES = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
}
_WEIGHTS = {"dynamic_degree": 0.5}
_QUALITY_WEIGHT, _SEMANTIC_WEIGHT = 4, 1
_SUFFIX = "_eval_results.json"
_LONGEST_NAME = 255 - len("-24.mp4")
SCORES_FILE = "vbench.json"


@dataclass(frozen=True, slots=True)
class VBenchScores:
    """Scores of one recipe.

    Attributes:
        dimensions: Mean of each dimension that was run, as VBench gives it.
        quality: Weighted mean of the stretched quality dimensions; None if one is missing.
        semantic: The same of the semantic ones.
        total: ``(4 quality + semantic) / 5``; None if either is missing.
    """

    dimensions: dict[str, float]
    quality: float | None
    semantic: float | None
    total: float | None


def sample_name(prompt: str, index: int) -> str:
    """Name of a video, without suffix: ``a person swimming-3``.

    Raises:
        UserError: If a file cannot have such a name.
    """
    if "/" in prompt or "\0" in prompt or len(prompt.encode()) > _LONGEST_NAME:
        raise UserError(
            f"no file can be named after the prompt {prompt[:60]!r}...: VBench names videos after "
            "its own short prompts, give those as names_file"
        )
    return f"{prompt}-{index}"


def missing_videos(
    videos: Path, full_info: Path, dimensions: Sequence[str] = DIMENSIONS
) -> list[str]:
    """Names of videos that VBench would look for and not find.

    Args:
        videos: Folder of the videos.
        full_info: ``VBench_full_info.json``.
        dimensions: Which are to be run.

    Raises:
        UserError: If the file is missing or is another one.
    """
    there = {path.name for path in videos.glob("*.mp4")}
    wanted: list[str] = []
    for entry in _json(full_info, list):
        if not isinstance(entry, dict) or "prompt_en" not in entry:
            raise UserError(f"{full_info} lists no prompts: give VBench_full_info.json")
        run = set(entry.get("dimension", ())) & set(dimensions)
        if run:
            samples = FLICKER_SAMPLES if "temporal_flickering" in run else SAMPLES
            wanted += [f"{sample_name(entry['prompt_en'], i)}.mp4" for i in range(samples)]
    return [name for name in dict.fromkeys(wanted) if name not in there]


def read_scores(paths: Iterable[Path]) -> VBenchScores:
    """Read result files of VBench or VBench-Long.

    Args:
        paths: ``..._eval_results.json`` files, or folders of them; one dimension may be in each.

    Raises:
        UserError: If there is none, or one is broken.
    """
    files = [file for path in paths for file in _result_files(path)]
    dimensions: dict[str, float] = {}
    for file in files:
        for name, found in _json(file, dict).items():
            mean = found[0] if isinstance(found, list) and found else None
            if not isinstance(mean, int | float) or isinstance(mean, bool):
                raise UserError(f"{file}: {name} has no mean; run VBench again")
            dimensions[name.replace(" ", "_")] = float(mean)
    return scores_of(dimensions)


def scores_of(dimensions: dict[str, float]) -> VBenchScores:
    """Combine the means of dimensions as the leaderboard does."""
    quality, semantic = (_combined(dimensions, names) for names in (QUALITY, SEMANTIC))
    total = None
    if quality is not None and semantic is not None:
        weights = _QUALITY_WEIGHT + _SEMANTIC_WEIGHT
        total = (_QUALITY_WEIGHT * quality + _SEMANTIC_WEIGHT * semantic) / weights
    return VBenchScores(dimensions, quality, semantic, total)


def run_vbench(
    videos: Path,
    output: Path,
    *,
    name: str,
    full_info: Path,
    dimensions: Sequence[str] = DIMENSIONS,
    is_long: bool = False,
    has_own_prompts: bool = False,
    device: str = "cuda",
) -> Path:
    """Run the package on a folder of videos.

    Args:
        videos: Folder of videos under VBench's names.
        output: Folder for its result files.
        name: Begins the names of those.
        full_info: ``VBench_full_info.json``.
        dimensions: Which to run.
        is_long: Run VBench-Long, for videos of more than a few seconds.
        has_own_prompts: The videos show other prompts than VBench's; only some dimensions do that.
        device: Where its networks run.

    Returns:
        The file with the results.

    Raises:
        UserError: If the package is absent or a dimension does not fit.
    """
    unknown = [one for one in dimensions if one not in (CUSTOM if has_own_prompts else DIMENSIONS)]
    if unknown:
        allowed = CUSTOM if has_own_prompts else DIMENSIONS
        raise UserError(f"VBench cannot run {unknown[0]!r} here: use some of {', '.join(allowed)}")
    runner = _runner(is_long)(device, str(full_info), str(output))
    modes = {
        (False, False): "vbench_standard",
        (False, True): "custom_input",
        (True, False): "long_vbench_standard",
        (True, True): "long_custom_input",
    }
    runner.evaluate(
        videos_path=str(videos),
        name=name,
        dimension_list=list(dimensions),
        mode=modes[is_long, has_own_prompts],
        **(_long_options() if is_long else {}),
    )
    return output / f"{name}{_SUFFIX}"


def save_scores(folder: Path, scores: dict[str, VBenchScores]) -> Path:
    """Put scores of variants beside a table; those of other variants stay.

    Args:
        folder: Of the results.
        scores: By folder name of the variant.

    Raises:
        UserError: If they cannot be written.
    """
    path = folder / SCORES_FILE
    known = _json(path, dict) if path.is_file() else {}
    known |= {variant: found.dimensions for variant, found in scores.items()}
    write_bytes(path, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
    return path


def load_scores(folder: Path) -> dict[str, VBenchScores]:
    """Read what ``save_scores`` wrote; empty if it did not."""
    path = folder / SCORES_FILE
    if not path.is_file():
        return {}
    return {variant: scores_of(found) for variant, found in _json(path, dict).items()}


def _combined(dimensions: dict[str, float], names: Sequence[str]) -> float | None:
    if any(name not in dimensions for name in names):
        return None
    weights = [_WEIGHTS.get(name, 1.0) for name in names]
    stretched = []
    for name in names:
        low, high = _RANGES.get(name, (0.0, 1.0))
        stretched.append((dimensions[name] - low) / (high - low))
    return sum(w * s for w, s in zip(weights, stretched, strict=True)) / sum(weights)


def _result_files(path: Path) -> list[Path]:
    files = sorted(path.glob(f"*{_SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"no *{_SUFFIX} in {path}: name the folder that VBench wrote to")
    return files


def _json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot read {path}: {reason}; check its name") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): run VBench again") from error
    if not isinstance(content, kind):
        raise UserError(f"{path} is no file of VBench's: it should hold a {kind.__name__}")
    return content


def _runner(is_long: bool) -> Any:
    try:
        if is_long:
            from vbench2_beta_long import VBenchLong

            return VBenchLong
        from vbench import VBench
    except ImportError as error:
        raise UserError(
            "vbench is not installed: pip install vbench in an environment of its own (it needs "
            "old transformers and numpy), and run this command there"
        ) from error
    return VBench


def _long_options() -> dict[str, Any]:
    """What its command passes by default."""
    return {
        "static_filter_flag": False,
        "use_semantic_splitting": False,
        "clip_length_config": "clip_length_mix.yaml",
        "num_of_samples_per_prompt": SAMPLES,
        "sb_clip2clip_feat_extractor": "dino",
        "bg_clip2clip_feat_extractor": "clip",
        "imaging_quality_preprocessing_mode": "longer",
        "w_inclip": 1.0,
        "w_clip2clip": 0.0,
        "slow_fast_eval_config": "configs/slow_fast_params.yaml",
        "dev_flag": False,
    }
