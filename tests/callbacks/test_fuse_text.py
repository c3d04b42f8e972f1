"""One product for the prompt's keys and values of all layers, with the weights where they were."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from graph_tape import TapeRecorder
from nano_model import SETTINGS
from torch import Tensor, nn

from longlive.callbacks.cuda_graph import CaptureDenoiser
from longlive.callbacks.fuse_projections import FuseProjections
from longlive.callbacks.fuse_text import FuseTextProjections, StackedText
from longlive.callbacks.quantize import QuantizeLinears
from longlive.errors import UserError
from longlive.models.dit import project_text
from longlive.modules.longlive import LongLive
from longlive.rollout.prompts import PromptTimeline
from longlive.weights.lora import add_lora

SWITCHING = PromptTimeline.switching(("a large red circle", "a small blue square"), [6])


def model_of(folder: Path, **settings) -> LongLive:
    settings = {"latent_frames": 12, **SETTINGS, **settings}
    return LongLive(weights=str(folder), **settings).prepare("cpu")


def latents(model: LongLive, *callbacks: pl.Callback) -> Tensor:
    blocks = model.stream(SWITCHING, seed=1, callbacks=callbacks)
    return torch.cat([block.latents for block in blocks], 1)


@torch.no_grad()
def test_every_layer_gets_its_own_keys_and_values_from_one_product(folder, monkeypatch):
    dit = model_of(folder).dit.double()
    layers = list(dit.layers)
    for weight in dit.parameters():
        weight.data.normal_()
    text = torch.randn(2, 5, layers[0].cross_attn.k.in_features, dtype=torch.float64)
    expected = project_text(layers, text)
    stacked = StackedText(layers)
    calls = []
    linear = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *x: calls.append(x) or linear(*x))
    got = stacked(layers, text)
    assert len(calls) == 1
    assert len(got) == len(layers) > 1
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
        assert all(part.is_contiguous() for part in mine)


@torch.no_grad()
def test_there_is_one_copy_of_the_weights_and_what_is_loaded_later_is_multiplied(folder):
    dit = model_of(folder).dit
    expected = {name: value.clone() for name, value in dit.state_dict().items()}
    dit.project_text = StackedText(list(dit.layers))
    assert list(dit.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in dit.state_dict().items())
    other = {name: torch.randn_like(value) for name, value in expected.items()}
    dit.load_state_dict(other)
    text = torch.randn(1, 5, dit.config.text_width)
    plain = model_of(folder).dit
    plain.load_state_dict(other)
    pairs = zip(dit.text_keys_values(text), plain.text_keys_values(text), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0}], ids=str)
def test_a_video_is_the_same_and_the_next_one_stacks_nothing_anew(folder, settings):
    expected = latents(model_of(folder, **settings))
    model = model_of(folder, **settings)
    torch.testing.assert_close(latents(model, FuseTextProjections()), expected)
    stacked = model.dit.project_text
    torch.testing.assert_close(latents(model, FuseProjections(), FuseTextProjections()), expected)
    assert model.dit.project_text is stacked
    # There and back: each tensor gets memory of its own.
    model.dit.double().float()
    assert not stacked.is_stacked
    torch.testing.assert_close(latents(model, FuseTextProjections()), expected)
    assert model.dit.project_text.is_stacked


def test_with_gradients_and_after_a_move_without_the_callback_the_layers_are_asked(folder):
    dit = model_of(folder).dit
    dit.project_text = StackedText(list(dit.layers))
    text = torch.randn(1, 5, dit.config.text_width)
    dit.requires_grad_(True)
    keys, values = dit.text_keys_values(text)[-1]
    assert keys.requires_grad
    assert values.requires_grad
    model = model_of(folder)
    expected = latents(model, FuseTextProjections())
    model.dit.double().float()
    with torch.no_grad():
        for weight in model.dit.parameters():
            weight.mul_(2)
    plain = model_of(folder)
    with torch.no_grad():
        for weight in plain.dit.parameters():
            weight.mul_(2)
    got = latents(model)
    torch.testing.assert_close(got, latents(plain), rtol=0, atol=1e-3)
    assert not torch.allclose(got, expected)


def test_a_capture_notices_that_the_weights_have_moved(folder):
    model, capture, recorder = model_of(folder), CaptureDenoiser(), TapeRecorder()
    capture._recorder = lambda device: recorder
    capture.missing = lambda device: None
    expected = latents(model, capture)
    count = recorder.count
    torch.testing.assert_close(latents(model, capture, FuseTextProjections()), expected)
    assert recorder.count == 2 * count


def test_quantized_keys_and_values_are_refused_in_either_order_and_adapters_too(folder):
    for order in (1, -1):
        callbacks = [FuseTextProjections(), QuantizeLinears("int8", keeps=["*.ffn.*"])][::order]
        with pytest.raises(UserError, match=r"add \*\.cross_attn\.\[kv\] to what the quantization"):
            latents(model_of(folder), *callbacks)
    expected = latents(model_of(folder), QuantizeLinears("int8"))
    got = latents(model_of(folder), FuseTextProjections(), QuantizeLinears("int8"))
    torch.testing.assert_close(got, expected)
    model = model_of(folder)
    add_lora(model.dit, rank=2, alpha=2)
    with pytest.raises(UserError, match="set lora to merged"):
        latents(model, FuseTextProjections())
