"""Synthetic weights: seeded by name, and sane at any depth."""

import pytest
import torch
from torch import nn

from longlive.attention.backends import sdpa_attention
from longlive.attention.core import FullAttention
from longlive.models.dit import DiT
from longlive.models.sizes import DiTConfig
from longlive.models.vae import WanVAE
from longlive.weights.synthetic import fill_synthetic

DEEP = DiTConfig(width=128, ffn_width=512, heads=2, layers=30, text_width=64, text_len=8)


def meta_dit(config: DiTConfig = DEEP) -> DiT:
    with torch.device("meta"):
        return DiT(config)


@torch.no_grad()
def test_activations_stay_sane_through_thirty_layers():
    model = meta_dit()
    fill_synthetic(model)
    sizes = []
    for layer in model.blocks:
        layer.register_forward_hook(lambda *hooked: sizes.append(float(hooked[-1].std())))
    x = torch.randn(1, 3, 16, 8, 8)
    attend = FullAttention(model.rotation(torch.arange(3), 4, 4), sdpa_attention)
    text = model.text_keys_values(torch.randn(1, 8, 64))
    velocity = model(x, torch.tensor([[1000.0, 500.0, 0.0]]), text, attend)
    assert len(sizes) == 30
    assert all(0.3 < size < 30 for size in sizes)
    assert 0.1 < velocity.std() < 10


@torch.no_grad()
def test_the_vae_encodes_to_something_finite_and_not_flat():
    with torch.device("meta"):
        vae = WanVAE("tiny")
    fill_synthetic(vae, device="cpu")
    features = vae.encoder(torch.randn(1, 3, 5, 32, 32))
    assert features.isfinite().all()
    assert 1e-3 < features.std() < 1e3


def test_values_depend_on_seed_and_name_alone():
    first, second, other = meta_dit(), meta_dit(), meta_dit()
    fill_synthetic(first, seed=1)
    fill_synthetic(second, seed=1)
    fill_synthetic(other, seed=2)
    again, differs = second.state_dict(), other.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again[name])
        assert not torch.equal(tensor, differs[name])
    shallow = meta_dit(DiTConfig(128, 512, 2, 2, 64, 8))
    fill_synthetic(shallow, seed=1)
    for name, tensor in shallow.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name])
    assert not torch.equal(first.blocks[0].self_attn.q.weight, first.blocks[0].self_attn.k.weight)


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    fill_synthetic(meta_dit())
    assert torch.equal(torch.random.get_rng_state(), before)


@torch.no_grad()
def test_each_kind_of_weight_has_its_scale():
    model = meta_dit()
    fill_synthetic(model)
    layer = model.blocks[3]
    assert layer.ffn[2].weight.std() == pytest.approx(512**-0.5, rel=0.02)
    assert layer.self_attn.norm_q.weight.mean() == pytest.approx(1, abs=0.02)
    assert layer.norm3.bias.abs().max() < 0.1
    assert model.patch_embedding.weight.std() == pytest.approx((16 * 4) ** -0.5, rel=0.05)


def test_types_and_whole_number_buffers():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    fill_synthetic(module, dtype=torch.bfloat16)
    assert module[0].weight.dtype is torch.bfloat16
    assert module[1].num_batches_tracked.dtype is torch.int64


@pytest.mark.gpu
def test_full_size_is_drawn_on_the_device():
    with torch.device("meta"):
        model = DiT("wan-1.3b")
    fill_synthetic(model, dtype=torch.bfloat16, device="cuda")
    for tensor in model.state_dict().values():
        assert tensor.is_cuda
        assert tensor.isfinite().all()
