"""What a viewer says."""

from dataclasses import dataclass, field
from typing import ClassVar

from longlive.live.wire.limits import TransportName
from longlive.rollout.transitions import Transition


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of every connection.

    Attributes:
        version: Of the protocol.
        transports: What the viewer can show, best first; the server takes the first it has.
        session: Token of an earlier welcome, to go on with that session.
    """

    type: ClassVar[str] = "hello"
    version: int
    transports: tuple[TransportName, ...]
    session: str | None = None


@dataclass(frozen=True, slots=True)
class ScriptedPrompt:
    """A prompt planned beforehand.

    Attributes:
        block: The block it begins with, 1 or later.
        prompt: What the video shows from there on.
        transition: How it gets there; the default of ``start`` if absent.
    """

    block: int
    prompt: str
    transition: Transition | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a new video; one that plays ends.

    Attributes:
        id: Of the request; ids of a session ascend.
        prompt: What it shows.
        seed: Of its noise.
        recipe: Name of one of the model's recipes; the first if absent.
        steps: Denoising steps; the recipe's if absent.
        transition: Of later prompts that do not name one.
        script: Later prompts planned beforehand.
        blocks: Length; without one it goes on until stopped.
        buffer_frames: Depth of the playout buffer; the server's setting if absent.
    """

    type: ClassVar[str] = "start"
    id: int
    prompt: str
    seed: int = 0
    recipe: str | None = None
    steps: int | None = None
    transition: Transition = field(default_factory=Transition)
    script: tuple[ScriptedPrompt, ...] = ()
    blocks: int | None = None
    buffer_frames: int | None = None


@dataclass(frozen=True, slots=True)
class ChangePrompt:
    """Another prompt from the next block on; of several before a block the latest wins."""

    type: ClassVar[str] = "prompt"
    id: int
    prompt: str
    transition: Transition | None = None


@dataclass(frozen=True, slots=True)
class Back:
    """Go back to the start of a block and branch there.

    Attributes:
        id: Of the request.
        branch: On which branch the block is.
        block: Which block; it is the first of the new branch.
        prompt: Of the new branch; the one that was active there if absent.
        transition: To that prompt.
        seed: Of the new branch's noise; that of the old branch if absent.
        play: Whether to go on at once, or to wait for ``resume``.
    """

    type: ClassVar[str] = "back"
    id: int
    branch: int
    block: int
    prompt: str | None = None
    transition: Transition | None = None
    seed: int | None = None
    play: bool = True


@dataclass(frozen=True, slots=True)
class Pause:
    """Freeze the picture."""

    type: ClassVar[str] = "pause"
    id: int


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on after a pause."""

    type: ClassVar[str] = "resume"
    id: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End the video; the session stays, for another start."""

    type: ClassVar[str] = "stop"
    id: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Keep the state at the next block, so that going back there takes no time."""

    type: ClassVar[str] = "snapshot"
    id: int


@dataclass(frozen=True, slots=True)
class Record:
    """Record what is shown from now on."""

    type: ClassVar[str] = "record"
    id: int


@dataclass(frozen=True, slots=True)
class RecordStop:
    """Complete the recording."""

    type: ClassVar[str] = "record_stop"
    id: int


@dataclass(frozen=True, slots=True)
class Export:
    """Write the session so far as JSON, without a recording."""

    type: ClassVar[str] = "export"
    id: int


@dataclass(frozen=True, slots=True)
class Shown:
    """The frame with this serial number, and all before it, were shown."""

    type: ClassVar[str] = "shown"
    serial: int


@dataclass(frozen=True, slots=True)
class Leave:
    """End the session at once instead of after its grace period."""

    type: ClassVar[str] = "leave"


ClientMessage = (
    Hello
    | Start
    | ChangePrompt
    | Back
    | Pause
    | Resume
    | Stop
    | Snapshot
    | Record
    | RecordStop
    | Export
    | Shown
    | Leave
)
