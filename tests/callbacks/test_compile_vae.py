"""Compilation of the VAE's residual blocks for training."""

import pytest
import torch

from longlive.callbacks.compile_vae import CompileVAEBlocks
from longlive.models.vae import WanVAE
from longlive.models.vae_layers import ResidualBlock
from longlive.models.vae_networks import VAEConfig


@pytest.fixture
def usual_limit():
    """Not by monkeypatch: it would delete the option."""
    before = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = 8
    yield
    torch._dynamo.config.recompile_limit = before


@pytest.mark.usefixtures("usual_limit")
def test_the_blocks_that_are_trained_are_compiled_and_torch_does_not_give_up_early():
    vae = WanVAE(VAEConfig(base_width=2))
    vae.encoder.requires_grad_(False)
    CompileVAEBlocks().on_fit_start(None, vae)  # type: ignore[arg-type]
    blocks = [module for module in vae.modules() if isinstance(module, ResidualBlock)]
    trained = {block for block in vae.decoder.modules() if isinstance(block, ResidualBlock)}
    assert {block for block in blocks if block._compiled_call_impl is not None} == trained
    assert torch._dynamo.config.recompile_limit >= 28, "widths times clip lengths"
