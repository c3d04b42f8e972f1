"""Time and memory of the parts of a training step, without making the host wait."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

_GIB = 1 << 30


@dataclass
class PartClock:
    """Measures named parts of a step; read it where the host has waited for the device anyway.

    A part may lie inside another one, whose time and peak then hold its own.

    Attributes:
        device: Where the work is done. On a GPU times are those of its events.
    """

    device: torch.device
    _marks: dict[str, tuple[object, object]] = field(default_factory=dict)
    _peaks_gib: dict[str, float] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure what is done in the context; the last part of a name counts."""
        self._note_peak()
        self._open.append(name)
        self._peaks_gib.pop(name, None)
        start = self._mark()
        try:
            yield
        finally:
            self._note_peak()
            self._open.remove(name)
        self._marks[name] = (start, self._mark())

    def read(self) -> dict[str, float]:
        """Seconds and peak memory of every part since the last reading; the work must be done.

        On a GPU also the memory that is allocated now, between the parts.
        """
        numbers = {f"time/{name}_s": _seconds(*marks) for name, marks in self._marks.items()}
        numbers |= {f"memory/{name}_gib": peak for name, peak in self._peaks_gib.items()}
        if self.device.type == "cuda":
            numbers["memory/resident_gib"] = torch.cuda.memory_allocated(self.device) / _GIB
        self._marks.clear()
        self._peaks_gib.clear()
        return numbers

    def _note_peak(self) -> None:
        """Begin to look for another peak; the last one counts for all parts that are under way."""
        if self.device.type != "cuda":
            return
        peak_gib = torch.cuda.max_memory_allocated(self.device) / _GIB
        for name in self._open:
            self._peaks_gib[name] = max(self._peaks_gib.get(name, 0.0), peak_gib)
        torch.cuda.reset_peak_memory_stats(self.device)

    def _mark(self) -> object:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def _seconds(start: object, end: object) -> float:
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return start.elapsed_time(end) / 1000
    assert isinstance(start, float)
    assert isinstance(end, float)
    return end - start
