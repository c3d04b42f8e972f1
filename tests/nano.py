"""The smallest transformer and rollout that still have every part of the real ones.

Two layers, two heads whose rotary pairs do not split evenly (4 + 2 + 2), a grid that is not square,
text that is shorter than its padding, blocks of two latent frames.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from longlive.attention.backends import sdpa_attention
from longlive.geometry import Geometry
from longlive.models.dit import DiT, TeacherForcingOptions
from longlive.models.sizes import DiTConfig
from longlive.rollout.denoiser import CausalDenoiser, Denoiser
from longlive.rollout.hooks import NoHooks, RolloutHooks
from longlive.rollout.loop import stream_blocks
from longlive.rollout.noise import NoiseSource, SeededNoise
from longlive.rollout.prompts import PromptCursor, PromptTimeline
from longlive.rollout.state import RolloutSpec, RolloutState
from longlive.schedule import DenoisingSchedule

CPU = torch.device("cpu")
CONFIG = DiTConfig(
    width=32,
    ffn_width=48,
    heads=2,
    layers=2,
    text_width=10,
    text_len=5,
    patch=2,
    latent_channels=3,
    frequency_width=8,
)
GEOMETRY = Geometry(32, 48, latent_channels=3, patch=2, block_latent_frames=2)
SPEC = RolloutSpec(
    geometry=GEOMETRY,
    schedule=DenoisingSchedule.from_steps([1000, 500], shift=5.0),
    latent_frames=16,
    window_latent_frames=6,
    sink_latent_frames=2,
)


def spec(**changes: object) -> RolloutSpec:
    return replace(SPEC, **changes).check()


def nano_dit(
    dtype: torch.dtype = torch.float64,
    config: DiTConfig = CONFIG,
    teacher_forcing: TeacherForcingOptions | None = None,
) -> DiT:
    """The same random weights every time; no bias, norm or gate is zero or one."""
    dit = DiT(config, teacher_forcing).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in dit.named_parameters():
            is_matrix = weight.ndim > 1 and "modulation" not in name
            scale = weight[0].numel() ** -0.5 if is_matrix else 0.3
            weight.normal_(std=scale, generator=generator)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1)
    return dit.to(dtype)


def seeded(name: str, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers that depend on the name alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers.to(dtype)


def embed(prompt: str, config: DiTConfig = CONFIG) -> Tensor:
    """Text embeddings ``[1, 3, text width]`` of a prompt, shorter than the padded length."""
    return seeded(prompt, 1, 3, config.text_width)


def text_of(dit: DiT) -> Callable[[str], list[tuple[Tensor, Tensor]]]:
    return lambda prompt: dit.text_keys_values(embed(prompt, dit.config))


def noise_of(spec: RolloutSpec, seed: int = 0, dtype: torch.dtype = torch.float64) -> SeededNoise:
    return SeededNoise(seed, spec.geometry.block_shape(spec.batch), dtype, CPU)


class Rollout:
    """A rollout of the nano transformer, ready to run.

    Attributes:
        state: Where it stands.
        cursor: Its prompts.
        denoiser: The network call.
    """

    def __init__(
        self,
        dit: DiT,
        spec: RolloutSpec,
        prompts: PromptTimeline | PromptCursor | str = "a",
        *,
        noise: NoiseSource | None = None,
        hooks: RolloutHooks | None = None,
        wrap: Callable[[Denoiser], Denoiser] = lambda denoiser: denoiser,
        text: Callable[[str], list[tuple[Tensor, Tensor]]] | None = None,
    ) -> None:
        dtype = dit.dtype_of_weights
        timeline = PromptTimeline.single(prompts) if isinstance(prompts, str) else prompts
        self.cursor = timeline.start() if isinstance(timeline, PromptTimeline) else timeline
        self.state = RolloutState.allocate(spec, dit.config, dtype, CPU)
        caches = self.state.cache, self.state.cross_cache
        self.denoiser = wrap(CausalDenoiser(dit, *caches, spec.geometry, sdpa_attention))
        self.noise = noise or noise_of(spec, dtype=dtype)
        self.hooks = hooks or NoHooks()
        self.text = text or text_of(dit)

    def stream(self) -> Iterator[Tensor]:
        return stream_blocks(
            self.state, self.denoiser, self.noise, self.cursor, self.text, self.hooks
        )

    def latents(self, blocks: int | None = None) -> Tensor:
        """The latents of the first ``blocks`` blocks, or of all."""
        with torch.no_grad():
            return torch.cat(list(islice(self.stream(), blocks)), 1)
