"""What a viewer and an operator want to know: times, counts, memory; from any thread."""

import math
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

MINUTE_OF_FRAMES = 960
_LATELY = 64
_MEBI = 2**20


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed; 0 without any."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Statistics:
    """Counters of a server's life and samples of its last minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent_s: deque[float] = deque(maxlen=MINUTE_OF_FRAMES)
        self._frame_ms: deque[float] = deque(maxlen=MINUTE_OF_FRAMES)
        self._second: list[float] = []
        self._prompt_ms: deque[float] = deque(maxlen=256)
        self._block_ms: deque[float] = deque(maxlen=_LATELY)
        self._encode_ms: deque[float] = deque(maxlen=_LATELY)
        self._copy_ms: deque[float] = deque(maxlen=_LATELY)
        self._queue_ms: deque[float] = deque(maxlen=_LATELY)
        self.frames = self.stalls = self.viewer_stalls = self.prompts = self.blocks = 0
        self.sessions = self.refused = self.bad_messages = 0

    def sent_frame(self, *, is_continuous: bool) -> None:
        """A frame left for the viewer; times across a pause are nobody's latency."""
        now = time.perf_counter()
        with self._lock:
            self.frames += 1
            if is_continuous and self._sent_s:
                interval = 1000 * (now - self._sent_s[-1])
                self._frame_ms.append(interval)
                self._second.append(interval)
            self._sent_s.append(now)
            del self._second[:-64]

    def stalled(self, *, by_viewer: bool) -> None:
        """A frame was due, and none was ready or the viewer had not taken the ones before."""
        with self._lock:
            self.viewer_stalls += by_viewer
            self.stalls += not by_viewer

    def prompt_seen(self, seconds: float) -> None:
        """A prompt is on the viewer's screen, so long after it had come in."""
        with self._lock:
            self.prompts += 1
            self._prompt_ms.append(1000 * seconds)

    def made_block(self, seconds: float) -> None:
        """A block's frames have arrived on the host."""
        with self._lock:
            self.blocks += 1
            self._block_ms.append(1000 * seconds)

    def encoded(self, milliseconds: float) -> None:
        """A frame was encoded."""
        with self._lock:
            self._encode_ms.append(milliseconds)

    def copied(self, milliseconds: float) -> None:
        """Frames were copied to the host."""
        with self._lock:
            self._copy_ms.append(milliseconds)

    def queued(self, milliseconds: float) -> None:
        """An encoded frame has waited so long for the connection."""
        with self._lock:
            self._queue_ms.append(milliseconds)

    def count(self, name: str) -> None:
        """Add one to a counter."""
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)

    def take_second(self) -> tuple[float, ...]:
        """Times between the frames since the last call."""
        with self._lock:
            taken, self._second = self._second, []
        return tuple(round(value, 2) for value in taken)

    @property
    def fps(self) -> float:
        """Frames sent in the last second."""
        now = time.perf_counter()
        with self._lock:
            return float(sum(now - sent < 1 for sent in self._sent_s))

    def recent(self, name: str, share: float) -> float:
        """A percentile of ``frame``, ``prompt``, ``block``, ``encode``, ``copy`` or ``queue``."""
        with self._lock:
            values = list(getattr(self, f"_{name}_ms"))
        return round(percentile(values, share), 3)

    @property
    def last_prompt_ms(self) -> float | None:
        """Of the last prompt that was seen."""
        with self._lock:
            return round(self._prompt_ms[-1], 1) if self._prompt_ms else None

    def last_blocks_ms(self, count: int) -> float:
        """What a block took, the median of the last ``count``."""
        with self._lock:
            return percentile(list(self._block_ms)[-count:], 0.5)

    @property
    def last_block_ms(self) -> float:
        """Of the last block."""
        with self._lock:
            return round(self._block_ms[-1], 2) if self._block_ms else 0.0

    def new_video(self) -> None:
        """Stalls are counted from the start of a video."""
        with self._lock:
            self.stalls = self.viewer_stalls = 0
            self._second.clear()


def memory_mib() -> float:
    """Memory of this process in MiB: what it holds now on Linux, its peak elsewhere."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / _MEBI, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (_MEBI if sys.platform == "darwin" else 1024), 1)


def device_memory_mib() -> float | None:
    """Memory that tensors hold on the GPU, in MiB; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return round(torch.cuda.memory_allocated() / _MEBI, 1)


def prometheus(statistics: Statistics, gauges: Iterable[tuple[str, str, float]]) -> str:
    """Write the Prometheus text format, version 0.0.4.

    Args:
        statistics: Counters and samples.
        gauges: Name, help and value of whatever else there is to see now.
    """
    lines: list[str] = []

    def add(name: str, kind: str, text: str, values: dict[str, float]) -> None:
        lines.append(f"# HELP longlive_{name} {text}")
        lines.append(f"# TYPE longlive_{name} {kind}")
        lines.extend(f"longlive_{name}{labels} {value:g}" for labels, value in values.items())

    stalls = {
        '{cause="frames"}': float(statistics.stalls),
        '{cause="viewer"}': float(statistics.viewer_stalls),
    }
    add("frames_total", "counter", "Frames sent to viewers.", {"": statistics.frames})
    add("blocks_total", "counter", "Blocks made.", {"": statistics.blocks})
    add("prompts_total", "counter", "Prompts seen by viewers.", {"": statistics.prompts})
    add("sessions_total", "counter", "Sessions begun.", {"": statistics.sessions})
    add("refused_total", "counter", "Connections refused.", {"": statistics.refused})
    add("bad_messages_total", "counter", "Messages refused.", {"": statistics.bad_messages})
    add("stalls", "gauge", "Frames that were due and not there, this video.", stalls)
    add("fps", "gauge", "Frames sent in the last second.", {"": statistics.fps})
    for name, text in {
        "frame": "Time between two frames at the server, last minute.",
        "prompt": "From a prompt's arrival to the viewer's word that it is shown.",
        "block": "Time to make a block.",
        "encode": "Time to encode a frame.",
        "copy": "Time to copy frames to the host.",
        "queue": "Time an encoded frame waits for the connection.",
    }.items():
        values = {
            f'{{quantile="{share}"}}': statistics.recent(name, share) / 1000
            for share in (0.5, 0.95, 0.99)
        }
        add(_SECONDS.get(name, f"{name}_seconds"), "gauge", text, values)
    for name, text, value in gauges:
        add(name, "gauge", text, {"": value})
    return "\n".join(lines) + "\n"


_SECONDS = {"frame": "inter_frame_seconds", "prompt": "prompt_to_pixel_seconds"}
