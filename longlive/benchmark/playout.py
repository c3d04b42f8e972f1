"""A viewer who plays frames at a fixed rate as they arrive: how often he waits, and how long."""

from collections.abc import Sequence
from dataclasses import dataclass

from longlive.geometry import FPS


@dataclass(frozen=True, slots=True)
class Playout:
    """What a viewer saw.

    Attributes:
        gaps_ms: Time between neighboring frames as they were shown.
        stalls: How often he waited for a frame.
        stalled_ms: How long in all.
    """

    gaps_ms: tuple[float, ...]
    stalls: int
    stalled_ms: float


def play(arrivals_ms: Sequence[float], fps: float = FPS) -> Playout:
    """Show each frame as soon as it is due and there.

    The first frame is shown when it arrives, and each later one ``1000 / fps`` ms after the one
    before it was shown, or when it arrives, if that is later: a stall. Nothing is buffered first.

    Args:
        arrivals_ms: When each frame was there, in display order.
        fps: Frames a second.
    """
    frame_ms = 1000 / fps
    gaps_ms: list[float] = []
    stalls, stalled_ms = 0, 0.0
    shown_ms = arrivals_ms[0] if arrivals_ms else 0.0
    for arrival_ms in arrivals_ms[1:]:
        late_ms = max(0.0, arrival_ms - (shown_ms + frame_ms))
        stalls += late_ms > 0
        stalled_ms += late_ms
        gaps_ms.append(frame_ms + late_ms)
        shown_ms += gaps_ms[-1]
    return Playout(tuple(gaps_ms), stalls, stalled_ms)
