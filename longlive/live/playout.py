"""Frames between the rollout, which makes them in blocks, and the viewer, who sees 16 a second.

Bounded: the rollout begins a block only while fewer frames are ready or on their way than the
buffer is deep, so a viewer who stops reading stops the rollout. Frames of an older prompt are
dropped as soon as the first ones of a newer prompt arrive, which is what makes a prompt quick to
see however deep the buffer is.
"""

# Shape suffixes: H rows, W columns, C channels (red, green, blue).

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from longlive.live.protocol import PictureFlag
from longlive.video.frames import Pixels


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame that waits to be shown.

    Attributes:
        pixels_HWC: 8-bit, on the host.
        branch: Where it belongs.
        block: Likewise.
        frame: Its number in the branch's video.
        prompt: Id of the request whose prompt it shows.
        flags: Whether it is the first of its prompt, or does not continue the frame before.
    """

    pixels_HWC: Pixels
    branch: int
    block: int
    frame: int
    prompt: int
    flags: PictureFlag = PictureFlag(0)


class Playout:
    """The frames that are ready, and the number of those on their way. Not thread-safe.

    Args:
        depth: Frames that may be ready or on their way when a block begins.

    Attributes:
        generation: Frames of earlier generations are not taken any more.
        dropped: Frames of an older prompt that were dropped for a newer one.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.generation = 0
        self.dropped = 0
        self._ready: deque[Frame] = deque()
        self._coming = 0
        self._jumps = False

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def has_room(self) -> bool:
        """Whether a block may begin."""
        return len(self._ready) + self._coming < self.depth

    @property
    def is_empty(self) -> bool:
        """Whether no frame is ready, and none is on its way."""
        return not self._ready and not self._coming

    def expect(self, frames: int) -> int:
        """Note that frames are on their way; return the generation they belong to."""
        self._coming += frames
        return self.generation

    def put(self, generation: int, frames: Sequence[Frame]) -> bool:
        """Take frames that were expected.

        Returns:
            Whether they were taken: those of an earlier generation are not.
        """
        if generation != self.generation or not frames:
            return False
        self._coming -= len(frames)
        if frames[0].flags & PictureFlag.FIRST_OF_PROMPT and self._ready:
            self.dropped += len(self._ready)
            self._ready.clear()
            self._jumps = True
        first = frames[0]
        if self._jumps:
            first = replace(first, flags=first.flags | PictureFlag.JUMP)
            self._jumps = False
        self._ready.extend((first, *frames[1:]))
        return True

    def take(self) -> Frame | None:
        """The next frame to show, if one is ready."""
        return self._ready.popleft() if self._ready else None

    def clear(self) -> None:
        """Drop everything, also what is on its way: what comes next is another moment."""
        self.generation += 1
        self._ready.clear()
        self._coming = 0
        self._jumps = True
