"""The plug: callbacks with hooks inside a rollout.

A callback that changes something overrides a ``configure_*`` hook and returns the changed thing;
one that watches overrides ``on_*`` hooks and changes nothing. Hooks run on the host, outside
compiled and captured regions, and must not make it wait for the device.
"""

# Shape suffixes: B batch, F latent frames, T frames, C channels, H W rows and columns.

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, ClassVar, Protocol

import lightning.pytorch as pl
from torch import Tensor

from longlive.errors import UserError
from longlive.rollout.decode import StreamingDecoder
from longlive.rollout.denoiser import Denoiser
from longlive.rollout.prompts import Prompts
from longlive.rollout.state import Caches, RolloutSpec, RolloutState

EncodeText = Callable[[str], Tensor]
"""A prompt's embeddings ``[1, M, E]``; positions past the last of M are zero."""
MakeCaches = Callable[[RolloutSpec], Caches]
"""Gives a rollout caches that no other one is using."""


class WrapOrder(IntEnum):
    """In which order changes are applied, whatever the order in the configuration."""

    WEIGHTS = 0
    KERNELS = 1
    COMPILE = 2
    CAPTURE = 3
    STREAM = 4


class RolloutCallback(pl.Callback):
    """A Lightning callback with hooks inside a rollout; each does nothing until overridden."""

    wrap_order: ClassVar[WrapOrder] = WrapOrder.KERNELS
    replaces_layers: ClassVar[bool] = False
    """Whether other weights can no longer be loaded into the transformer."""

    def configure_rollout(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, spec: RolloutSpec
    ) -> RolloutSpec:
        """Return the spec to follow. No buffer exists yet."""
        return spec

    def configure_caches(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, make: MakeCaches
    ) -> MakeCaches:
        """Return what gives a rollout its caches. The weights are loaded and on their device."""
        return make

    def configure_text_encoder(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, encode: EncodeText
    ) -> EncodeText:
        """Return what encodes a prompt. The weights are loaded and on their device."""
        return encode

    def configure_denoiser(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, denoiser: Denoiser
    ) -> Denoiser:
        """Return the denoiser to call. The weights are loaded and on their device."""
        return denoiser

    def configure_prompts(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, prompts: Prompts
    ) -> Prompts:
        """Return what says which prompt is active; of a rollout that begins now."""
        return prompts

    def configure_decoder(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, decoder: StreamingDecoder
    ) -> StreamingDecoder:
        """Return the decoder to call. The weights are loaded and on their device."""
        return decoder

    def on_rollout_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        """Called when the caches are allocated and no block has been denoised."""

    def on_prompt_request(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        prompt: str,
    ) -> None:
        """Called when a prompt is asked for while the video runs, in the thread that asks."""

    def on_text_encoding_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        """Called when a prompt is due (the first one too) and not yet encoded."""

    def on_prompt_switch(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        """Called when a new prompt is active (the first one too) and the window not yet rebuilt."""

    def on_recache_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        """Called before the window's keys are rebuilt; there are switches that leave them."""

    def on_recache_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        """Called when the window's keys are rebuilt under the new prompt."""

    def on_block_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        """Called before the first denoising step of a block."""

    def on_denoise_step_start(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        sigma: float,
    ) -> None:
        """Called before the network."""

    def on_denoise_step_end(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        x0_BFCHW: Tensor,
    ) -> None:
        """Called with the step's estimate of the clean latents."""

    def on_block_abandoned(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        """Called when a block is given up between two steps, to begin again with a new prompt."""

    def on_part_ready(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        x0_BFCHW: Tensor,
    ) -> None:
        """Called when a part of a block is clean, but of the last, with which the block is."""

    def on_latents_ready(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        x0_BFCHW: Tensor,
    ) -> None:
        """Called when a block is clean; its clean keys are not stored yet."""

    def on_context_update_start(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        """Called before the pass that stores the clean keys; the block has been decoded.

        There is none before a prompt that is known to replace them, and one more after the first
        part of a block in parts. If a prompt is withdrawn it comes when the block has ended.
        """

    def on_context_update_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        """Called when they are stored."""

    def on_block_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        """Called when a block's clean keys are stored, or left to the next prompt."""

    def on_frames_ready(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        frames_BTCHW: Tensor,
    ) -> None:
        """Called with decoded frames in [0, 1], on their device, in display order.

        The current stream is the one that makes them.
        """

    def on_rollout_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        """Called when the last block is done, or the rollout was stopped or failed."""


class RolloutHooks(Protocol):
    """Who is told what happens in a rollout."""

    def call(self, hook: str, state: RolloutState, *args: Any) -> None:
        """Call ``hook`` of everybody who listens."""
        ...


class NoHooks:
    """Nobody listens."""

    def call(self, hook: str, state: RolloutState, *args: Any) -> None:
        """Do nothing."""


class CallbackHooks:
    """Calls the rollout callbacks among a trainer's callbacks.

    Lightning's own dispatcher asks every callback for the hook and fails on its own ones, so only
    :class:`RolloutCallback` are called.

    Args:
        callbacks: Of any kind.
        pl_module: The module that runs the rollout.
        trainer: None outside Lightning.

    Raises:
        UserError: If the same optimization is listed twice; it would be applied twice.
    """

    def __init__(
        self,
        callbacks: Iterable[pl.Callback],
        pl_module: pl.LightningModule,
        trainer: pl.Trainer | None = None,
    ) -> None:
        mine = [callback for callback in callbacks if isinstance(callback, RolloutCallback)]
        self.callbacks = sorted(mine, key=lambda callback: callback.wrap_order)
        self.pl_module = pl_module
        self.trainer = trainer
        kinds = [type(callback) for callback in mine]
        twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
        if twice is not None:
            raise UserError(f"{twice.__name__} is configured twice: name its overlay once")

    def call(self, hook: str, state: RolloutState, *args: Any) -> None:
        """Call ``hook`` of every callback, in order; all hear of the end, even if one fails."""
        errors: list[Exception] = []
        for callback in self.callbacks:
            try:
                getattr(callback, hook)(self.trainer, self.pl_module, state, *args)
            except Exception as error:
                if hook != "on_rollout_end":
                    raise
                errors.append(error)
        if errors:
            raise errors[0]

    def configure_rollout(self, spec: RolloutSpec) -> RolloutSpec:
        """Let every callback change the spec.

        Raises:
            UserError: If the changed spec cannot work.
        """
        for callback in self.callbacks:
            spec = callback.configure_rollout(self.trainer, self.pl_module, spec)
        return spec.check()

    def configure_caches(self, make: MakeCaches) -> MakeCaches:
        """Let every callback change where caches come from, the first in order innermost."""
        for callback in self.callbacks:
            make = callback.configure_caches(self.trainer, self.pl_module, make)
        return make

    def configure_text_encoder(self, encode: EncodeText) -> EncodeText:
        """Let every callback wrap the text encoder, the first in order innermost."""
        for callback in self.callbacks:
            encode = callback.configure_text_encoder(self.trainer, self.pl_module, encode)
        return encode

    def configure_denoiser(self, denoiser: Denoiser) -> Denoiser:
        """Let every callback wrap the denoiser, the first in order innermost."""
        for callback in self.callbacks:
            denoiser = callback.configure_denoiser(self.trainer, self.pl_module, denoiser)
        return denoiser

    def configure_prompts(self, prompts: Prompts) -> Prompts:
        """Let every callback wrap the prompts, the first in order innermost."""
        for callback in self.callbacks:
            prompts = callback.configure_prompts(self.trainer, self.pl_module, prompts)
        return prompts

    def configure_decoder(self, decoder: StreamingDecoder) -> StreamingDecoder:
        """Let every callback wrap the decoder, the first in order innermost."""
        for callback in self.callbacks:
            decoder = callback.configure_decoder(self.trainer, self.pl_module, decoder)
        return decoder
