"""Which slots of the KV cache a call writes and reads; integers only.

The window of a query is the first ``sink`` latent frames and the most recent ones. Sink frames sit
in the first slots for ever (attention sinks, arXiv:2309.17453); the others form a ring. Attention
does not care in which order it sees keys, so nothing in the ring ever moves: where the reference
shifts the whole cache by the evicted frames, here the ring's head advances by as many slots and the
new frames overwrite the old ones.

Two numberings of the slots therefore exist. The *physical* slot is where a frame's keys lie. The
*logical* slot is where the reference would have shifted them to: sink first, then oldest to newest.

Window-relative rotary positions are logical slots. Attention sees their differences alone, and
those of the frames in the ring are those of their indices: so every frame can keep its index for a
position if the sink is moved up behind the ring (:attr:`WindowPlan.sink_position`).
"""

from dataclasses import dataclass

from longlive.errors import UserError


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """One call's place in the cache. All numbers are latent frames or slots.

    Attributes:
        start: Absolute index of the call's first latent frame.
        frames: Latent frames in the call.
        dropped: Leading latent frames of the call whose keys are not stored (a protected sink).
        write_slots: Physical slots of the stored frames, in time order.
        read_slots: Physical slots the queries see.
        head: Offset of the ring after the call.
        filled: Logical slots in use after the call.
        end: One past the newest latent frame stored after the call.
    """

    start: int
    frames: int
    dropped: int
    write_slots: tuple[int, ...]
    read_slots: tuple[int, ...]
    head: int
    filled: int
    end: int

    @property
    def read_prefix(self) -> int | None:
        """How many leading slots are read, if it is a prefix, so that reading needs no copy."""
        count = len(self.read_slots)
        return count if sorted(self.read_slots) == list(range(count)) else None

    @property
    def sink_position(self) -> int:
        """Rotary position of the first slot if positions are window-relative.

        It is what makes the sink the frames before the oldest in the ring. All other frames have
        their own index, and so has the sink until something is evicted.
        """
        return self.end - self.filled


class SlotWindow:
    """Bookkeeping of a cache with a pinned sink and a ring.

    A *new* block evicts the oldest frames if it does not fit. A call whose frames are all known
    already (a further denoising step, the context update, a recache) overwrites its own slots.

    Args:
        capacity: Slots in the cache.
        window: Latent frames a query can see, sink and own block included; at most ``capacity``.
        sink: First latent frames that are never evicted.
        evicts: False for global attention, whose capacity is the whole video.
        reads_unwritten: Whether a sink is read whole also while it is wider than what there is, as
            the reference reads it; zeros then take part in the attention.

    The combinations a user may ask for are checked by :func:`check_window`; this class follows the
    reference also in the others, so that parity can be tested there too.
    """

    def __init__(
        self,
        capacity: int,
        window: int,
        sink: int,
        *,
        evicts: bool = True,
        reads_unwritten: bool = True,
    ) -> None:
        self.capacity = capacity
        self.window = window
        self.sink = sink
        self.evicts = evicts
        self.reads_unwritten = reads_unwritten
        self.origin = 0
        self.end = 0
        self.filled = 0
        self.head = 0

    def restart(self, at: int) -> None:
        """Forget every frame: ``at`` is the first of a new shot, whose sink it begins."""
        self.origin = self.end = at
        self.filled = self.head = 0

    @property
    def mark(self) -> tuple[int, int, int, int]:
        """``origin``, ``end``, ``filled`` and ``head``, for :meth:`go_to`."""
        return self.origin, self.end, self.filled, self.head

    def go_to(self, mark: tuple[int, int, int, int]) -> None:
        """Stand where the window stood when ``mark`` was read."""
        self.origin, self.end, self.filled, self.head = mark

    def plan(self, start: int, frames: int, *, protects_sink: bool = True) -> WindowPlan:
        """Place ``frames`` latent frames that start at absolute latent frame ``start``.

        Args:
            start: Absolute index of the first latent frame.
            frames: Latent frames in the call.
            protects_sink: Whether a call over known frames leaves the sink slots alone. The very
                first frames may always rewrite them.
        """
        end = start + frames
        is_known = end <= self.end and start > self.origin
        filled = self.filled + (end - self.end)
        head = self.head
        if self.evicts and end > self.end and self.filled + frames > self.capacity:
            evicted = self.filled + frames - self.capacity
            filled = self.filled + (end - self.end) - evicted
            head = (self.head + evicted) % max(1, self.capacity - self.sink)
        first = filled - frames
        stored_from = max(first, self.sink) if is_known and protects_sink else first
        slots = tuple(self.physical(index, head) for index in range(filled))
        sink = range(min(self.sink, self.capacity if self.reads_unwritten else filled))
        recent = range(max(self.sink, filled - (self.window - self.sink)), filled)
        read = (*sink, *(slots[index] for index in recent))
        return WindowPlan(
            start=start,
            frames=frames,
            dropped=stored_from - first,
            write_slots=slots[stored_from:filled],
            read_slots=read,
            head=head,
            filled=self.filled if is_known else filled,
            end=self.end if is_known else end,
        )

    def commit(self, plan: WindowPlan) -> None:
        """Make the plan's bookkeeping current, after its keys were written."""
        self.end, self.filled, self.head = plan.end, plan.filled, plan.head

    def physical(self, logical: int, head: int) -> int:
        """Physical slot of a logical one, by the offset of the ring."""
        if logical < self.sink:
            return logical
        ring = self.capacity - self.sink
        return self.sink + (logical - self.sink + head) % ring


def check_window(window: int | None, sink: int, block: int) -> None:
    """Check a window that a user asks for.

    Args:
        window: Latent frames a query can see, or None for global attention.
        sink: First latent frames that are never evicted.
        block: Latent frames denoised together.

    Raises:
        UserError: If the sink is larger than a block (its later frames would keep the keys of a
            noisy step) or the window has no room for sink and block.
    """
    if sink < 0:
        raise UserError(f"the sink cannot be negative, got {sink} latent frames")
    if sink > block:
        raise UserError(
            f"a sink of {sink} latent frames is larger than a block of {block}: "
            f"set sink_latent_frames to at most {block}"
        )
    if window is not None and window < sink + block:
        raise UserError(
            f"a window of {window} latent frames has no room for a sink of {sink} and a block of "
            f"{block}: set window_latent_frames to at least {sink + block}"
        )


def check_recache(frames: int | None, most: int | None, block: int) -> None:
    """Check how much of a window a recache rebuilds.

    Args:
        frames: Latent frames that it runs, or None for the window's.
        most: Latent frames that there are keys of, or None for those of the whole video.
        block: Latent frames denoised together.

    Raises:
        UserError: If it is nothing, more than there is, or no whole blocks.
    """
    if frames is None:
        return
    if frames < 1:
        raise UserError(
            f"a recache of {frames} latent frames rebuilds nothing: set recaches to false, or "
            "leave recached_latent_frames out"
        )
    if frames % block:
        raise UserError(
            f"a recache of {frames} latent frames is not whole blocks of {block}: set "
            f"recached_latent_frames to {-(-frames // block) * block}"
        )
    if most is not None and frames > most:
        raise UserError(
            f"a recache of {frames} latent frames is larger than the window of {most}: leave "
            "recached_latent_frames out to rebuild all of it"
        )
