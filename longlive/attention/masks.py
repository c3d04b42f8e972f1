"""Masks for passes over many blocks at once: who may see whom, by latent frame.

Inference never needs one, because the cache holds only what a block may see. Training runs all
blocks of a clip in one pass and needs the same visibility as a mask.
"""

# Shape suffixes: Q tokens that ask, K tokens that are seen.

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BlockCausal:
    """Visibility of a clip that is denoised block by block.

    With ``teacher_forcing`` the sequence is the clean clip followed by the noisy one
    (``[clean | noisy]``, twice the tokens): a clean block sees the clean blocks up to its own, a
    noisy block sees the clean blocks before it and itself, both within the window.

    Attributes:
        latent_frames: Latent frames of the clip.
        block: Latent frames denoised together.
        window: Latent frames a query can see, sink and own block included; None for all.
        sink: First latent frames that every later block sees.
        teacher_forcing: Whether the sequence holds the clip twice.
    """

    latent_frames: int
    block: int
    window: int | None
    sink: int
    teacher_forcing: bool = False

    @property
    def sequence_latent_frames(self) -> int:
        """Latent frames of one pass, the clip counted twice with ``teacher_forcing``."""
        return self.latent_frames * (2 if self.teacher_forcing else 1)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the latent frame at index ``query`` of the sequence sees the one at ``key``.

        Both are integer tensors that broadcast together; so is the boolean result.
        """
        query_is_noisy, query_frame = query >= self.latent_frames, query % self.latent_frames
        key_is_noisy, key_frame = key >= self.latent_frames, key % self.latent_frames
        query_block, key_block = query_frame // self.block, key_frame // self.block
        window = self.latent_frames if self.window is None else self.window
        block_end = (query_block + 1) * self.block
        in_window = (key_frame < self.sink) | (key_frame >= block_end - (window - self.sink))
        past = (~key_is_noisy) & (key_block < query_block) & in_window
        own = (query_is_noisy == key_is_noisy) & (key_block == query_block)
        return past | own


Mask = Any
"""A dense boolean tensor ``[Q, K]`` over tokens, or FlexAttention's ``BlockMask``."""


@lru_cache(maxsize=8)
def mask_for(rule: BlockCausal, tokens_per_latent_frame: int, device: torch.device) -> Mask:
    """The rule over tokens, in the form that is fastest on a device.

    On a GPU a ``BlockMask``, which lets FlexAttention skip the tiles nobody sees; else booleans.
    """
    if device.type == "cuda":
        return _sparse_mask(rule, tokens_per_latent_frame, device)
    frame = torch.arange(rule.sequence_latent_frames, device=device)
    seen = rule.sees(frame[:, None], frame[None, :])
    return seen.repeat_interleave(tokens_per_latent_frame, 0).repeat_interleave(
        tokens_per_latent_frame, 1
    )


def _sparse_mask(rule: BlockCausal, tokens_per_latent_frame: int, device: torch.device) -> Mask:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rule.sees(query // tokens_per_latent_frame, key // tokens_per_latent_frame)

    tokens = rule.sequence_latent_frames * tokens_per_latent_frame
    return create_block_mask(sees, None, None, tokens, tokens, device=str(device))
