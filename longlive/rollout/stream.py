"""A running video: blocks of latents and frames, and a prompt that may change meanwhile."""

# Shape suffixes: B batch, F latent frames, T frames, C channels, H W rows and columns.

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from longlive.errors import UserError
from longlive.rollout.decode import FramesOf, StreamingDecoder, decode_and_show
from longlive.rollout.denoiser import Denoiser
from longlive.rollout.hooks import RolloutHooks
from longlive.rollout.loop import BlendedTextOf, TextKeysValuesOf, stream_blocks
from longlive.rollout.noise import NoiseSource
from longlive.rollout.prompts import Prompts
from longlive.rollout.state import RolloutState


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a video.

    Attributes:
        index: Its place in the video.
        latents: Clean latents ``[B, F, C, H, W]``.
        frames_of: Gives its frames.
    """

    index: int
    latents: Tensor
    frames_of: FramesOf

    @property
    def frames(self) -> Tensor:
        """Frames ``[B, T, 3, H, W]`` in [0, 1].

        If they are made in a stream of their own, asking for them makes the current one wait for
        it; ``on_frames_ready`` does not.
        """
        return self.frames_of()


class _Shown(NamedTuple):
    """A part of a block that was shown before the block was whole."""

    latent_frames: int
    frames_of: FramesOf


class RolloutStream:
    """Iterate over it for blocks; change the prompt or stop it from any thread.

    Everything runs without gradients, in whichever thread iterates. Frames are yielded before the
    block's context update, which runs when the next block is asked for.

    Args:
        state: A freshly allocated rollout.
        denoiser: The network call.
        decoder: Latents to frames.
        noise: Noise per block and step.
        prompts: Which prompt becomes active when.
        text_of: Encodes a prompt.
        hooks: Who is told.
        blended_text_of: Encodes a mixture of prompts; only blends need it.
    """

    def __init__(
        self,
        state: RolloutState,
        denoiser: Denoiser,
        decoder: StreamingDecoder,
        noise: NoiseSource,
        prompts: Prompts,
        text_of: TextKeysValuesOf,
        hooks: RolloutHooks,
        blended_text_of: BlendedTextOf | None = None,
    ) -> None:
        self.state = state
        self.prompts = prompts
        self._denoiser = denoiser
        self._decoder = decoder
        self._noise = noise
        self._text_of = text_of
        self._hooks = hooks
        self._blended_text_of = blended_text_of
        self._is_stopped = threading.Event()
        self._shown_before: list[_Shown] = []

    @property
    def decoder(self) -> StreamingDecoder:
        """What turns latents into frames, in all its wrappings."""
        return self._decoder

    def change_prompt(self, prompt: str) -> None:
        """Ask for another prompt from the next block on; of several the latest wins.

        If the rollout preempts, the block at hand may be begun again for it.

        Raises:
            UserError: If the prompt is blank.
        """
        self.prompts.request(prompt)
        self._hooks.call("on_prompt_request", self.state, prompt)

    def stop(self) -> None:
        """End the video after the block at hand."""
        self._is_stopped.set()

    @torch.no_grad()
    def __iter__(self) -> Iterator[Block]:
        blocks = stream_blocks(
            self.state,
            self._denoiser,
            self._noise,
            self.prompts,
            self._text_of,
            self._hooks,
            self._blended_text_of,
            self._show_part,
        )
        try:
            for latents_BFCHW in blocks:
                index = self.state.block_index
                frames_of = self._frames_of(latents_BFCHW)
                yield Block(index, latents_BFCHW, frames_of)
                if self._is_stopped.is_set():
                    return
        finally:
            # Ends the loop wherever it stands, so that everybody hears of the end.
            blocks.close()

    def _show_part(self, latents_BFCHW: Tensor) -> None:
        if self.state.spec.is_shown:
            frames_of = decode_and_show(self._decoder, latents_BFCHW, self._show)
            self._shown_before.append(_Shown(latents_BFCHW.shape[1], frames_of))

    def _frames_of(self, latents_BFCHW: Tensor) -> FramesOf:
        if not self.state.spec.is_shown:
            return _shown_elsewhere
        before, self._shown_before = self._shown_before, []
        rest_BFCHW = latents_BFCHW[:, sum(part.latent_frames for part in before) :]
        rest_of = decode_and_show(self._decoder, rest_BFCHW, self._show)
        if not before:
            return rest_of
        return lambda: torch.cat([*(part.frames_of() for part in before), rest_of()], 1)

    def _show(self, frames_BTCHW: Tensor) -> None:
        self._hooks.call("on_frames_ready", self.state, frames_BTCHW)


def _shown_elsewhere() -> Tensor:
    raise UserError("another process shows this video: ask for its frames there")
