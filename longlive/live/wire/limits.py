"""Numbers that both sides of the live protocol agree on."""

from typing import Literal

from longlive.errors import UserError

VERSION = 1
PATH = "/live"
"""Where the WebSocket is."""

MAX_MESSAGE_BYTES = 64 * 1024
MAX_PROMPT_CHARACTERS = 2000
MAX_SCRIPT_PROMPTS = 256
MAX_ID = 2**31 - 1
MAX_SEED = 2**53 - 1
"""The largest whole number that JavaScript keeps exact."""
MAX_BLOCKS = 100_000
MAX_BUFFER_FRAMES = 256
FRAMES_IN_FLIGHT = 24
"""Frames the server sends ahead of the last one that the viewer says it has shown."""

TransportName = Literal["webcodecs", "mse", "jpeg"]
StateName = Literal["idle", "starting", "playing", "paused"]


class ProtocolError(UserError):
    """A message that cannot be understood.

    Args:
        message: What is wrong with it and what would be right.
        code: The same in a word, for programs.
    """

    def __init__(self, message: str, code: str = "bad_message") -> None:
        super().__init__(message)
        self.code = code
