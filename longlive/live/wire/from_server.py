"""What the server says."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from longlive.live.wire.limits import StateName, TransportName
from longlive.live.wire.offers import Limits, ModelOffer
from longlive.rollout.transitions import Transition


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to ``hello``.

    Attributes:
        version: Of the protocol.
        session: Token with which a later connection goes on with this session.
        resumed: Whether this is such a connection; the timeline so far follows.
        transport: In which form pictures come.
        grace_seconds: How long the session outlives its connection.
        last_id: The highest id that this session has used; go on above it.
        buffer_frames: Depth of the playout buffer unless ``start`` says otherwise.
        limits: What the server accepts.
        model: What is loaded.
    """

    type: ClassVar[str] = "welcome"
    version: int
    session: str
    resumed: bool
    transport: TransportName
    grace_seconds: float
    last_id: int
    buffer_frames: int
    limits: Limits
    model: ModelOffer


@dataclass(frozen=True, slots=True)
class Queue:
    """Where the viewer stands; sent whenever that changes.

    Attributes:
        position: 0 has the model; 1 is next.
        waiting: Viewers who wait, this one included.
    """

    type: ClassVar[str] = "queue"
    position: int
    waiting: int


@dataclass(frozen=True, slots=True)
class State:
    """What the session does; sent whenever that changes.

    Attributes:
        state: ``idle`` before a start and after a stop, ``starting`` until the first frame.
        branch: At hand.
        block: The next block to be made.
        recording: Whether what is shown is recorded.
    """

    type: ClassVar[str] = "state"
    state: StateName
    branch: int
    block: int
    recording: bool


@dataclass(frozen=True, slots=True)
class Ack:
    """A request was understood and will be done.

    Attributes:
        id: Of the request.
        request: Its type.
        branch: Where it takes effect.
        block: The block with which it takes effect.
        frame: That block's first frame, counted from the start of the branch's video.
        replaces: The id of an earlier prompt that will not be shown, because this one came before
            its block began.
        unchanged: Whether nothing changes, because that prompt is the active one.
    """

    type: ClassVar[str] = "ack"
    id: int
    request: str
    branch: int
    block: int
    frame: int
    replaces: int | None = None
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class PromptMark:
    """A prompt has taken effect: a mark on the timeline.

    Attributes:
        id: Of the request that asked for it; frames under this prompt carry it.
        branch: Likewise.
        block: The first block under it.
        frame: That block's first frame.
        prompt: The text.
        transition: How it began.
    """

    type: ClassVar[str] = "prompt_mark"
    id: int
    branch: int
    block: int
    frame: int
    prompt: str
    transition: Transition


@dataclass(frozen=True, slots=True)
class BlockDone:
    """A block has been made; its frames are on their way to the viewer.

    Attributes:
        branch: Where.
        block: Its place in the branch's video.
        frame: Its first frame.
        frames: How many it has.
        prompt: Id of the prompt it shows.
        seconds: Time it took to make.
        thumbnail: JPEG of its first frame, base64; None if it is no longer kept.
    """

    type: ClassVar[str] = "block"
    branch: int
    block: int
    frame: int
    frames: int
    prompt: int
    seconds: float
    thumbnail: str | None


@dataclass(frozen=True, slots=True)
class BranchInfo:
    """One branch.

    Attributes:
        id: 0 is the first.
        parent: The branch it left; None for the first.
        block: Its first own block.
        blocks: One past its last block that was made.
        seed: Of its noise.
    """

    id: int
    parent: int | None
    block: int
    blocks: int
    seed: int


@dataclass(frozen=True, slots=True)
class Branches:
    """All branches of the video; sent when one is added."""

    type: ClassVar[str] = "branches"
    current: int
    branches: tuple[BranchInfo, ...]


@dataclass(frozen=True, slots=True)
class Video:
    """How to read the binary messages that follow; sent before the first one.

    Attributes:
        transport: Form of the pictures.
        codec: For a decoder, ``avc1.42C01E``; empty for JPEG.
        mime: For a ``SourceBuffer``; empty unless the transport is ``mse``.
        width: Columns of a frame; even.
        height: Rows of a frame; even.
        fps: Frames a second.
    """

    type: ClassVar[str] = "video"
    transport: TransportName
    codec: str
    mime: str
    width: int
    height: int
    fps: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Once a second while a video plays.

    Attributes:
        fps: Frames sent in the last second.
        frame_ms: Time between frames at the server, one number for each frame of the last second.
        frame_p95_ms: Of those of the last minute.
        prompt_to_pixel_ms: From the arrival of the last prompt that was shown to the arrival of the
            viewer's word that it was; None before there is one.
        stalls: Times since the start at which a frame was due and none was ready.
        dropped_frames: Frames of an older prompt that were dropped for those of a newer one.
        buffer_frames: Frames ready.
        in_flight_frames: Frames sent and not yet shown.
        block_ms: Time of the last block.
        encode_ms: Time to encode a frame, lately.
        copy_ms: Time to bring a block from the device to the encoder, lately.
        viewers: Viewers who wait.
        memory_mib: Of the server's process.
        device_memory_mib: On the GPU; None without one.
    """

    type: ClassVar[str] = "stats"
    fps: float
    frame_ms: tuple[float, ...]
    frame_p95_ms: float
    prompt_to_pixel_ms: float | None
    stalls: int
    dropped_frames: int
    buffer_frames: int
    in_flight_frames: int
    block_ms: float
    encode_ms: float
    copy_ms: float
    viewers: int
    memory_mib: float
    device_memory_mib: float | None


@dataclass(frozen=True, slots=True)
class Files:
    """Files to download; addresses are relative to the server.

    Attributes:
        id: Of the request; None if the server ended the recording by itself.
        kind: ``recording`` or ``export``.
        frames: Frames of the video.
        video: MP4 with the prompts as chapters; None for an export.
        session: JSON that makes the same video again.
        sheet: PNG of the prompts; None for an export.
    """

    type: ClassVar[str] = "files"
    id: int | None
    kind: Literal["recording", "export"]
    frames: int
    video: str | None
    session: str
    sheet: str | None


@dataclass(frozen=True, slots=True)
class Error:
    """Something did not work.

    Attributes:
        code: ``bad_message``, ``out_of_order``, ``bad_value``, ``prompt_too_long``, ``busy``,
            ``too_fast``, ``unknown_session``, ``version``, ``taken_over``, ``failed``.
        message: In plain words, with what to do.
        id: Of the request; None if it belongs to none.
        fatal: Whether the server closes the connection.
    """

    type: ClassVar[str] = "error"
    code: str
    message: str
    id: int | None = None
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The video ended by itself or the session was ended.

    Attributes:
        reason: ``complete``, ``stopped``, ``failed``, ``idle`` or ``shutdown``.
        message: In plain words.
    """

    type: ClassVar[str] = "ended"
    reason: str
    message: str


ServerMessage = (
    Welcome
    | Queue
    | State
    | Ack
    | PromptMark
    | BlockDone
    | Branches
    | Video
    | Stats
    | Files
    | Error
    | Ended
)
