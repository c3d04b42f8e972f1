"""The text-to-video model: prompts in, a stream of frames out."""

# Shape suffixes: B batch, M tokens of the prompt, E text width, N heads, D head dim.

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from longlive.attention.backends import BackendName, resolve_attention
from longlive.attention.rope import RopeKind
from longlive.data.prompts import PromptDataModule, PromptScript
from longlive.errors import UserError
from longlive.geometry import FPS, Geometry, frames_of, latent_frames_for_seconds
from longlive.models.dit import stack_text
from longlive.modules.components import (
    Components,
    DecoderName,
    LoraMode,
    build_components,
    with_student,
)
from longlive.rollout.denoiser import CausalDenoiser, Denoiser, GuidedDenoiser
from longlive.rollout.hooks import CallbackHooks
from longlive.rollout.job import RolloutJob
from longlive.rollout.noise import SeededNoise, SeedOf
from longlive.rollout.prompts import Prompts, PromptTimeline
from longlive.rollout.rehearsal import rehearse, rehearse_decoding, release_unused
from longlive.rollout.state import RolloutSpec, RolloutState, SamplerName, allocate_caches
from longlive.rollout.stream import RolloutStream
from longlive.rollout.transitions import Mixture, only
from longlive.schedule import DenoisingSchedule
from longlive.weights.fingerprint import fingerprint

log = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
DENOISING_STEPS = (1000, 750, 500, 250)
"""The steps that the published model was distilled for."""


@dataclass(slots=True)
class RolloutReport:
    """What ``predict_step`` returns for one video; the frames left through the hooks.

    Not frozen: the Trainer refuses to collect what it cannot write to.

    Attributes:
        index: Place among the videos of the run.
        frames: Frames made.
        seconds: Wall-clock time they took, decoding included.
    """

    index: int
    frames: int
    seconds: float


class LongLive(pl.LightningModule):
    """Causal, few-step video diffusion with a KV cache (LongLive, arXiv:2509.22622).

    Weights are not loaded when it is built but when it is given a device: by the Trainer, or by
    :meth:`prepare`.

    Args:
        weights: ``embedded``, ``synthetic``, or a folder of weights, see
            :func:`longlive.modules.components.build_components`.
        size: Size of the transformer; the embedded model knows its own.
        height_px: Rows of a frame.
        width_px: Columns of a frame.
        seconds: Length of a video; rounded up to whole blocks.
        latent_frames: The same in latent frames, whole blocks; exactly one of the two.
        denoising_steps: Steps in [1, 1000] that a distilled model was trained with, by default
            those of the published one; or the number of equal steps for an undistilled one.
        shift: Time shift of the noise levels.
        sampler: ``renoise`` for a distilled model, ``euler`` for an undistilled one.
        guidance: Classifier-free guidance; 1 switches it off.
        negative_prompt: What guidance steers away from.
        block_latent_frames: Latent frames denoised together.
        window_latent_frames: Latent frames a query can see; None for all.
        sink_latent_frames: First latent frames that are never evicted.
        positions: ``relative`` lifts the length limit of ``absolute``.
        keeps_sink: Whether the sink keeps the first prompt at a prompt switch.
        attention: Backend of the self-attention.
        decoder: The VAE's decoder, or the tiny one.
        lora: Merge the published adapters, or run them beside the weights as the reference does.
        dtype: Type of the weights; ``auto`` is bfloat16 on a GPU and float32 on a CPU.
        first_denoising_steps: Steps of a video's first block, if a distilled student keeps more.
        first_frame_alone: Whether a video's first latent frame is denoised, and shown, before the
            rest of its block: sooner, and another video.
        updates_context: Whether clean keys are stored by a pass of their own; a student may have
            been distilled without it.
        student: Name of a distilled student of the embedded model, ``4step`` for one; None for the
            many-step model. Steps, sampler and guidance must be the student's
            (``configs/student``).
        recaches: Whether a prompt switch rebuilds the window under the new prompt.
        recached_latent_frames: How many of its newest latent frames it rebuilds, whole blocks; all
            by default. Fewer are faster and approximate: the others keep the old prompt's keys.

    Raises:
        UserError: If the settings cannot work together.
    """

    def __init__(  # noqa: PLR0913 - one argument is one key of the configuration.
        self,
        weights: str = "embedded",
        size: Literal["tiny", "wan-1.3b", "wan-14b"] = "wan-1.3b",
        height_px: int = 480,
        width_px: int = 832,
        seconds: float | None = None,
        latent_frames: int | None = None,
        denoising_steps: list[int] | int | None = None,
        shift: float = 5.0,
        sampler: SamplerName = "renoise",
        guidance: float = 1.0,
        negative_prompt: str = "",
        block_latent_frames: int = 3,
        window_latent_frames: int | None = 12,
        sink_latent_frames: int = 3,
        positions: RopeKind = "absolute",
        keeps_sink: bool = True,
        attention: BackendName = "auto",
        decoder: DecoderName = "wan",
        lora: LoraMode = "merged",
        dtype: Literal["auto", "bfloat16", "float32"] = "auto",
        first_denoising_steps: list[int] | None = None,
        first_frame_alone: bool = False,
        updates_context: bool = True,
        student: str | None = None,
        recaches: bool = True,
        recached_latent_frames: int | None = None,
    ) -> None:
        # First, while the arguments are the only names: what builds the same model again.
        given = {name: value for name, value in locals().items() if name in _settings_of(LongLive)}
        super().__init__()
        self.settings: dict[str, Any] = given
        # Whatever cannot work is refused before any weight is read. The patch of the embedded
        # model is not known yet; one position is the finest there is.
        geometry = Geometry(height_px, width_px, patch=1, block_latent_frames=block_latent_frames)
        if (seconds is None) == (latent_frames is None):
            raise UserError("give the length of a video once: as seconds or as latent_frames")
        if seconds is not None:
            latent_frames = latent_frames_for_seconds(seconds, block_latent_frames)
        self.weights = weights
        self.size = size
        self.height_px, self.width_px = height_px, width_px
        self.shift = shift
        self.negative_prompt = negative_prompt
        self.block_latent_frames = block_latent_frames
        self.attention: BackendName = attention
        self.decoder: DecoderName = decoder
        self.lora: LoraMode = lora
        self.dtype_name = dtype
        self.student = student
        self.job: RolloutJob | None = None
        self.parts: Components | None = None
        self._weights_hash: str | None = None
        if denoising_steps is None:
            denoising_steps = list(DENOISING_STEPS)
        schedule = (
            DenoisingSchedule.uniform(denoising_steps, shift=shift)
            if isinstance(denoising_steps, int)
            else DenoisingSchedule.from_steps(denoising_steps, shift=shift)
        )
        first_schedule = None
        if first_denoising_steps is not None:
            first_schedule = DenoisingSchedule.from_steps(first_denoising_steps, shift=shift)
        self.spec = RolloutSpec(
            geometry=geometry,
            schedule=schedule,
            latent_frames=latent_frames,
            window_latent_frames=window_latent_frames,
            sink_latent_frames=sink_latent_frames,
            positions=positions,
            keeps_sink=keeps_sink,
            sampler=sampler,
            guidance=guidance,
            first_schedule=first_schedule,
            first_frame_alone=first_frame_alone,
            updates_context=updates_context,
            recaches=recaches,
            recached_latent_frames=recached_latent_frames,
        ).check()

    def setup(self, stage: str) -> None:
        """Refuse prompts that do not fit the video; the weights are not read yet.

        Raises:
            UserError: If a prompt would never be shown.
        """
        data = getattr(self.trainer, "datamodule", None)
        scripts = data.scripts if isinstance(data, PromptDataModule) else ()
        for script in scripts:
            try:
                self._timeline_of(script)
            except UserError as error:
                place = f"video {script.index}: " if len(scripts) > 1 else ""
                raise UserError(f"{place}{error}") from error

    def configure_model(self) -> None:
        """Load the weights onto the trainer's device."""
        self.prepare(self.trainer.strategy.root_device)

    def prepare(self, device: torch.device | str | None = None) -> "LongLive":
        """Load the weights, once.

        Args:
            device: Where to; a GPU if there is one by default.

        Raises:
            UserError: If weights are missing, damaged or of another size.
        """
        if self.parts is not None:
            return self
        default = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(default if device is None else device)
        auto = "bfloat16" if device.type == "cuda" else "float32"
        self.parts = build_components(
            self.weights,
            size=self.size,
            decoder=self.decoder,
            lora=self.lora,
            device=device,
            dtype=DTYPES[auto if self.dtype_name == "auto" else self.dtype_name],
            student=self.student,
        )
        # Registered, so that optimisations find the layers and the trainer moves them.
        self.dit = self.parts.dit
        self.text_encoder = self.parts.text_encoder
        self.vae = self.parts.decoder
        log.info("weights: %s (%s)", self.parts.kind, self.parts.source)
        if self.parts.kind == "synthetic":
            log.warning("synthetic weights: the video shows noise and says nothing about quality")
        return self

    def use_student(self, student: str) -> None:
        """Go on with another student's weights in the place of this one's.

        What was compiled or captured for the transformer is so for these as well.

        Args:
            student: Of the size of the one that is loaded; ``embedded.steps_of_alike`` has them.

        Raises:
            UserError: If there is no such student.
        """
        self.parts = with_student(cast(Components, self.prepare().parts), self.weights, student)
        self._weights_hash = None
        self.student = self.settings["student"] = student

    def stream(
        self,
        prompts: PromptTimeline | Prompts | str,
        *,
        seed: int | SeedOf | tuple[int, ...] = 0,
        index: int = 0,
        latent_frames: int | None = -1,
        callbacks: Iterable[pl.Callback] = (),
        embed: Callable[[str], Tensor] | None = None,
    ) -> RolloutStream:
        """Start a video; iterate over the result for its blocks.

        Args:
            prompts: What it shows, and when.
            seed: Of its noise, of the noise of each block, or one for each video of a batch.
            index: Place among the videos of a run, for file names.
            latent_frames: Its length; None goes on until stopped, -1 is the configured one.
            callbacks: Optimisations and observers.
            embed: Encodes one prompt in place of :meth:`encode`, perhaps ahead of time.

        Raises:
            UserError: If the settings cannot work.
        """
        self.prepare()
        parts = cast(Components, self.parts)
        first_seed = seed(0) if callable(seed) else seed[0] if isinstance(seed, tuple) else seed
        self.job = RolloutJob(index, first_seed, parts.kind, parts.source)
        trainer = self._trainer
        hooks = CallbackHooks(callbacks, self, trainer)
        spec = hooks.configure_rollout(self._spec_for(parts, latent_frames))
        device = next(parts.dit.parameters()).device
        dtype = parts.dit.dtype_of_weights
        caches = hooks.configure_caches(
            lambda spec: allocate_caches(spec, parts.dit.config, dtype, device)
        )
        state = RolloutState.start(spec, caches(spec), device)
        denoiser: Denoiser = CausalDenoiser(
            parts.dit,
            state.cache,
            state.cross_cache,
            spec.geometry,
            resolve_attention(self.attention, device, dtype),
        )
        denoiser = hooks.configure_denoiser(denoiser)
        if spec.guidance != 1:
            denoiser = GuidedDenoiser(denoiser, spec.guidance)
        if isinstance(prompts, str):
            prompts = PromptTimeline.single(prompts)
        if isinstance(prompts, PromptTimeline):
            prompts = prompts.start()
        encode = hooks.configure_text_encoder(embed or (lambda prompt: self.encode([prompt])))
        guided = spec.guidance != 1
        if spec.rehearses:
            nothing = torch.zeros(spec.geometry.block_shape(spec.batch), dtype=dtype, device=device)
            rehearse(state, denoiser, nothing)
            if spec.is_shown:
                rehearsed = hooks.configure_decoder(parts.decoder.open_stream())
                rehearse_decoding(rehearsed, nothing, spec.parts_of(0))
            release_unused(device)
        return RolloutStream(
            state=state,
            denoiser=denoiser,
            decoder=hooks.configure_decoder(parts.decoder.open_stream()),
            noise=SeededNoise(seed, spec.geometry.block_shape(spec.batch), dtype, device),
            prompts=hooks.configure_prompts(prompts),
            text_of=lambda prompt: self._text_keys_values(only(prompt), encode, guided=guided),
            hooks=hooks,
            blended_text_of=lambda mix: self._text_keys_values(mix, encode, guided=guided),
        )

    def predict_step(self, batch: PromptScript, batch_idx: int = 0) -> RolloutReport:
        """Make one video; its frames leave through ``on_frames_ready``."""
        started = time.perf_counter()
        timeline = self._timeline_of(batch)
        if batch.weights_hash not in (None, self.weights_hash()):
            raise UserError(
                "the session was made with other weights, or in another precision: set "
                "model.weights and model.dtype to those it was made with"
            )
        callbacks = cast(list[pl.Callback], getattr(self.trainer, "callbacks", []))
        stream = self.stream(
            timeline,
            seed=batch.seed_of if batch.later_seeds else batch.seed,
            index=batch.index,
            latent_frames=-1 if batch.latent_frames is None else batch.latent_frames,
            callbacks=callbacks,
        )
        # Asking for the frames would make the next block wait for the decoder.
        frames = frames_of(sum(block.latents.shape[1] for block in stream))
        seconds = time.perf_counter() - started
        log.info("video %d: %.1f s of video in %.1f s", batch.index, frames / FPS, seconds)
        return RolloutReport(batch.index, frames, seconds)

    def _timeline_of(self, script: PromptScript) -> PromptTimeline:
        latent_frames = script.latent_frames or self.spec.latent_frames
        if latent_frames is None:
            raise UserError("a video made by predict needs a length: set seconds")
        return script.timeline(latent_frames, self.block_latent_frames)

    def weights_hash(self) -> str:
        """Name the loaded weights, see :func:`longlive.weights.fingerprint.fingerprint`."""
        parts = cast(Components, self.prepare().parts)
        if self._weights_hash is None:
            modules = (parts.dit, parts.text_encoder, parts.decoder)
            self._weights_hash = fingerprint(modules)
        return self._weights_hash

    def encode(self, prompts: list[str]) -> Tensor:
        """Text embeddings ``[B, M, E]``, zero past each prompt's end. An empty prompt is none."""
        parts = cast(Components, self.prepare().parts)
        device = next(parts.text_encoder.parameters()).device
        tokens = parts.tokenizer(prompts, allow_empty=True)
        # Cut to the longest prompt on the host, where that needs no waiting for the device.
        longest = max(1, int(tokens.mask.sum(dim=1).max()))
        ids, mask = (
            _to(device, part[:, :longest].contiguous()) for part in (tokens.ids, tokens.mask)
        )
        embeddings: Tensor = parts.text_encoder(ids, mask, trim=False)
        missing = tokens.ids.shape[1] - longest
        return torch.nn.functional.pad(embeddings, (0, 0, 0, missing))

    def _text_keys_values(
        self, mixture: Mixture, embed: Callable[[str], Tensor], *, guided: bool
    ) -> list[tuple[Tensor, Tensor]]:
        dit = cast(Components, self.parts).dit
        prompted = dit.text_keys_values(_mixed(mixture, embed))
        if not guided:
            return prompted
        return stack_text([prompted, dit.text_keys_values(embed(self.negative_prompt))])

    def _spec_for(self, parts: Components, latent_frames: int | None) -> RolloutSpec:
        config = parts.dit.config
        geometry = Geometry(
            self.height_px,
            self.width_px,
            config.latent_channels,
            config.patch,
            self.block_latent_frames,
        )
        length = self.spec.latent_frames if latent_frames == -1 else latent_frames
        return replace(self.spec, geometry=geometry, latent_frames=length)


def _settings_of(kind: type) -> list[str]:
    return list(signature(kind).parameters)


def _mixed(mixture: Mixture, embed: Callable[[str], Tensor]) -> Tensor:
    """Weigh text embeddings ``[B, M, E]``; one prompt alone is left as it is."""
    if len(mixture) == 1:
        return embed(mixture[0][0])
    return torch.stack([weight * embed(prompt) for prompt, weight in mixture]).sum(0)


def _to(device: torch.device, x: Tensor) -> Tensor:
    """Copy to a device; pinned, so that the host does not wait for it."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
