"""Times a rollout block by block, with a handful of events each and without waiting for any."""

# Shape suffixes: B batch, F latent frames, T frames, C channels, H W rows and columns.

from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from longlive.benchmark.host_copy import HostCopy
from longlive.benchmark.samples import (
    CONTEXT,
    COPY,
    DECODE,
    DIFFUSION,
    OTHER,
    PARTS,
    RECACHE,
    TEXT,
    BlockSample,
    Memory,
    Piece,
)
from longlive.geometry import frames_of
from longlive.metrics.clocks import MemoryReading, Stamp, clock_of, memory_gauge_of
from longlive.rollout.hooks import RolloutCallback, WrapOrder
from longlive.rollout.state import RolloutState

# Each part lies between two of these moments of a block, or did not happen.
_SPANS = {
    TEXT: ("text begins", "text ends"),
    RECACHE: ("text ends", "recache ends"),
    DIFFUSION: ("block begins", "clean"),
    CONTEXT: ("context begins", "context ends"),
}


class TimedBlocks(NamedTuple):
    """What was found out about one rollout.

    Attributes:
        initialization_ms: From the request to block 0 begun.
        blocks: Those that ended, in order.
    """

    initialization_ms: float
    blocks: tuple[BlockSample, ...]


@dataclass(slots=True)
class _Block:
    """A block under way.

    Attributes:
        index: Its place in the video.
        moments: What happened in it, and the number of its stamp.
        pieces: Frames of each piece, and the stamps at which its latents were clean, and it was
            decoded and copied.
        latent_frames: Latent frames in it.
        switches: Whether a later prompt became active before it.
        memory: At its end.
    """

    index: int
    moments: dict[str, int] = field(default_factory=dict)
    pieces: list[list[int]] = field(default_factory=list)
    latent_frames: int = 0
    switches: bool = False
    memory: MemoryReading | None = None

    @property
    def frames(self) -> int:
        """Frames of one video in it, decoded or not."""
        before = self.index * self.latent_frames
        return frames_of(before + self.latent_frames) - frames_of(before)


class BlockTimer(RolloutCallback):
    """Notes when the parts of each block begin and end. Numerics: exact, it changes nothing.

    On a GPU a moment is a CUDA event on the stream that is current in its hook, about ten a block;
    they are read by :meth:`finish`. The allocator's statistics are read once a block, and their
    peak is reset. One instance times one rollout.

    Args:
        device: Where it will run.

    Attributes:
        host_copy: The callback that takes the frames to the host; it belongs to the same rollout.
        clock: What times the device, in words.
        memory: What the bytes are, in words; None if they are not read.
    """

    # First, so that what others do at a moment comes after it.
    wrap_order = WrapOrder.WEIGHTS

    def __init__(self, device: torch.device) -> None:
        self.host_copy = HostCopy(on_sent=lambda: self._blocks[-1].pieces[-1].append(self._stamp()))
        self._device = device
        self._clock = clock_of(device, nvtx=False)
        self._gauge = memory_gauge_of(device)
        self.clock = self._clock.kind
        self.memory = None if self._gauge is None else self._gauge.kind
        self._stamps: list[Stamp] = []
        self._started: int | None = None
        self._blocks: list[_Block] = []

    def request(self) -> int:
        """The rollout is asked for now; returns the moment, of ``time.perf_counter_ns``."""
        if self._gauge is not None:
            # Forgets the peak of what was before.
            self._gauge.read()
        self._stamps = [self._clock.stamp()]
        return self._stamps[0].host_ns

    def finish(self) -> TimedBlocks:
        """Read what was noted; waits until the device has come to the last moment."""
        if self._device.type == "cuda":
            # The rollout is over. Some events may lie in other streams than the last one's.
            torch.cuda.synchronize(self._device)
        positions_ms = self._clock.positions_ms(self._stamps)
        at_ms = [position - positions_ms[0] for position in positions_ms]
        if self._started is None:
            return TimedBlocks(0.0, ())
        start_ms = border_ms = initialization_ms = at_ms[self._started]
        request_ns = self._stamps[0].host_ns
        arrivals_ms = iter([(ns - request_ns) / 1e6 for ns in self.host_copy.arrivals_ns])
        samples: list[BlockSample] = []
        for block in self._blocks:
            shown_ms = list(islice(arrivals_ms, len(block.pieces)))
            if "block ends" not in block.moments or len(shown_ms) < len(block.pieces):
                break
            samples.append(_sample(block, at_ms, start_ms, border_ms, shown_ms))
            start_ms, border_ms = samples[-1].end_ms, at_ms[block.moments["block ends"]]
        return TimedBlocks(initialization_ms, tuple(samples))

    def on_rollout_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._started = self._stamp()

    def on_text_encoding_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._block_of(state).switches = state.block_index > 0
        self._note("text begins")

    def on_prompt_switch(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._note("text ends")

    def on_recache_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._note("recache ends")

    def on_block_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._block_of(state)
        self._note("block begins")

    def on_part_ready(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        x0_BFCHW: Tensor,
    ) -> None:
        self._note("clean")

    def on_latents_ready(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        x0_BFCHW: Tensor,
    ) -> None:
        self._blocks[-1].latent_frames = x0_BFCHW.shape[1]
        self._note("clean")

    def on_frames_ready(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        frames_BTCHW: Tensor,
    ) -> None:
        block = self._blocks[-1]
        block.pieces.append([frames_BTCHW.shape[1], block.moments["clean"], self._stamp()])

    def on_context_update_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._note_update("context begins")

    def on_context_update_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._note_update("context ends")

    def on_block_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        self._note("block ends")
        if self._gauge is not None:
            self._blocks[-1].memory = self._gauge.read()

    def _block_of(self, state: RolloutState) -> _Block:
        if not self._blocks or self._blocks[-1].index != state.block_index:
            self._blocks.append(_Block(state.block_index))
        return self._blocks[-1]

    def _note_update(self, moment: str) -> None:
        # One that comes when the block has ended is in what is left of the next one.
        if "block ends" not in self._blocks[-1].moments:
            self._note(moment)

    def _note(self, moment: str) -> None:
        self._blocks[-1].moments[moment] = self._stamp()

    def _stamp(self) -> int:
        self._stamps.append(self._clock.stamp())
        return len(self._stamps) - 1


def _sample(
    block: _Block,
    at_ms: list[float],
    start_ms: float,
    border_ms: float,
    shown_ms: list[float],
) -> BlockSample:
    moments = {name: at_ms[stamp] for name, stamp in block.moments.items()}
    clean_ms = moments["clean"]
    pieces = tuple(
        Piece(frames, at_ms[decoded] - at_ms[clean], at_ms[copied] - at_ms[decoded], on_host_ms)
        for (frames, clean, decoded, copied), on_host_ms in zip(block.pieces, shown_ms, strict=True)
    )
    first_clean_ms = at_ms[block.pieces[0][1]] if block.pieces else clean_ms
    parts_ms = {
        part: moments[end] - moments[begin] if begin in moments and end in moments else 0.0
        for part, (begin, end) in _SPANS.items()
    }
    end_ms = on_host_ms = moments["block ends"]
    parts_ms |= dict.fromkeys((DECODE, COPY), 0.0)
    if pieces:
        last = pieces[-1]
        parts_ms |= {DECODE: last.decode_ms, COPY: last.copy_ms}
        end_ms = max(end_ms, clean_ms + last.decode_ms + last.copy_ms)
        on_host_ms = last.on_host_ms
    parts_ms[OTHER] = end_ms - start_ms - sum(parts_ms.values())
    memory = block.memory
    return BlockSample(
        index=block.index,
        frames=block.frames,
        latent_frames=block.latent_frames,
        start_ms=start_ms,
        end_ms=end_ms,
        on_host_ms=on_host_ms,
        parts_ms={part: parts_ms[part] for part in PARTS},
        switches=block.switches,
        memory=None if memory is None else Memory(*memory),
        border_ms=border_ms,
        pieces=pieces if len(pieces) > 1 else (),
        first_diffusion_ms=(
            first_clean_ms - moments["block begins"] if first_clean_ms < clean_ms else None
        ),
    )
