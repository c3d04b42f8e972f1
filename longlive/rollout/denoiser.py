"""The network as the loop sees it: noisy latents and a few numbers in, velocity out."""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns.

from typing import Protocol

from torch import Tensor

from longlive.attention.backends import Attention
from longlive.attention.core import Attend, WindowAttention
from longlive.attention.cross_cache import CrossCache
from longlive.attention.kv_cache import KVCache
from longlive.geometry import Geometry
from longlive.models.dit import DiT
from longlive.rollout.state import StepInputs


class Denoiser(Protocol):
    """One network call. Optimizations wrap it; the loop cannot tell."""

    def __call__(self, x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
        """Velocity of ``x_BFCHW``, or None where only the keys it leaves behind are wanted."""
        ...


class CausalDenoiser:
    """Runs the transformer against the caches of a rollout.

    Args:
        dit: The transformer.
        cache: Keys and values of the video.
        cross_cache: Keys and values of the prompt.
        geometry: Size of a latent frame in tokens.
        attention: Kernel of the self-attention.
    """

    def __init__(
        self,
        dit: DiT,
        cache: KVCache,
        cross_cache: CrossCache,
        geometry: Geometry,
        attention: Attention,
    ) -> None:
        self.dit = dit
        self.cache = cache
        self.cross_cache = cross_cache
        self.grid = (geometry.grid_height, geometry.grid_width)
        self.attention = attention

    def __call__(self, x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
        return self.run(x_BFCHW, inputs, self.attend_for(inputs))

    def attend_for(self, inputs: StepInputs) -> WindowAttention:
        """Self-attention of a call over whole latent frames."""
        return WindowAttention(
            cache=self.cache,
            rotation=self.dit.rotation(inputs.positions_F, *self.grid),
            write_slots_F=inputs.write_slots_F,
            read=inputs.read,
            dropped=inputs.dropped,
            attention=self.attention,
        )

    def run(self, x_BFCHW: Tensor, inputs: StepInputs, attend: Attend) -> Tensor | None:
        """Call the transformer with an attention of one's own; the latents may be cut."""
        velocity: Tensor | None = self.dit(
            x_BFCHW, inputs.timestep_BF, self.cross_cache, attend, keys_only=inputs.keys_only
        )
        return velocity


class GuidedDenoiser:
    """Classifier-free guidance (arXiv:2207.12598): ``without + scale * (with - without)``.

    The two halves of the batch share the latents; the cross-attention cache holds the prompts in
    the first half and the negative prompt in the second.

    Args:
        denoiser: Called with twice the batch.
        scale: 1 would be the prompt alone.
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        self.denoiser = denoiser
        self.scale = scale

    def __call__(self, x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
        both = self.denoiser(x_BFCHW.repeat(2, 1, 1, 1, 1), inputs)
        if both is None:
            return None
        prompted, unprompted = both.chunk(2)
        return unprompted + self.scale * (prompted - unprompted)
