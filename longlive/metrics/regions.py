"""Nested regions of a run: recorded while it goes on, read when it is over."""

from dataclasses import dataclass, field

from longlive.metrics.clocks import Clock, MemoryGauge, MemoryReading, Stamp

Path = tuple[str, ...]
"""Names from the outermost region to the one meant."""

WRITER_TRACK = "writer"


@dataclass(frozen=True, slots=True)
class RegionMemory:
    """Memory of one region, in bytes.

    Attributes:
        allocated: In use when it ended.
        reserved: Held by the allocator when it ended.
        peak: Highest in use while it ran, regions inside it included.
        grown: In use when it ended, less what was in use when it began.
    """

    allocated: int
    reserved: int
    peak: int
    grown: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one region.

    Attributes:
        path: Its name, after those of the regions round it.
        start_ms: When it began, since the recorder's first stamp, by the device's clock.
        ms: How long it took, by the device's clock.
        host_start_ms: When the host began to queue it.
        host_ms: How long the host took to queue it.
        rollout: Which rollout.
        block: Which block of it; None outside of blocks.
        layer: Which transformer layer; None outside of layers.
        memory: If it was read.
        is_whole: False if the run was stopped inside this region or one round it.
        track: ``rollout``, or the other thread that it ran in.
    """

    path: Path
    start_ms: float
    ms: float
    host_start_ms: float
    host_ms: float
    rollout: int = 0
    block: int | None = None
    layer: int | None = None
    memory: RegionMemory | None = None
    is_whole: bool = True
    track: str = "rollout"


@dataclass(slots=True)
class _Region:
    path: Path
    parent: "_Region | None"
    start: int
    rollout: int
    block: int | None
    layer: int | None
    opened: MemoryReading | None
    closed: MemoryReading | None = None
    peak: int = 0
    end: int | None = None
    is_cut: bool = False
    is_kept: bool = True

    @property
    def is_whole(self) -> bool:
        return not self.is_cut and (self.parent is None or self.parent.is_whole)

    @property
    def memory(self) -> RegionMemory | None:
        opened, closed = self.opened, self.closed
        if opened is None or closed is None:
            return None
        grown = closed.allocated - opened.allocated
        return RegionMemory(closed.allocated, closed.reserved, self.peak, grown)


@dataclass(slots=True)
class RegionRecorder:
    """Records which region begins and ends when; one thread calls it.

    Nothing waits for the device until :meth:`samples` is asked for. Regions that touch share a
    stamp, so that the parts of a region add up to it.

    Attributes:
        clock: Takes the stamps.
        gauge: Read where a region with memory begins or ends; None reads nothing.
        rollout: Written into what begins from now on.
        block: Likewise.
    """

    clock: Clock
    gauge: MemoryGauge | None = None
    rollout: int = 0
    block: int | None = None
    _stack: list[_Region] = field(default_factory=list)
    _regions: list[_Region] = field(default_factory=list)
    _unread: list[Stamp] = field(default_factory=list)
    _positions_ms: list[float] = field(default_factory=list)
    _hosts_ns: list[int] = field(default_factory=list)
    _written: list[tuple[int, int, int]] = field(default_factory=list)
    _reading: MemoryReading | None = None
    _read_at: int | None = None

    @property
    def current(self) -> str | None:
        """Name of the innermost open region; None outside of all."""
        return self._stack[-1].path[-1] if self._stack else None

    def open(
        self, name: str, *, layer: int | None = None, memory: bool = True, at: int | None = None
    ) -> int:
        """Begin a region inside the current one.

        Args:
            name: Its name.
            layer: Which transformer layer; that of the region round it by default.
            memory: Whether to read the memory. Not inside layers: it would take longer than they.
            at: The stamp of something that happens at the same moment.

        Returns:
            The stamp.
        """
        parent = self._stack[-1] if self._stack else None
        # Read first, so that the region does not contain it.
        reading = self._read_memory(at) if memory else None
        at = self._stamp() if at is None else at
        region = _Region(
            path=(*parent.path, name) if parent else (name,),
            parent=parent,
            start=at,
            rollout=self.rollout,
            block=self.block,
            layer=parent.layer if layer is None and parent else layer,
            opened=reading,
            peak=reading.allocated if reading else 0,
        )
        self._stack.append(region)
        self._regions.append(region)
        self.clock.enter(name)
        return at

    def close(self, at: int | None = None) -> int:
        """End the current region, and return the stamp."""
        at = self._stamp() if at is None else at
        region = self._stack[-1]
        if region.opened is not None:
            region.closed = self._read_memory(at)
        region.end = at
        self._stack.pop()
        self.clock.leave()
        return at

    def swap(self, name: str, *, memory: bool = True) -> None:
        """End the current region and begin its neighbor."""
        self.open(name, memory=memory, at=self.close())

    def close_through(self, name: str) -> None:
        """End the regions up to ``name``, all at once; nothing happens if it is not open."""
        if any(region.path[-1] == name for region in self._stack):
            at = None
            ended = None
            while ended != name:
                ended = self.current
                at = self.close(at)

    def cancel(self) -> None:
        """Forget the current region; it turned out to be none."""
        self._stack.pop().is_kept = False
        self.clock.leave()

    def cut(self) -> None:
        """End the current region, which was cut short."""
        self._stack[-1].is_cut = True
        self.close()

    def unwind(self) -> None:
        """End every open region; all but the outermost were cut short."""
        at = None
        while self._stack:
            self._stack[-1].is_cut = len(self._stack) > 1
            at = self.close(at)
        self.block = None

    def add_written(self, start_ns: int, end_ns: int) -> None:
        """Note how long another thread took for a block's frames; may be called from there."""
        self._written.append((self.rollout, start_ns, end_ns))

    def samples(self) -> list[Sample]:
        """All regions that have ended, in the order in which they began.

        Waits until the device has come to the last of them.
        """
        self._positions_ms += self.clock.positions_ms(self._unread)
        self._hosts_ns += [stamp.host_ns for stamp in self._unread]
        # Events are a resource of the driver.
        self._unread.clear()
        recorded = [self._sample(region) for region in self._regions if region.is_kept]
        first_ns = self._hosts_ns[0] if self._hosts_ns else 0
        written = [
            _written_sample(rollout, start_ns - first_ns, end_ns - start_ns)
            for rollout, start_ns, end_ns in self._written
        ]
        return [sample for sample in recorded if sample is not None] + written

    def _sample(self, region: _Region) -> Sample | None:
        start, end = region.start, region.end
        if end is None:
            return None
        positions_ms, hosts_ns = self._positions_ms, self._hosts_ns
        return Sample(
            path=region.path,
            start_ms=positions_ms[start],
            # A region that goes from a decoder's own stream back to the main one may have none.
            ms=max(0.0, positions_ms[end] - positions_ms[start]),
            host_start_ms=(hosts_ns[start] - hosts_ns[0]) / 1e6,
            host_ms=(hosts_ns[end] - hosts_ns[start]) / 1e6,
            rollout=region.rollout,
            block=region.block,
            layer=region.layer,
            memory=region.memory,
            is_whole=region.is_whole,
        )

    def _stamp(self) -> int:
        self._unread.append(self.clock.stamp())
        return len(self._positions_ms) + len(self._unread) - 1

    def _read_memory(self, at: int | None) -> MemoryReading | None:
        """Read the memory, once for all that happens at one stamp."""
        if self.gauge is None:
            return None
        if at is not None and at == self._read_at:
            return self._reading
        self._reading, self._read_at = self.gauge.read(), at
        for region in self._stack:
            region.peak = max(region.peak, self._reading.peak)
        return self._reading


def _written_sample(rollout: int, start_ns: int, ns: int) -> Sample:
    start_ms, ms = start_ns / 1e6, ns / 1e6
    return Sample(("write",), start_ms, ms, start_ms, ms, rollout=rollout, track=WRITER_TRACK)
