"""Callbacks with hooks inside a rollout."""

from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from nano import Rollout, nano_dit, spec

from longlive.errors import UserError
from longlive.rollout.hooks import CallbackHooks, NoHooks, RolloutCallback, RolloutHooks, WrapOrder
from longlive.rollout.prompts import PromptTimeline

MODULE = pl.LightningModule()


class Recorder(RolloutCallback):
    """Writes down what it is told."""

    def __init__(self, told: list[tuple]) -> None:
        self.told = told

    def on_prompt_switch(self, trainer, pl_module, state) -> None:
        self.told.append(("switch", trainer, pl_module, state.prompt))

    def on_denoise_step_start(self, trainer, pl_module, state, sigma) -> None:
        self.told.append(("step", sigma))

    def on_latents_ready(self, trainer, pl_module, state, x0_BFCHW) -> None:
        self.told.append(("latents", x0_BFCHW.shape))


class Weights(RolloutCallback):
    wrap_order = WrapOrder.WEIGHTS

    def configure_denoiser(self, trainer, pl_module, denoiser):
        return f"weights({denoiser})"

    def configure_rollout(self, trainer, pl_module, spec):
        return replace(spec, latent_frames=spec.latent_frames + 2)


class Kernels(RolloutCallback):
    def configure_denoiser(self, trainer, pl_module, denoiser):
        return f"kernels({denoiser})"

    def configure_decoder(self, trainer, pl_module, decoder):
        return f"kernels({decoder})"


class Capture(RolloutCallback):
    wrap_order = WrapOrder.CAPTURE

    def configure_denoiser(self, trainer, pl_module, denoiser):
        return f"capture({denoiser})"

    def configure_decoder(self, trainer, pl_module, decoder):
        return f"capture({decoder})"

    def configure_rollout(self, trainer, pl_module, spec):
        return replace(spec, latent_frames=spec.latent_frames * 2)


def test_changes_are_applied_in_wrap_order_whatever_the_order_of_the_list():
    hooks = CallbackHooks([Capture(), Kernels(), Weights()], MODULE)
    assert hooks.configure_denoiser("plain") == "capture(kernels(weights(plain)))"
    assert hooks.configure_decoder("plain") == "capture(kernels(plain))"
    assert hooks.configure_rollout(spec(latent_frames=8)).latent_frames == (8 + 2) * 2


def test_callbacks_of_the_same_order_keep_the_order_of_the_list():
    class Other(Kernels):
        def configure_denoiser(self, trainer, pl_module, denoiser):
            return f"other({denoiser})"

    hooks = CallbackHooks([Other(), Kernels()], MODULE)
    assert hooks.configure_denoiser("plain") == "kernels(other(plain))"


def test_a_changed_spec_is_checked():
    class Odd(RolloutCallback):
        def configure_rollout(self, trainer, pl_module, spec):
            return replace(spec, latent_frames=7)

    with pytest.raises(UserError, match="not whole blocks"):
        CallbackHooks([Odd()], MODULE).configure_rollout(spec())


def test_the_same_optimization_twice_is_a_user_error_that_names_it():
    with pytest.raises(UserError, match="Kernels is configured twice"):
        CallbackHooks([Kernels(), Weights(), Kernels()], MODULE)


def test_two_ordinary_lightning_callbacks_of_a_kind_are_nobody_s_business():
    hooks = CallbackHooks([Timer(), Kernels(), Timer()], MODULE)
    assert [type(callback) for callback in hooks.callbacks] == [Kernels]


def test_callbacks_are_told_with_the_trainer_and_the_module_first():
    told: list[tuple] = []
    trainer = object()
    hooks = CallbackHooks([Timer(), Recorder(told)], MODULE, trainer)
    asked = spec(latent_frames=2)
    Rollout(nano_dit(), asked, hooks=hooks).latents()
    steps = [("step", sigma) for sigma in asked.schedule.sigmas]
    assert told == [
        ("switch", trainer, MODULE, "a"),
        *steps,
        ("latents", torch.Size(asked.geometry.block_shape(1))),
    ]


def test_a_callback_without_hooks_changes_nothing():
    asked = spec(latent_frames=8)
    timeline = PromptTimeline.switching("ab", [4])
    plain = Rollout(nano_dit(), asked, timeline).latents()
    hooks = CallbackHooks([RolloutCallback()], MODULE)
    assert hooks.configure_rollout(asked) is asked
    assert torch.equal(Rollout(nano_dit(), asked, timeline, hooks=hooks).latents(), plain)


def test_nobody_may_listen():
    hooks: RolloutHooks = NoHooks()
    Rollout(nano_dit(), spec(latent_frames=2), hooks=hooks).latents()


def test_everybody_hears_of_the_end_even_if_one_fails():
    heard = []

    class Fails(RolloutCallback):
        wrap_order = WrapOrder.WEIGHTS

        def on_rollout_end(self, trainer, pl_module, state):
            raise OSError("disk")

    class Listens(RolloutCallback):
        def on_rollout_end(self, trainer, pl_module, state):
            heard.append("end")

    hooks = CallbackHooks([Fails(), Listens()], pl.LightningModule())
    with pytest.raises(OSError, match="disk"):
        hooks.call("on_rollout_end", None)
    assert heard == ["end"]
