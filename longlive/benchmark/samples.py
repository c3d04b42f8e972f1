"""Samples of a benchmark: rollouts, and their blocks.

**Times** of a rollout count from its request, the moment at which ``LongLive.stream`` is called (on
a GPU the device is idle then). ``*_ms`` of a block are device times (CUDA events that are read
after the rollout; the wall clock on a CPU), ``on_host_ms`` is a wall-clock time: the moment at
which a thread of the host had the block's frames in its memory, as 8-bit numbers.

**A block** lasts from the end of the block before it to its own: the end of its context update, or
of the copy of its frames where a decoder of its own stream makes that the later one. The periods of
neighbors touch, and a rollout is the sum of them. The ``parts_ms`` of a block add up to it:

    text encoding   a prompt is due -> its keys and values are stored (block 0 and prompt switches)
    recache         the window's keys are rebuilt under the new prompt (prompt switches)
    diffusion       first denoising step begins -> the latents are clean
    VAE decode      -> the frames are there
    copy to host    -> they are rounded to 8 bits and in the memory of the host
    context update  the next block is asked for -> the clean keys are stored
    other           whatever lies between these, above all waiting for the host; negative where
                    parts run side by side, by the time that this saves
"""

from dataclasses import dataclass

TEXT = "text encoding"
RECACHE = "recache"
DIFFUSION = "diffusion"
DECODE = "VAE decode"
COPY = "copy to host"
CONTEXT = "context update"
OTHER = "other"
PARTS = (TEXT, RECACHE, DIFFUSION, DECODE, COPY, CONTEXT, OTHER)
"""Keys of ``BlockSample.parts_ms``, in the order in which they happen."""

WARM_UP = "warm-up"
PLAIN = "plain"
CACHED = "cached prompt"
ARRIVAL = "random arrival"
LATENTS = "latents only"
KINDS = (WARM_UP, PLAIN, CACHED, ARRIVAL, LATENTS)
"""Values of ``RolloutSample.kind``.

``warm-up`` rollouts count nowhere but in the times of start-up. ``plain`` ones are free-running:
the host queues up to two blocks ahead, as when files are written; the first prompt is encoded anew,
and planned switches act at block borders. ``cached prompt`` ones are one block long, with the text
encoder's output at hand. In ``random arrival`` ones the prompt changes at random moments, and the
host asks for a block only once it has the frames of the one before (as a live viewer would).
``latents only`` ones are as ``plain``, and decode nothing; they are run where plain ones decode
beside the transformer, so that its time is known without what it shares the device with.
"""

FIRST_STEADY_BLOCK = 3
"""Blocks from this one on are steady, unless a prompt switch falls on them."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in use: torch's CUDA allocator on a GPU, resident memory of the process on a CPU.

    Attributes:
        allocated_bytes: At the moment of reading (the end of the block, of the rollout).
        reserved_bytes: Held by the allocator then; on a CPU the same as ``allocated_bytes``.
        peak_bytes: Highest allocated since the reading before (the block before it); of a rollout
            the highest in all of it. On a CPU the highest of the readings.
    """

    allocated_bytes: int
    reserved_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Frames of a block that left the decoder together; most blocks are one piece.

    Attributes:
        frames: How many, of one video.
        decode_ms: From the clean latents of the block, or of its part, to these frames.
        copy_ms: From there to their copy on the host.
        on_host_ms: When the host had them, since the rollout's request.
    """

    frames: int
    decode_ms: float
    copy_ms: float
    on_host_ms: float


@dataclass(frozen=True, slots=True)
class BlockSample:
    """One block of one rollout.

    Attributes:
        index: Its place in the video, from 0.
        frames: Frames of one video in it, decoded or not: 9, then 12 (blocks of 3 latent frames).
        latent_frames: Latent frames in it.
        start_ms: End of the block before it; of block 0 the end of the initialization.
        end_ms: Its own end. ``end_ms - start_ms`` is its period.
        on_host_ms: When the host had all its frames; its end if nothing is decoded.
        parts_ms: Time of each of ``PARTS``; they add up to the period.
        switches: Whether a new prompt became active just before it (not the first one).
        memory: At its end; None where the system does not tell.
        border_ms: End of the context update before it, from which a prompt switch counts; None for
            ``start_ms``, from which it differs only where decoding runs side by side.
        pieces: Its frames as they left the decoder, in order; empty for one piece.
        first_diffusion_ms: Denoising until the first part was clean, of a block in parts.
    """

    index: int
    frames: int
    latent_frames: int
    start_ms: float
    end_ms: float
    on_host_ms: float
    parts_ms: dict[str, float]
    switches: bool = False
    memory: Memory | None = None
    border_ms: float | None = None
    pieces: tuple[Piece, ...] = ()
    first_diffusion_ms: float | None = None

    @property
    def arrivals(self) -> tuple[Piece, ...]:
        """Its frames as they came to the host."""
        one = Piece(self.frames, self.parts_ms[DECODE], self.parts_ms[COPY], self.on_host_ms)
        return self.pieces or (one,)

    @property
    def period_ms(self) -> float:
        """From the end of the block before it to its own."""
        return self.end_ms - self.start_ms

    @property
    def diffusion_ms(self) -> float:
        """All calls of the transformer in a steady block: denoising steps and context update."""
        return self.parts_ms[DIFFUSION] + self.parts_ms[CONTEXT]


@dataclass(frozen=True, slots=True)
class PromptChange:
    """A prompt that was asked for at a random moment while a block was under way.

    Attributes:
        block: The block under way: the host had the frames of the one before, and not yet its.
        share: Where in the expected period of that block it was asked for, in [0, 1): drawn.
        requested_ms: When it was asked for, by the wall clock since the rollout's request.
        acted_block: First block under the new prompt.
        on_host_ms: When the host had the first frames of that block; the difference is prompt to
            pixel.
    """

    block: int
    share: float
    requested_ms: float
    acted_block: int
    on_host_ms: float

    @property
    def prompt_to_pixel_ms(self) -> float:
        """From the request to the first frames under the new prompt, on the host."""
        return self.on_host_ms - self.requested_ms


@dataclass(frozen=True, slots=True)
class RolloutSample:
    """One rollout.

    Attributes:
        kind: One of ``KINDS``.
        iteration: Its place among those of its kind, from 0.
        seed: Of its noise.
        prompts: In the order in which they became active.
        initialization_ms: From the request to the caches allocated and block 0 begun.
        blocks: In order; those that ended.
        changes: Prompts that arrived at random moments.
        wall_ms: From the request to the device idle after the last block, by the wall clock; None
            if the rollout was cut short, or ``sync_cuda`` is off on a GPU.
        memory: At its end, with the highest peak of its blocks; None where it is not known.
        is_whole: False if it was interrupted.
    """

    kind: str
    iteration: int
    seed: int
    prompts: tuple[str, ...]
    initialization_ms: float
    blocks: tuple[BlockSample, ...]
    changes: tuple[PromptChange, ...] = ()
    wall_ms: float | None = None
    memory: Memory | None = None
    is_whole: bool = True
