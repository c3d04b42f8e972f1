"""Clocks and memory gauges that are read without waiting for the device."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

_STATM = Path("/proc/self/statm")
_RESIDENT_PAGES_FIELD = 1

# Elapsed times are float32: over 100 ms they are exact to some nanoseconds, over minutes no more.
_ANCHOR_MS = 100.0


class Stamp(NamedTuple):
    """A moment.

    Attributes:
        host_ns: When the host was there, of ``time.perf_counter_ns``.
        event: Recorded on the device's stream; None where the host is the device.
    """

    host_ns: int
    event: torch.cuda.Event | None = None


class Clock(Protocol):
    """Takes stamps now and reads them later.

    Attributes:
        kind: What it reads, in words.
        is_device: Whether that is another timeline than the host's.
    """

    kind: str
    is_device: bool

    def stamp(self) -> Stamp:
        """Note this moment; never waits."""
        ...

    def positions_ms(self, stamps: Sequence[Stamp]) -> list[float]:
        """When the stamps were, counted from the first one ever read; waits for the last of them.

        Args:
            stamps: In the order in which they were taken, each read once.
        """
        ...

    def enter(self, name: str) -> None:
        """Begin a named range for external profilers."""
        ...

    def leave(self) -> None:
        """End the range that began last."""
        ...


class HostClock:
    """Wall clock: on a CPU work is done when the call returns."""

    kind = "wall clock"
    is_device = False

    def __init__(self) -> None:
        self._first_ns: int | None = None

    def stamp(self) -> Stamp:
        """Note this moment."""
        return Stamp(time.perf_counter_ns())

    def positions_ms(self, stamps: Sequence[Stamp]) -> list[float]:
        """Milliseconds since the first stamp ever read."""
        if stamps and self._first_ns is None:
            self._first_ns = stamps[0].host_ns
        first_ns = self._first_ns or 0
        return [(stamp.host_ns - first_ns) / 1e6 for stamp in stamps]

    def enter(self, name: str) -> None:
        """Nobody is interested in ranges of a CPU."""

    def leave(self) -> None:
        """Likewise."""


class CudaClock:
    """CUDA events on the current stream, read after the run.

    Args:
        device: The GPU.
        nvtx: Whether regions become NVTX ranges, for Nsight Systems.
    """

    kind = "CUDA events"
    is_device = True

    def __init__(self, device: torch.device, *, nvtx: bool = True) -> None:
        self.device = device
        self._nvtx = nvtx
        self._anchor: torch.cuda.Event | None = None
        self._anchor_ms = 0.0

    def stamp(self) -> Stamp:
        """Queue an event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return Stamp(time.perf_counter_ns(), event)

    def positions_ms(self, stamps: Sequence[Stamp]) -> list[float]:
        """Milliseconds since the first stamp ever read; waits for the last of these."""
        events = [stamp.event for stamp in stamps if stamp.event is not None]
        # The last one is not the last to happen where a stream of its own decodes.
        for event in events:
            event.synchronize()
        positions: list[float] = []
        for event in events:
            anchor = self._anchor = self._anchor or event
            elapsed_ms = 0.0 if event is anchor else anchor.elapsed_time(event)
            positions.append(self._anchor_ms + elapsed_ms)
            if elapsed_ms > _ANCHOR_MS:
                self._anchor, self._anchor_ms = event, positions[-1]
        return positions

    def enter(self, name: str) -> None:
        """Push an NVTX range."""
        if self._nvtx:
            torch.cuda.nvtx.range_push(name)

    def leave(self) -> None:
        """Pop an NVTX range."""
        if self._nvtx:
            torch.cuda.nvtx.range_pop()


class MemoryReading(NamedTuple):
    """Bytes in use.

    Attributes:
        allocated: By tensors; on a CPU the resident memory of the process.
        reserved: Held by the allocator; on a CPU the same as ``allocated``.
        peak: Highest ``allocated`` since the reading before.
    """

    allocated: int
    reserved: int
    peak: int


class MemoryGauge(Protocol):
    """Reads how much memory is in use.

    Attributes:
        kind: What it reads, in words.
    """

    kind: str

    def read(self) -> MemoryReading:
        """Bytes in use now, and at most since the last reading; never waits."""
        ...


class CudaMemory:
    """What torch's allocator has given out.

    Each reading resets the allocator's peak statistics, which is how a peak belongs to a region.

    Args:
        device: The GPU.
    """

    kind = "CUDA allocator"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def read(self) -> MemoryReading:
        """Bytes in use, as the host sees it: the device may still be busy with what was freed."""
        # memory_stats() flattens and sorts the same numbers, which takes five times as long.
        stats = torch.cuda.memory_stats_as_nested_dict(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        allocated = stats["allocated_bytes"]["all"]
        reserved = stats["reserved_bytes"]["all"]["current"]
        return MemoryReading(allocated["current"], reserved, allocated["peak"])


class ResidentMemory:
    """Resident memory of the process; what comes and goes between two readings is not seen."""

    kind = "resident memory"

    def __init__(self) -> None:
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")

    def read(self) -> MemoryReading:
        """Bytes that are resident."""
        resident = int(_STATM.read_text().split()[_RESIDENT_PAGES_FIELD]) * self._page_bytes
        return MemoryReading(resident, resident, resident)


def clock_of(device: torch.device, *, nvtx: bool = True) -> Clock:
    """The clock by which work on ``device`` is timed."""
    return CudaClock(device, nvtx=nvtx) if device.type == "cuda" else HostClock()


def memory_gauge_of(device: torch.device) -> MemoryGauge | None:
    """The gauge of a device's memory; None where the system does not tell."""
    if device.type == "cuda":
        return CudaMemory(device)
    return ResidentMemory() if _STATM.is_file() else None
