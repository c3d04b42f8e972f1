"""One product in place of three, with the weights where they were."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from graph_tape import TapeRecorder
from nano_model import SETTINGS
from torch import Tensor, nn
from torch._dynamo.utils import counters

from longlive.attention.backends import sdpa_attention
from longlive.attention.core import FullAttention
from longlive.attention.rope import rotation
from longlive.callbacks.compile import CompileLayers
from longlive.callbacks.cuda_graph import CaptureDenoiser
from longlive.callbacks.fuse_projections import FuseProjections, StackedSelfAttention
from longlive.callbacks.quantize import QuantizeLinears
from longlive.errors import UserError
from longlive.models.layers import SelfAttention
from longlive.modules.longlive import LongLive
from longlive.rollout.prompts import PromptTimeline
from longlive.weights.lora import add_lora

SWITCHING = PromptTimeline.switching(("a large red circle", "a small blue square"), [6])
WIDTH, HEADS = 24, 2


pytestmark = pytest.mark.usefixtures("nothing_compiled")


def attention_of() -> SelfAttention:
    made = SelfAttention(WIDTH, HEADS, 1e-6).double().requires_grad_(False)
    for weight in made.parameters():
        weight.normal_()
    return made


def copy_of(attention: SelfAttention) -> SelfAttention:
    copy = attention_of()
    copy.load_state_dict(attention.state_dict())
    return copy


def model_of(folder: Path) -> LongLive:
    return LongLive(weights=str(folder), latent_frames=15, **SETTINGS).prepare("cpu")


def latents(model: LongLive, *callbacks: pl.Callback) -> Tensor:
    blocks = model.stream(SWITCHING, seed=1, callbacks=callbacks)
    return torch.cat([block.latents for block in blocks], 1)


class Products:
    """Counts products and their outputs."""

    def __init__(self, monkeypatch) -> None:
        self.outputs: list[int] = []
        linear = nn.functional.linear

        def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            self.outputs.append(len(weight))
            return linear(x, weight, bias)

        monkeypatch.setattr(nn.functional, "linear", counted)


def test_the_stacked_attention_equals_the_plain_one_and_multiplies_once(monkeypatch):
    plain = attention_of()
    stacked = StackedSelfAttention(copy_of(plain))
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    frames = rotation(torch.arange(1), 2, 3, WIDTH // HEADS, torch.float64)
    attend = FullAttention(frames, sdpa_attention)
    products = Products(monkeypatch)
    torch.testing.assert_close(stacked(x, attend), plain(x, attend))
    assert products.outputs == [3 * WIDTH, WIDTH, WIDTH, WIDTH, WIDTH, WIDTH]


def test_where_only_keys_and_values_are_wanted_no_query_is_computed(monkeypatch):
    plain = attention_of()
    stacked = StackedSelfAttention(copy_of(plain))
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    products = Products(monkeypatch)
    for got, expected in zip(stacked.keys_values(x), plain.keys_values(x), strict=True):
        torch.testing.assert_close(got, expected)
    assert products.outputs == [2 * WIDTH, WIDTH, WIDTH]


def test_there_is_one_copy_of_the_weights_and_the_state_dict_is_the_same():
    plain = attention_of()
    expected = {name: value.clone() for name, value in plain.state_dict().items()}
    stacked = StackedSelfAttention(plain)
    assert list(stacked.state_dict()) == list(expected)
    for name, value in stacked.state_dict().items():
        assert torch.equal(value, expected[name])
    storages = {x.weight.untyped_storage().data_ptr() for x in (stacked.q, stacked.k, stacked.v)}
    assert storages == {stacked.weight_QE.untyped_storage().data_ptr()}
    assert not any(parameter.is_meta for parameter in stacked.parameters())


def test_weights_that_are_loaded_later_are_multiplied():
    stacked, other = StackedSelfAttention(attention_of()), attention_of()
    stacked.load_state_dict(other.state_dict())
    x = torch.randn(1, 3, WIDTH, dtype=torch.float64)
    for got, expected in zip(stacked.project(x), other.project(x), strict=True):
        torch.testing.assert_close(got, expected)


def test_the_next_rollout_stacks_nothing_anew_unless_the_weights_were_moved(folder):
    model = model_of(folder)
    first = latents(model, FuseProjections())
    stacks = [layer.self_attn.weight_QE for layer in model.dit.layers]
    latents(model, FuseProjections())
    assert all(
        layer.self_attn.weight_QE is stack
        for layer, stack in zip(model.dit.layers, stacks, strict=True)
    )
    # There and back: each tensor gets memory of its own.
    model.dit.double().float()
    assert not any(layer.self_attn.is_stacked for layer in model.dit.layers)
    torch.testing.assert_close(latents(model, FuseProjections()), first)
    assert all(layer.self_attn.is_stacked for layer in model.dit.layers)


@pytest.mark.parametrize("quantize_first", [True, False])
def test_it_goes_with_quantized_feed_forward_networks_in_either_order(folder, quantize_first):
    def quantize() -> QuantizeLinears:
        return QuantizeLinears("int8", keeps=["*_attn.*"])

    expected = latents(model_of(folder), quantize())
    callbacks = [FuseProjections(), quantize()][:: -1 if quantize_first else 1]
    torch.testing.assert_close(latents(model_of(folder), *callbacks), expected)


@pytest.mark.parametrize("quantize_first", [True, False])
def test_quantized_projections_are_refused_in_either_order(folder, quantize_first):
    callbacks = [FuseProjections(), QuantizeLinears("int8")][:: -1 if quantize_first else 1]
    with pytest.raises(UserError, match=r"add \*\.self_attn\.\[qkv\] to what the quantization"):
        latents(model_of(folder), *callbacks)
    named = QuantizeLinears("int8", keeps=["*.self_attn.[qkv]"])
    assert latents(model_of(folder), FuseProjections(), named).isfinite().all()


def test_compiled_layers_are_compiled_as_often_as_without_it(folder):
    expected = latents(model_of(folder))
    callbacks = CompileLayers(backend="eager"), FuseProjections()
    torch.testing.assert_close(latents(model_of(folder), *callbacks), expected)
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]


def test_a_capture_notices_that_the_weights_have_moved_and_then_serves_the_next(folder):
    model, capture, recorder = model_of(folder), CaptureDenoiser(), TapeRecorder()
    capture._recorder = lambda device: recorder
    capture.missing = lambda device: None
    expected = latents(model, capture)
    count = recorder.count
    torch.testing.assert_close(latents(model, capture, FuseProjections()), expected)
    assert recorder.count == 2 * count
    torch.testing.assert_close(latents(model, capture, FuseProjections()), expected)
    assert recorder.count == 2 * count


def test_adapters_and_weights_in_training_are_refused(folder):
    model = model_of(folder)
    model.dit.requires_grad_(True)
    with pytest.raises(UserError, match="cannot be trained"):
        latents(model, FuseProjections())
    add_lora(model.dit, rank=2, alpha=2)
    model.dit.requires_grad_(False)
    with pytest.raises(UserError, match="set lora to merged"):
        latents(model, FuseProjections())
    assert type(model.dit.blocks[0].self_attn) is SelfAttention
