"""Latency of variants: from results of ``longlive benchmark``, matched by what was run.

Quality comes from a small model and latency from the full size, so the two meet by their settings:
steps, window, sink, type of the weights and the callbacks that change a rollout.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlive.errors import UserError
from longlive.evaluation.table import Study, StudyVariant

RESULTS_FILE = "results.json"
_FORMAT = "longlive benchmark"
FIGURES = ("inter_frame_ms", "fps", "first_frame_cached_ms", "switch_added_ms", "peak_memory_bytes")


@dataclass(frozen=True, slots=True)
class Latency:
    """What a benchmark says of a variant.

    Attributes:
        figures: By name, those of ``FIGURES`` that were measured.
        device: Which machine.
        model: Size and weights, in words.
        source: The file.
    """

    figures: dict[str, float]
    device: str
    model: str
    source: str


def match_latencies(study: Study, sources: Sequence[str]) -> dict[str, Latency]:
    """Find the benchmark of each variant.

    Args:
        study: Whose variants.
        sources: Folders or files of results; ``VARIANT=FOLDER`` names the variant by hand.

    Returns:
        Latency by folder name of the variant; variants without a benchmark are not in it.

    Raises:
        UserError: If a file is no result of a benchmark, or names a variant that there is not.
    """
    found: dict[str, Latency] = {}
    folders = {name: v.folder for v in study.variants for name in (v.name, v.folder)}
    for source in sources:
        name, is_named, path = source.rpartition("=")
        if is_named and name not in folders:
            known = ", ".join(variant.folder for variant in study.variants)
            raise UserError(f"there is no variant {name!r}: use one of {known}")
        content = _read(Path(path))
        latency = _latency(content, path)
        wanted = _signature_of(content["recipe"])
        fitting = [v.folder for v in study.variants if _signature(v) == wanted]
        for folder in [folders[name]] if is_named else fitting:
            found[folder] = latency
    return found


def _read(path: Path) -> dict[str, Any]:
    file = path if path.suffix == ".json" else path / RESULTS_FILE
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"cannot read {file}: {reason}; name a folder of longlive benchmark"
        ) from error
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): measure again") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise UserError(f"{file} is no result of longlive benchmark: name a folder that has one")
    return content


def _latency(content: dict[str, Any], source: str) -> Latency:
    try:
        recipe = content["recipe"]
        values = {name: content["figures"].get(name, {}).get("value") for name in FIGURES}
        size = f"{recipe['width_px']}x{recipe['height_px']}, {recipe['weights_kind']} weights"
        device = content["environment"]["device_name"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source} lacks {error}: measure again with this version") from error
    figures = {name: float(value) for name, value in values.items() if value is not None}
    return Latency(figures, str(device), size, source)


def _signature_of(recipe: dict[str, Any]) -> tuple[Any, ...]:
    try:
        return (
            recipe["steps"],
            recipe["window_latent_frames"],
            recipe["sink_latent_frames"],
            recipe["dtype"],
            frozenset(name.rpartition(".")[2] for name in recipe["callbacks"]),
        )
    except KeyError as error:
        raise UserError(f"a benchmark's recipe lacks {error}: measure again") from error


def _signature(variant: StudyVariant) -> tuple[Any, ...]:
    settings = variant.settings
    steps = settings.get("denoising_steps")
    return (
        len(steps) if isinstance(steps, list | tuple) else steps,
        settings.get("window_latent_frames"),
        settings.get("sink_latent_frames"),
        settings.get("dtype"),
        frozenset(variant.callbacks),
    )
