"""What makes two results unlike: circumstances that a reader must know of, and settings."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from longlive.benchmark.markdown import NOTHING, code, one_line
from longlive.benchmark.provenance import GpuState
from longlive.benchmark.results import Results

_MACHINE = ("device_name", "driver", "cuda", "cudnn", "torch", "cpu", "threads", "clock", "memory")
_WORK = ("height_px", "width_px", "batch_size", "guidance")
_CLOCK_SHARE = 0.02
"""Clocks that are further apart than this change a time by more than what a run repeats to."""

_UNCOMPARED = (
    *("warmup_iterations", "benchmark_iterations", "commit"),
    *("breakdown", "ceilings", "measure_ceilings"),
)
"""Of the benchmark: what changes no figure."""


def warnings(a: Results, b: Results) -> list[str]:
    """Reasons to doubt that two results can be compared, a clause each."""
    return [
        *_incomplete(a, b),
        *_weights(a, b),
        *_machine(a, b),
        *_clocks(a, b),
        *_definitions(a, b),
        *_work(a, b),
    ]


def differences(a: Results, b: Results) -> list[tuple[str, str, str]]:
    """Settings that are not the same, with both values as text: recipe and benchmark."""
    flat = [
        {
            **_flat("", results.recipe.settings),
            **_flat("benchmark.", results.benchmark),
            "callbacks": ", ".join(results.recipe.callbacks),
            "attention": results.recipe.attention,
            "dtype": results.recipe.dtype,
        }
        for results in (a, b)
    ]
    # Where the results went is no setting of the recipe.
    keys = dict.fromkeys(key for key in (*flat[0], *flat[1]) if key != "output")
    return [
        (code(key), _said(flat[0], key), _said(flat[1], key))
        for key in keys
        if (key in flat[0]) != (key in flat[1]) or flat[0].get(key) != flat[1].get(key)
    ]


def _incomplete(a: Results, b: Results) -> Iterator[str]:
    for letter, results in (("A", a), ("B", b)):
        if not results.complete:
            ended = one_line(results.ended)
            yield f"{letter} is incomplete ({ended}); its figures are of the samples it has"


def _weights(a: Results, b: Results) -> Iterator[str]:
    if a.recipe.weights_kind != b.recipe.weights_kind:
        yield (
            f"A ran on {a.recipe.weights_kind} weights and B on {b.recipe.weights_kind} ones: they "
            "are different models"
        )


def _machine(a: Results, b: Results) -> Iterator[str]:
    yield from _together(
        "not the same machine or software",
        {
            field.replace("_", " "): (getattr(a.environment, field), getattr(b.environment, field))
            for field in _MACHINE
        },
    )


def _clocks(a: Results, b: Results) -> Iterator[str]:
    states = a.environment.gpu_after, b.environment.gpu_after
    if None in states:
        if any(states):
            yield "the clocks of only one of the two are known"
        return
    one, other = (state for state in states if state is not None)
    for field in fields(GpuState):
        if field.name in ("power_w", "temperature_c"):
            continue
        before, after = getattr(one, field.name), getattr(other, field.name)
        if _are_apart(before, after):
            words = field.name.replace("_", " ")
            yield f"{words} after the run differs: {_short(before)} and {_short(after)}"


def _are_apart(one: float | str | None, other: float | str | None) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) > _CLOCK_SHARE * max(abs(one), abs(other))
    return one != other


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return NOTHING if value is None else one_line(str(value))


def _definitions(a: Results, b: Results) -> Iterator[str]:
    for name, figure in a.figures.items():
        other = b.figures.get(name)
        if other is None:
            continue
        meanings = [f"{one.definition} in {one.unit}" for one in (figure, other)]
        if meanings[0] != meanings[1]:
            yield f"{name} is defined differently: {meanings[0]} and {meanings[1]}"
    if a.environment.longlive != b.environment.longlive:
        versions = f"{a.environment.longlive} and {b.environment.longlive}"
        yield f"versions {versions} of longlive may define figures differently"


def _work(a: Results, b: Results) -> Iterator[str]:
    yield from _together(
        "not the same video",
        {
            field.replace("_", " "): (getattr(a.recipe, field), getattr(b.recipe, field))
            for field in _WORK
        },
    )
    keys = [key for key in dict.fromkeys([*a.benchmark, *b.benchmark]) if key not in _UNCOMPARED]
    yield from _together(
        "not measured alike", {key: (a.benchmark.get(key), b.benchmark.get(key)) for key in keys}
    )


def _together(what: str, pairs: Mapping[str, tuple[object, object]]) -> Iterator[str]:
    """One clause for all pairs that differ, if any does."""
    unequal = [
        f"{name} ({_short(one)} and {_short(other)})"
        for name, (one, other) in pairs.items()
        if one != other
    ]
    if unequal:
        yield f"{what}: {', '.join(unequal)}"


def _flat(prefix: str, value: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with dotted names."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        found |= _flat(f"{name}.", inner) if isinstance(inner, dict) else {name: inner}
    return found


def _said(settings: dict[str, Any], key: str) -> str:
    return code(str(settings[key])) if key in settings else "not set"
