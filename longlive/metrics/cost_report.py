"""What one configuration computes: every pass, every block, the decoder and a prompt switch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from longlive.errors import UserError
from longlive.geometry import FPS, TEMPORAL_STRIDE, Geometry, frames_of
from longlive.metrics.ceilings import Ceilings, floor_ms, product_floor_ms
from longlive.metrics.cost import (
    PassShape,
    Work,
    context_update_shape,
    kv_cache_bytes,
    pass_shapes,
    pass_work,
    recache_shape,
    steps_work,
    text_keys_work,
)
from longlive.metrics.cost_walk import text_encoder_work, vae_decode_work
from longlive.models.sizes import DiTConfig, dit_config
from longlive.models.text_encoder import UMT5Config, text_encoder_config
from longlive.models.vae_networks import SIZES as VAE_SIZES
from longlive.models.vae_networks import VAEConfig

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
STEADY_BLOCK = "block, steady"


@dataclass(frozen=True, slots=True)
class Setup:
    """What is analyzed.

    Attributes:
        size: Size of the transformer; it decides the VAE and the text encoder.
        height_px: Rows of a frame.
        width_px: Columns of a frame.
        window_latent_frames: Latent frames a query can see, sink and own block included.
        sink_latent_frames: First latent frames that are never evicted.
        block_latent_frames: Latent frames denoised together.
        steps: Denoising steps of a block.
        text_tokens: Positions the text encoder runs on; None for all that are attended. The
            transformer attends to the padding in any case.
        dtype: Type of weights and activations, a key of ``DTYPES``.

    Raises:
        UserError: If there is no such size or type, or the text does not fit.
    """

    size: str = "wan-1.3b"
    height_px: int = 480
    width_px: int = 832
    window_latent_frames: int = 12
    sink_latent_frames: int = 3
    block_latent_frames: int = 3
    steps: int = 4
    text_tokens: int | None = None
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"unknown dtype {self.dtype!r}: choose one of {', '.join(DTYPES)}")
        if not 1 <= self.encoded_tokens <= self.config.text_len:
            raise UserError(
                f"{self.text_tokens} text tokens do not fit: {self.size} takes 1 to "
                f"{self.config.text_len}"
            )

    @property
    def config(self) -> DiTConfig:
        """Shape of the transformer."""
        return dit_config(self.size)

    @property
    def vae(self) -> VAEConfig:
        """Size of the VAE that goes with it."""
        return VAE_SIZES["tiny" if self.size == "tiny" else "wan"]

    @property
    def text_encoder(self) -> UMT5Config:
        """Size of the text encoder that goes with it."""
        return text_encoder_config("tiny" if self.size == "tiny" else "umt5-xxl")

    @property
    def encoded_tokens(self) -> int:
        """Positions the text encoder runs on."""
        return self.config.text_len if self.text_tokens is None else self.text_tokens

    @property
    def geometry(self) -> Geometry:
        """Size of a frame and of a block."""
        return Geometry(
            self.height_px,
            self.width_px,
            latent_channels=self.config.latent_channels,
            patch=self.config.patch,
            block_latent_frames=self.block_latent_frames,
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece of a rollout.

    Attributes:
        name: What it is, in words.
        work: What it computes and moves.
        shape: Its tokens, if it is one call of the transformer.
        frames: Frames it makes, if it is a whole block.
    """

    name: str
    work: Work
    shape: PassShape | None = None
    frames: int | None = None


@dataclass(frozen=True, slots=True)
class CostReport:
    """Everything that ``longlive analyze`` knows about a setup.

    Attributes:
        setup: What was analyzed.
        kv_cache_bytes: Size of the video's keys and values.
        entries: The pieces of a rollout.
    """

    setup: Setup
    kv_cache_bytes: int
    entries: tuple[Entry, ...]


def analyze(setup: Setup) -> CostReport:
    """Count what a setup computes.

    Raises:
        UserError: If sizes do not fit together.
    """
    return CostReport(
        setup=setup,
        kv_cache_bytes=kv_cache_bytes(
            setup.config,
            setup.geometry,
            setup.window_latent_frames,
            DTYPES[setup.dtype].itemsize,
        ),
        entries=tuple(_entries(setup)),
    )


def _entries(setup: Setup) -> Iterator[Entry]:
    config, geometry, dtype = setup.config, setup.geometry, DTYPES[setup.dtype]
    window, sink, block = (
        setup.window_latent_frames,
        setup.sink_latent_frames,
        setup.block_latent_frames,
    )

    def one_pass(name: str, shape: PassShape) -> Entry:
        return Entry(name, pass_work(config, shape, dtype.itemsize), shape)

    def decode(frames: int, is_first: bool) -> Work:
        return vae_decode_work(setup.vae, geometry, frames, dtype, is_first=is_first)

    *filling, steady = pass_shapes(geometry, window, sink)
    for index, step in enumerate(filling):
        yield one_pass(f"step, block {index}", step)
    yield one_pass("step, steady", steady)
    yield one_pass("context update, steady", context_update_shape(steady))

    first_decode, next_decode = decode(block, True), decode(block, False)
    yield Entry("vae decode, first latent", decode(1, True))
    yield Entry("vae decode, block 0", first_decode)
    yield Entry("vae decode, later blocks", next_decode)

    # Block 0 is decoded differently, and so listed, even where it fills the window.
    for index, step in enumerate(filling or [steady]):
        steps = steps_work(config, step, setup.steps, dtype.itemsize)
        decoding = next_decode if index else first_decode
        frames = frames_of((index + 1) * block) - frames_of(index * block)
        yield Entry(f"block {index}", steps + decoding, frames=frames)
    steps = steps_work(config, steady, setup.steps, dtype.itemsize)
    frames = TEMPORAL_STRIDE * block
    yield Entry(STEADY_BLOCK, steps + next_decode, frames=frames)

    recached = one_pass("recache", recache_shape(geometry, window, sink))
    encoder = text_encoder_work(setup.text_encoder, setup.encoded_tokens, dtype)
    keys = text_keys_work(config, dtype.itemsize)
    yield recached
    yield one_pass("recache, with unread rows", recache_shape(geometry, window, sink, unread=True))
    yield Entry(f"text encoder, {setup.encoded_tokens} tokens", encoder)
    yield Entry("text keys and values", keys)
    yield Entry("prompt switch", encoder + keys + recached.work)


def document(report: CostReport, ceilings: Ceilings | None) -> dict[str, Any]:
    """A report ready for JSON; floors are null without ceilings.

    Raises:
        UserError: If the ceilings are those of another type of numbers.
    """
    _check_dtype(report, ceilings)
    geometry = report.setup.geometry
    tokens = geometry.tokens_per_latent_frame
    return {
        "setup": asdict(report.setup) | {"text_tokens": report.setup.encoded_tokens},
        "ceilings": None if ceilings is None else asdict(ceilings),
        "tokens_per_latent_frame": tokens,
        "window_tokens": tokens * report.setup.window_latent_frames,
        "kv_cache_bytes": report.kv_cache_bytes,
        "video_fps": FPS,
        "entries": [_entry(entry, ceilings) for entry in report.entries],
    }


def _entry(entry: Entry, ceilings: Ceilings | None) -> dict[str, Any]:
    return {
        "name": entry.name,
        "shape": entry.shape and asdict(entry.shape) | {"attention_pairs": entry.shape.pairs},
        "frames": entry.frames,
        "flops": entry.work.flops,
        "bytes": entry.work.bytes,
        "floor_ms": None if ceilings is None else floor_ms(entry.work, ceilings),
        "kinds": {
            kind: asdict(product)
            | {"floor_ms": None if ceilings is None else product_floor_ms(product, ceilings)}
            for kind, product in entry.work.kinds.items()
        },
    }


def _check_dtype(report: CostReport, ceilings: Ceilings | None) -> None:
    if ceilings is not None and ceilings.dtype != report.setup.dtype:
        raise UserError(
            f"the ceilings of {ceilings.name} are those of {ceilings.dtype}, not of "
            f"{report.setup.dtype}: set --dtype {ceilings.dtype}, or measure with "
            "--measure-ceilings"
        )
