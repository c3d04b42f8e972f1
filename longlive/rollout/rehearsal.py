"""One pass of every kind that a rollout can make, before its first block.

Compilers, autotuners and graph captures work when a kind of pass is first seen; a viewer should not
have to wait for them in the middle of a video. Which kinds there are is not written down a second
time: the loop itself is run with a denoiser that only takes notes.
"""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns.

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from longlive.rollout.decode import AwaitedDecoder, StreamingDecoder, decode_and_show
from longlive.rollout.denoiser import Denoiser
from longlive.rollout.hooks import NoHooks
from longlive.rollout.loop import stream_blocks
from longlive.rollout.state import Caches, RolloutSpec, RolloutState, StepInputs
from longlive.rollout.transitions import SWITCH, Transition
from longlive.schedule import DenoisingSchedule

# Under global attention every block is a kind of its own.
_MOST_BLOCKS = 32


class PassKind(NamedTuple):
    """What is fixed in a compiled or captured call; all else about it is data on the device.

    Attributes:
        latents: Shape of the latents.
        stored: Latent frames that are stored.
        read: Slots that are read.
        reads_prefix: Whether these are the leading ones.
        dropped: Leading latent frames that are not stored.
        keys_only: Whether there is no output.
        is_beside_decoding: Whether a block is thought to be decoded meanwhile.
    """

    latents: tuple[int, ...]
    stored: int
    read: int
    reads_prefix: bool
    dropped: int
    keys_only: bool
    is_beside_decoding: bool


def kind_of(x_BFCHW: Tensor, inputs: StepInputs) -> PassKind:
    """Of which kind a call of the denoiser is; no value on the device is looked at."""
    read = inputs.read
    return PassKind(
        latents=tuple(x_BFCHW.shape),
        stored=len(inputs.write_slots_F),
        read=read if isinstance(read, int) else len(read),
        reads_prefix=isinstance(read, int),
        dropped=inputs.dropped,
        keys_only=inputs.keys_only,
        is_beside_decoding=inputs.is_beside_decoding,
    )


class _Notes:
    """A denoiser that remembers one call of each kind."""

    def __init__(self) -> None:
        self.calls: dict[PassKind, tuple[Tensor, StepInputs]] = {}

    def __call__(self, x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
        self.calls.setdefault(kind_of(x_BFCHW, inputs), (x_BFCHW, inputs))
        return None if inputs.keys_only else x_BFCHW


class _SwitchEveryBlock:
    prompt = ""

    @property
    def transition(self) -> Transition:
        return SWITCH

    def advance(self, block_start_latent_frame: int, /) -> str | None:
        return ""

    def expects(self, block_start_latent_frame: int, /) -> Transition | None:
        # Or there would be no context updates.
        return None

    def request(self, prompt: str, /) -> None:
        """Nobody asks."""

    def preempt(self) -> str | None:
        return None


class _Silence:
    def __init__(self, like_BFCHW: Tensor) -> None:
        self._zeros = torch.zeros_like(like_BFCHW)

    def draw(self, block_index: int, step_index: int) -> Tensor:
        return self._zeros


def passes_of(state: RolloutState, like_BFCHW: Tensor) -> list[tuple[Tensor, StepInputs]]:
    """One call of each kind, those of the steady state first, those of prompt switches last.

    Args:
        state: A freshly allocated rollout; it is not advanced.
        like_BFCHW: A block of latents, for shape and type.
    """
    block_frames = state.spec.geometry.block_latent_frames
    window = state.spec.window_latent_frames
    if window is None:
        blocks = min(_MOST_BLOCKS, state.spec.blocks or _MOST_BLOCKS)
    else:
        # One block more than it takes to fill the window, and one to see it full at a switch; also
        # for a video that ends before, since the next one may be longer.
        blocks = -(-window // block_frames) + 2
    spec = replace(
        state.spec,
        # All steps of a block are of one kind, or of two.
        schedule=DenoisingSchedule((1.0, 0.5) if state.spec.steps_beside_decoding else (1.0,)),
        first_schedule=None,
        steps_beside_decoding=min(1, state.spec.steps_beside_decoding),
        latent_frames=blocks * block_frames,
        # Passes are the same, and nothing in the cache is turned.
        positions="absolute",
        cached_latent_frames=state.spec.slots,
    )
    caches = Caches(state.cache, state.cross_cache)
    text = [state.cross_cache[layer] for layer in range(len(state.cross_cache))]
    notes = _Notes()
    rehearsal = stream_blocks(
        RolloutState.start(spec, caches, state.device),
        notes,
        _Silence(like_BFCHW),
        _SwitchEveryBlock(),
        lambda _: text,
        NoHooks(),
    )
    for _ in rehearsal:
        pass
    latest_first = list(notes.calls.values())[::-1]
    return sorted(latest_first, key=lambda call: call[0].shape[1] != block_frames)


@torch.no_grad()
def rehearse(state: RolloutState, denoiser: Denoiser, like_BFCHW: Tensor) -> None:
    """Call the denoiser once for each kind of pass; what the caches hold is then forgotten.

    Args:
        state: A freshly allocated rollout.
        denoiser: The network call, in all its wrappings.
        like_BFCHW: A block of latents, for shape and type.
    """
    for x_BFCHW, inputs in passes_of(state, like_BFCHW):
        denoiser(torch.zeros_like(x_BFCHW), inputs)
    state.cache.clear()


@torch.no_grad()
def rehearse_decoding(
    decoder: StreamingDecoder, like_BFCHW: Tensor, first_parts: tuple[int, ...]
) -> None:
    """Decode a first block, one after it, and one that somebody waits for if that is another way.

    Args:
        decoder: At the start of a video, and not used for another one.
        like_BFCHW: A block of latents, for shape and type.
        first_parts: Latent frames of each part of the first block.
    """

    def decode(frames: int | None = None) -> None:
        part_BFCHW = torch.zeros_like(like_BFCHW[:, :frames])
        decode_and_show(decoder, part_BFCHW, lambda frames: None)()

    for frames in first_parts:
        decode(frames)
    decode()
    if isinstance(decoder, AwaitedDecoder):
        decoder.hurry()
        decode()


def release_unused(device: torch.device) -> None:
    """Give back what the allocator took for the rehearsal and holds for nobody.

    Compilers time their candidates there, and what runs before a capture lives outside the graphs'
    pool: neither is asked for again.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()


def rehearsal_key(spec: RolloutSpec) -> tuple[object, ...]:
    """Equal for rollouts that rehearse the same kinds of passes on the same kind of buffers."""
    return (
        spec.geometry,
        spec.window_latent_frames,
        spec.sink_latent_frames,
        spec.slots,
        spec.keeps_sink,
        spec.network_batch,
        spec.computes_unread,
        spec.recached_latent_frames,
        spec.updates_context,
        spec.first_frame_alone,
        spec.steps_beside_decoding > 0,
        # Under global attention a longer video makes more kinds.
        spec.latent_frames if spec.window_latent_frames is None else None,
    )
