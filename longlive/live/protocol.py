"""What a viewer and the server say to each other: JSON text for control, binary for pictures.

Version 1, described with examples in ``docs/live-protocol.md``. A message is a frozen dataclass;
its ``type`` names it on the wire. This module gathers what ``longlive.live.wire`` holds; none of it
imports torch, so that a client starts at once.
"""

import json
from dataclasses import asdict
from typing import get_args

from longlive.live.wire.from_server import (
    Ack,
    BlockDone,
    Branches,
    BranchInfo,
    Ended,
    Error,
    Files,
    PromptMark,
    Queue,
    ServerMessage,
    State,
    Stats,
    Video,
    Welcome,
)
from longlive.live.wire.from_viewer import (
    Back,
    ChangePrompt,
    ClientMessage,
    Export,
    Hello,
    Leave,
    Pause,
    Record,
    RecordStop,
    Resume,
    ScriptedPrompt,
    Shown,
    Snapshot,
    Start,
    Stop,
)
from longlive.live.wire.limits import (
    FRAMES_IN_FLIGHT,
    MAX_BLOCKS,
    MAX_BUFFER_FRAMES,
    MAX_ID,
    MAX_MESSAGE_BYTES,
    MAX_PROMPT_CHARACTERS,
    MAX_SCRIPT_PROMPTS,
    MAX_SEED,
    PATH,
    VERSION,
    ProtocolError,
    StateName,
    TransportName,
)
from longlive.live.wire.offers import Limits, ModelOffer, RecipeOffer
from longlive.live.wire.pictures import (
    HEADER_BYTES,
    PictureFlag,
    PictureHeader,
    PictureKind,
    pack_picture,
    unpack_picture,
)
from longlive.live.wire.reading import read_message

__all__ = [
    "Ack",
    "Back",
    "BlockDone",
    "BranchInfo",
    "Branches",
    "ChangePrompt",
    "ClientMessage",
    "Ended",
    "Error",
    "Export",
    "FRAMES_IN_FLIGHT",
    "Files",
    "HEADER_BYTES",
    "Hello",
    "Leave",
    "Limits",
    "MAX_BLOCKS",
    "MAX_BUFFER_FRAMES",
    "MAX_ID",
    "MAX_MESSAGE_BYTES",
    "MAX_PROMPT_CHARACTERS",
    "MAX_SCRIPT_PROMPTS",
    "MAX_SEED",
    "Message",
    "ModelOffer",
    "PATH",
    "Pause",
    "PictureFlag",
    "PictureHeader",
    "PictureKind",
    "PromptMark",
    "ProtocolError",
    "Queue",
    "RecipeOffer",
    "Record",
    "RecordStop",
    "Resume",
    "ScriptedPrompt",
    "ServerMessage",
    "Shown",
    "Snapshot",
    "Start",
    "State",
    "StateName",
    "Stats",
    "Stop",
    "TransportName",
    "VERSION",
    "Video",
    "Welcome",
    "pack_picture",
    "parse_client",
    "parse_server",
    "to_json",
    "unpack_picture",
]

Message = ClientMessage | ServerMessage

_CLIENT: dict[str, type] = {kind.type: kind for kind in get_args(ClientMessage)}
_SERVER: dict[str, type] = {kind.type: kind for kind in get_args(ServerMessage)}


def to_json(message: Message) -> str:
    """Write a message for the wire."""
    return json.dumps({"type": message.type, **asdict(message)}, ensure_ascii=False)


def parse_client(text: str | bytes) -> ClientMessage:
    """Read a message from a viewer, and refuse what cannot be meant.

    Raises:
        ProtocolError: In plain words; nothing of the message has had an effect.
    """
    message: ClientMessage = read_message(text, _CLIENT, is_strict=True)
    return message


def parse_server(text: str | bytes) -> ServerMessage:
    """Read a message from the server; keys that a newer server adds are ignored.

    Raises:
        ProtocolError: If it is none.
    """
    message: ServerMessage = read_message(text, _SERVER, is_strict=False)
    return message
