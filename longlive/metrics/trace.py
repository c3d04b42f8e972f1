"""Samples of regions as a trace for https://ui.perfetto.dev."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longlive.metrics.regions import WRITER_TRACK, Sample
from longlive.video.atomic import write_bytes

_DEVICE_THREAD, _HOST_THREAD, _WRITER_THREAD = 1, 2, 3


def chrome_trace(
    samples: Sequence[Sample], *, process: str, has_device_clock: bool
) -> dict[str, Any]:
    """Samples in the Trace Event Format, which Perfetto and chrome://tracing open.

    Args:
        samples: Of one recorder.
        process: What the process is called.
        has_device_clock: Whether the device has a timeline of its own; then there is a track for
            it, and one for the host, which queues the same regions earlier.

    Returns:
        Complete events (``ph`` X) with ``ts`` and ``dur`` in microseconds, counters of the memory
        in MiB, and the names of the tracks.
    """
    tracks = {_DEVICE_THREAD: "rollout", _WRITER_THREAD: "writer (host time)"}
    if has_device_clock:
        tracks |= {_DEVICE_THREAD: "rollout (device time)", _HOST_THREAD: "rollout (host time)"}
    events: list[dict[str, Any]] = [_name("process_name", process)]
    events += [_name("thread_name", name, thread) for thread, name in sorted(tracks.items())]
    for sample in samples:
        in_writer = sample.track == WRITER_TRACK
        thread = _WRITER_THREAD if in_writer else _DEVICE_THREAD
        events.append(_event(sample, thread, sample.start_ms, sample.ms))
        if has_device_clock and not in_writer:
            events.append(_event(sample, _HOST_THREAD, sample.host_start_ms, sample.host_ms))
        if sample.memory is not None:
            events.append(_memory_counter(sample))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write a document as JSON: all of it, or nothing.

    Raises:
        UserError: If it cannot be written.
    """
    write_bytes(path, json.dumps(document).encode())


def _event(sample: Sample, thread: int, start_ms: float, ms: float) -> dict[str, Any]:
    # Both ends are rounded, not the duration: what touches or nests still does so afterwards.
    start_ns, end_ns = round(start_ms * 1e6), round((start_ms + ms) * 1e6)
    args: dict[str, Any] = {"rollout": sample.rollout, "block": sample.block}
    if sample.layer is not None:
        args["layer"] = sample.layer
    if not sample.is_whole:
        args["cut short"] = True
    return {
        "ph": "X",
        "name": sample.path[-1],
        "cat": sample.track,
        "ts": start_ns / 1000,
        "dur": (end_ns - start_ns) / 1000,
        "pid": 1,
        "tid": thread,
        "args": args,
    }


def _memory_counter(sample: Sample) -> dict[str, Any]:
    assert sample.memory is not None
    mib = {name: getattr(sample.memory, name) / 2**20 for name in ("allocated", "reserved")}
    return {
        "ph": "C",
        "name": "memory (MiB)",
        "ts": round((sample.start_ms + sample.ms) * 1e6) / 1000,
        "pid": 1,
        "args": mib,
    }


def _name(kind: str, name: str, thread: int = 0) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": 1, "tid": thread, "args": {"name": name}}
