"""Rollouts of a transformer of one layer, with frames that tell their own number."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from nano_model import write_nano_model
from torch import Tensor
from torch._dynamo.utils import counters

from longlive.attention.backends.sdpa import sdpa_attention
from longlive.geometry import Geometry, frames_of
from longlive.models.dit import DiT
from longlive.models.sizes import DiTConfig
from longlive.rollout.decode import StreamingDecoder
from longlive.rollout.denoiser import CausalDenoiser, Denoiser, GuidedDenoiser
from longlive.rollout.hooks import CallbackHooks
from longlive.rollout.job import RolloutJob
from longlive.rollout.loop import stream_blocks
from longlive.rollout.noise import SeededNoise
from longlive.rollout.prompts import PromptCursor, PromptTimeline
from longlive.rollout.state import RolloutSpec, RolloutState
from longlive.schedule import DenoisingSchedule

NANO = DiTConfig(width=16, ffn_width=16, heads=2, layers=1, text_width=8, text_len=4)
SPEC = RolloutSpec(
    geometry=Geometry(64, 96),
    schedule=DenoisingSchedule.from_steps([1000, 500], shift=5.0),
    latent_frames=12,
)

FIRST_JOB = RolloutJob(0, 0, "synthetic", "seed 0")


def gray_of(frame: int) -> float:
    """Brightness of a frame; neighbors are 37 levels apart, and the first 200 frames differ."""
    return ((37 * frame) % 200 + 30) / 255


class NumberedFrames:
    """A decoder of as many frames as a real one gives; in a batch each sample is a shade darker."""

    def __init__(self) -> None:
        self.latent_frames = 0

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        start = frames_of(self.latent_frames)
        self.latent_frames += latents_BFCHW.shape[1]
        grays = torch.tensor([gray_of(i) for i in range(start, frames_of(self.latent_frames))])
        shades = torch.arange(len(latents_BFCHW)) * 5 / 255
        gray_BT = (grays - shades[:, None]).to(latents_BFCHW)
        height, width = (8 * side for side in latents_BFCHW.shape[-2:])
        return gray_BT[:, :, None, None, None].expand(-1, -1, 3, height, width)


class Module(pl.LightningModule):
    """What a rollout's callbacks see of the module."""

    def __init__(self, job: RolloutJob | None = None) -> None:
        super().__init__()
        self.job = job


@dataclass
class Rollout:
    """One rollout as the module runs it: blocks are decoded and shown as they come.

    Attributes:
        blocks: Latents and frames, block by block.
        prompts: Where its prompts stand; takes requests.
        hooks: Who is told.
        module: Who runs it.
    """

    blocks: Iterator[tuple[Tensor, Tensor]]
    prompts: PromptCursor
    hooks: CallbackHooks
    module: Module = field(default_factory=Module)

    def run(self) -> None:
        for _ in self.blocks:
            pass


def start_rollout(
    callbacks: Sequence[pl.Callback],
    prompts: Sequence[str] = ("a red circle",),
    switches: Sequence[int] = (),
    job: RolloutJob | None = FIRST_JOB,
    wrap: Callable[[Denoiser], Denoiser] = lambda denoiser: denoiser,
    decoder: StreamingDecoder | None = None,
    device: str = "cpu",
    **changes: object,
) -> Rollout:
    spec = replace(SPEC, **changes).check()
    where = torch.device(device)
    dit = DiT(NANO).to(where)
    state = RolloutState.allocate(spec, NANO, torch.float32, where)
    network: Denoiser
    network = CausalDenoiser(dit, state.cache, state.cross_cache, spec.geometry, sdpa_attention)
    if spec.guidance != 1:
        network = GuidedDenoiser(network, spec.guidance)
    noise = SeededNoise(0, spec.geometry.block_shape(spec.batch), torch.float32, where)
    cursor = PromptTimeline.switching(prompts, switches).start()
    module = Module(job)
    hooks = CallbackHooks(callbacks, module)

    def text_of(prompt: str) -> list[tuple[Tensor, Tensor]]:
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big")
        generator = torch.Generator().manual_seed(seed)
        text_BME = torch.randn(spec.network_batch, 4, 8, generator=generator)
        return dit.text_keys_values(text_BME.to(where))

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        decode = (decoder or NumberedFrames()).decode
        stream = stream_blocks(state, wrap(network), noise, cursor, text_of, hooks)
        try:
            while (latents := _next(stream)) is not None:
                frames = decode(latents)
                hooks.call("on_frames_ready", state, frames)
                yield latents, frames
        finally:
            stream.close()

    return Rollout(blocks(), cursor, hooks, module)


@torch.no_grad()
def _next(stream: Iterator[Tensor]) -> Tensor | None:
    return next(stream, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Weights of the nano model."""
    return write_nano_model(tmp_path_factory.mktemp("nano"))


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """Nothing is compiled before a test, nothing stays after it, and counters count its own."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def rollout() -> Callable[..., Rollout]:
    """``start_rollout``: nothing happens before its first block is asked for."""
    return start_rollout


@pytest.fixture
def numbered_frames() -> NumberedFrames:
    return NumberedFrames()
