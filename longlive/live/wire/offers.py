"""What a server has to offer: the model and how it can be run, and how much it takes."""

from dataclasses import dataclass

from longlive.live.wire.limits import (
    FRAMES_IN_FLIGHT,
    MAX_BUFFER_FRAMES,
    MAX_MESSAGE_BYTES,
    MAX_PROMPT_CHARACTERS,
    MAX_SCRIPT_PROMPTS,
    MAX_SEED,
)


@dataclass(frozen=True, slots=True)
class RecipeOffer:
    """A way of running the model.

    Attributes:
        name: For ``start``.
        label: For people.
        steps: Denoising steps that can be asked for, the default first.
    """

    name: str
    label: str
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """What is loaded.

    Attributes:
        name: For people.
        width: Columns of a frame, in pixels.
        height: Rows of a frame, in pixels.
        fps: Frames a second.
        first_block_frames: Frames of block 0.
        block_frames: Frames of every later block.
        recipes: The default first.
        samples: Prompts that the model can show.
    """

    name: str
    width: int
    height: int
    fps: int
    first_block_frames: int
    block_frames: int
    recipes: tuple[RecipeOffer, ...]
    samples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server accepts."""

    message_bytes: int = MAX_MESSAGE_BYTES
    prompt_characters: int = MAX_PROMPT_CHARACTERS
    script_prompts: int = MAX_SCRIPT_PROMPTS
    buffer_frames: int = MAX_BUFFER_FRAMES
    frames_in_flight: int = FRAMES_IN_FLIGHT
    seed: int = MAX_SEED
