"""One long video in training: chunks that continue it, and a change of prompt on the way.

The student is tuned on what it does at inference: each chunk goes on from the KV cache that the
chunks before it left, long past the length of the teacher's clips (LongLive, arXiv:2509.22622,
section 3.3). Teacher and critic see a clip of their usual length that ends with the chunk; only its
new latent frames count. A video outlives updates of the weights, so the keys of its older latent
frames are those of older weights.
"""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longlive.attention.kv_cache import Sink
from longlive.distillation.self_forcing import StudentRollout, TrainingNoise
from longlive.errors import UserError

FIRST, SECOND = "first prompt", "second prompt"
"""What the two prompts of a video are called; their embeddings are the video's own."""

ImageLatent = Callable[[Tensor], Tensor]
"""Latents ``[B, F, C, H, W]`` from a video's start to one latent ``[B, 1, C, H, W]`` that shows the
last frame of theirs as an image: what every clip of the VAE begins with."""


@dataclass(frozen=True, slots=True)
class StreamingOptions:
    """How long videos are cut into chunks, and when their prompt changes.

    Attributes:
        latent_frames: Length after which another video is begun.
        overlap_latent_frames: Latent frames of a clip that the chunk before made.
        switch_latent_frames: Where the second prompt may come, each as likely as the others; None
            for every chunk but the first and the last.
        switch_share: How many of the videos change their prompt.
    """

    latent_frames: int = 240
    overlap_latent_frames: int = 3
    switch_latent_frames: tuple[int, ...] | None = None
    switch_share: float = 1.0

    def starts(self, clip: int) -> list[int]:
        """Latent frames at which the chunks of a video start, for clips of ``clip``."""
        step = clip - self.overlap_latent_frames
        return [0, *range(clip, self.latent_frames - step + 1, step)]

    def switches(self, clip: int) -> list[int]:
        """Latent frames at which the prompt may change."""
        if self.switch_latent_frames is not None:
            return list(self.switch_latent_frames)
        return self.starts(clip)[1:]

    def check(self, clip: int, block: int) -> "StreamingOptions":
        """Return the options if they can work.

        Args:
            clip: Latent frames of a clip.
            block: Latent frames of a block.

        Raises:
            UserError: Naming the setting to change.
        """
        overlap = self.overlap_latent_frames
        if not 0 < overlap < clip or overlap % block or clip % block:
            raise UserError(
                f"an overlap of {overlap} latent frames does not fit clips of {clip}: set "
                f"overlap_latent_frames to whole blocks of {block}, less than the clip"
            )
        if self.latent_frames < clip:
            raise UserError(
                f"a long video of {self.latent_frames} latent frames is shorter than a clip: set "
                f"streaming.latent_frames to at least {clip}"
            )
        if not 0 <= self.switch_share <= 1:
            raise UserError(f"switch_share goes from 0 to 1, got {self.switch_share}")
        starts = self.starts(clip)
        end = clip if len(starts) == 1 else starts[-1] + clip - overlap
        for switch in self.switch_latent_frames or ():
            if not 0 < switch <= end - block:
                raise UserError(
                    f"a switch at latent frame {switch} is beyond the video: its last block starts "
                    f"at {end - block}, so choose from 1 to there"
                )
        if self.switch_share and not self.switches(clip):
            raise UserError(
                "a video of one chunk has no place for a switch: set switch_share to 0 or make "
                "streaming.latent_frames longer"
            )
        return self


class Chunk(NamedTuple):
    """What teacher and critic look at after a chunk.

    Attributes:
        clip: Latents ``[B, F, C, H, W]`` that end with the chunk; the new ones are in the graph.
        counts: Which latent frames are new, booleans ``[1, F, 1, 1, 1]``; None if all are.
        prompt: Name of the prompt at the chunk's end.
    """

    clip: Tensor
    counts: Tensor | None
    prompt: str


class LongVideo:
    """A video that training goes through chunk by chunk.

    Args:
        rollout: A fresh rollout whose cache has room for the window and a chunk. It has the prompts
            ``FIRST`` and ``SECOND``.
        options: How it is cut.
        clip_latent_frames: Length of a clip.
        switch: Latent frame from which the second prompt is wanted; None for never.
        image_latent: Makes the first latent of a clip that does not start the video; None to leave
            the latent of the video in its place.
    """

    def __init__(
        self,
        rollout: StudentRollout,
        options: StreamingOptions,
        clip_latent_frames: int,
        switch: int | None,
        image_latent: ImageLatent | None,
    ) -> None:
        self.rollout = rollout
        self.options = options
        self.clip_latent_frames = clip_latent_frames
        self.switch = switch
        self.image_latent = image_latent
        self.previous_BFCHW: Tensor | None = None

    @property
    def block(self) -> int:
        """Latent frames of a block."""
        return self.rollout.spec.geometry.block_latent_frames

    @property
    def made(self) -> int:
        """Latent frames there are."""
        return self.rollout.state.block_start

    @property
    def next_blocks(self) -> int:
        """Blocks of the next chunk."""
        overlap = self.options.overlap_latent_frames if self.made else 0
        return (self.clip_latent_frames - overlap) // self.block

    @property
    def is_over(self) -> bool:
        """Whether the next chunk would pass the end."""
        return self.made + self.next_blocks * self.block > self.options.latent_frames

    def next_chunk(
        self,
        noise: TrainingNoise,
        exits: Sequence[int],
        *,
        trains: bool,
        context_noise_sigma: float | None = None,
    ) -> Chunk:
        """Make the next latent frames, and the clip that shows them.

        Args:
            noise: Of the chunk.
            exits: Exit step of each of its blocks.
            trains: Whether exit steps keep their graph.
            context_noise_sigma: Noise that the context updates see; None for clean latents.
        """
        start, rollout = self.made, self.rollout
        if start and rollout.decisions.refreshes_text:
            rollout.refresh_text()
        end = start + self.next_blocks * self.block
        prompts = {0: FIRST}
        if self.switch is not None:
            prompts[-(-self.switch // self.block) * self.block] = SECOND
        new = rollout.roll(
            self.next_blocks,
            noise,
            exits,
            prompts,
            trains=trains,
            context_noise_sigma=context_noise_sigma,
        )
        clip, first_new = self._clip_of(new, end - start)
        switch = next((frame for frame in prompts if start < frame < end), start)
        # What the first prompt made cannot be judged by the second.
        first_new += switch - start
        counts = torch.arange(clip.shape[1], device=clip.device) >= first_new
        self.previous_BFCHW = self._last(new.detach())
        return Chunk(clip, counts[None, :, None, None, None], rollout.state.prompt)

    def _clip_of(self, new_BFCHW: Tensor, frames: int) -> tuple[Tensor, int]:
        """The clip that ends with new latents, and the place of the first of them."""
        previous, overlap = self.previous_BFCHW, self.clip_latent_frames - frames
        if previous is None:
            return new_BFCHW, 0
        kept = previous[:, -overlap:]
        if self.image_latent is not None:
            until = previous.shape[1] - overlap + 1
            first = self.image_latent(previous[:, :until]).to(kept.dtype)
            kept = torch.cat([first, kept[:, 1:]], 1)
        return torch.cat([kept, new_BFCHW], 1), overlap

    def _last(self, new_BFCHW: Tensor) -> Tensor:
        parts = [new_BFCHW] if self.previous_BFCHW is None else [self.previous_BFCHW, new_BFCHW]
        return torch.cat(parts, 1)[:, -self.clip_latent_frames :]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next chunk depends on, as tensors and plain values."""
        state = self.rollout.state
        return {
            "texts": dict(self.rollout.texts_BME),
            "switch": self.switch,
            "previous": self.previous_BFCHW,
            "k": state.cache.k,
            "v": state.cache.v,
            "sink": tuple(state.cache.sink),
            "text_k": list(state.cross_cache.k_BMND),
            "text_v": list(state.cross_cache.v_BMND),
            "window": [state.window.end, state.window.filled, state.window.head],
            "recent": list(state.recent),
            "block_index": state.block_index,
            "prompt": state.prompt,
        }

    def load_state_dict(self, kept: dict[str, Any]) -> None:
        """Go on where another video of the same make stood."""
        state, device = self.rollout.state, self.rollout.state.device
        state.cache.k.copy_(kept["k"])
        state.cache.v.copy_(kept["v"])
        position, written, keys = kept["sink"]
        state.cache.sink = Sink(position, written, None if keys is None else keys.to(device))
        pairs = zip(kept["text_k"], kept["text_v"], strict=True)
        state.cross_cache.store([(k.to(device), v.to(device)) for k, v in pairs])
        state.window.end, state.window.filled, state.window.head = kept["window"]
        state.recent.clear()
        state.recent.extend(block.to(device) for block in kept["recent"])
        state.block_index = kept["block_index"]
        state.prompt = kept["prompt"]
        previous = kept["previous"]
        self.previous_BFCHW = None if previous is None else previous.to(device)
