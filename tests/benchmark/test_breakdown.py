"""Layers are timed even where a recipe compiles or captures them, and the report says how."""

from dataclasses import replace

import pytest
import torch

from longlive.benchmark.breakdown import profile
from longlive.callbacks.compile import CompileLayers
from longlive.models.layers import DiTLayer
from longlive.rollout.hooks import RolloutCallback, WrapOrder

CPU = torch.device("cpu")
PARTS = {"QKV projection", "RoPE", "KV-cache update", "attention", "cross-attention", "FFN"}


class Capture(RolloutCallback):
    """Runs the layers where hooks do not see them, like a graph that is replayed."""

    wrap_order = WrapOrder.CAPTURE

    def configure_denoiser(self, trainer, pl_module, denoiser):
        def replay(x_BFCHW, inputs):
            denoiser(x_BFCHW, inputs)
            return torch.zeros_like(x_BFCHW)

        return replay


class CountingDecoder(RolloutCallback):
    """Counts the blocks that are decoded."""

    decoded = 0

    def on_frames_ready(self, trainer, pl_module, state, frames_BTCHW):
        self.decoded += 1


@pytest.fixture
def config(short):
    return replace(short, num_output_frames=18)


def test_the_layers_of_compiled_and_captured_passes_are_timed_in_a_run_without_that(model, config):
    callbacks = [CompileLayers(backend="eager", rehearses=False), Capture()]
    model.prepare(CPU)
    found = profile(model, callbacks, config)
    breakdown = found.breakdown
    assert {row.part for row in breakdown.layers} >= PARTS
    assert breakdown.layers_without == ("CompileLayers", "Capture")
    assert not breakdown.notes
    # The recipe is what it was: rollouts to come are compiled.
    layers = [module for module in model.modules() if isinstance(module, DiTLayer)]
    assert layers
    assert all(layer._compiled_call_impl is not None for layer in layers)


def test_an_eager_recipe_is_timed_as_it_is(model, config):
    counting = CountingDecoder()
    found = profile(model.prepare(CPU), [counting], config)
    assert found.breakdown.layers_without == ()
    assert {row.part for row in found.breakdown.layers} >= PARTS
    # The regions have a decoder, and nothing is decoded beside the layers.
    assert counting.decoded == 6
    assert any(row.path[-1] == "VAE decode" for row in found.breakdown.regions)
