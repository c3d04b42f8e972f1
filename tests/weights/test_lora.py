"""Adapters: reading, merging and running beside the base, against the reference's tensors."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from longlive.attention.backends import sdpa_attention
from longlive.attention.core import FullAttention
from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.models.sizes import DiTConfig
from longlive.weights.loading import load_strict
from longlive.weights.lora import (
    Adapter,
    LoRALinear,
    adapters_of,
    add_lora,
    inject_lora,
    lora_state_dict,
    lora_targets,
    merge_lora,
)

CONFIG = DiTConfig(width=64, ffn_width=160, heads=2, layers=3, text_width=48, text_len=12)
CASE = "09-lora-rank4.safetensors"


class Parity:
    """Weights and tensors of the reference's case, and a way to run the transformer on them."""

    def __init__(self, golden_dir):
        self.case = load_file(golden_dir / CASE)
        self.base = load_file(golden_dir / "weights" / "dit-a.safetensors")
        self.lora = load_file(golden_dir / "weights" / "lora-a.safetensors")
        self.adapters = adapters_of(self.lora, "lora-a")

    def model(self, weights=None) -> DiT:
        model = DiT(CONFIG)
        load_strict(model, weights or self.base, "dit-a")
        return model

    @torch.no_grad()
    def flow(self, model: DiT) -> torch.Tensor:
        x = self.case["in.x"].transpose(1, 2)
        attend = FullAttention(model.rotation(torch.arange(3), 2, 3), sdpa_attention)
        text = model.text_keys_values(self.case["in.prompt_embeds"])
        return model(x, self.case["in.t"], text, attend).transpose(1, 2)


@pytest.fixture
def parity(golden_dir):
    return Parity(golden_dir)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_merged_weights_equal_the_reference(parity):
    merged = merge_lora(parity.base, parity.adapters, alpha=4)
    changed = {name.removeprefix("out.merged.") for name in parity.case if "out.merged." in name}
    assert len(changed) == 30
    for name, tensor in merged.items():
        if name in changed:
            close(tensor, parity.case[f"out.merged.{name}"])
            assert not torch.equal(tensor, parity.base[name])
        else:
            assert tensor is parity.base[name]


def test_merged_and_unmerged_flow_equal_the_reference(parity):
    close(parity.flow(parity.model()), parity.case["out.base_flow"])
    merged = merge_lora(parity.base, parity.adapters, alpha=4)
    close(parity.flow(parity.model(merged)), parity.case["out.merged_flow"])
    model = parity.model()
    inject_lora(model, parity.adapters, alpha=4)
    close(parity.flow(model), parity.case["out.lora_flow"])


def test_the_scale_is_alpha_over_rank(parity):
    once, twice = (merge_lora(parity.base, parity.adapters, alpha=alpha) for alpha in (4, 8))
    name = "blocks.1.ffn.0.weight"
    base = parity.base[name]
    torch.testing.assert_close(twice[name] - base, 2 * (once[name] - base))


def test_merging_sums_in_float32_and_rounds_once(parity):
    half = {name: tensor.bfloat16() for name, tensor in parity.base.items()}
    merged = merge_lora(half, parity.adapters, alpha=4)
    name, target = "blocks.0.self_attn.q.weight", "blocks.0.self_attn.q"
    adapter = parity.adapters[target]
    exact = half[name].float() + adapter.b_OR @ adapter.a_RI
    assert torch.equal(merged[name], exact.bfloat16())
    assert merged["head.head.weight"] is half["head.head.weight"]
    wide = merge_lora(half, parity.adapters, alpha=4, dtype=torch.float32)
    assert torch.equal(wide[name], exact)
    assert all(tensor.dtype is torch.float32 for tensor in wide.values())


def test_running_beside_rounds_after_every_step_in_bfloat16():
    base = nn.Linear(16, 8).bfloat16()
    layer = LoRALinear(base, rank=4, alpha=4).bfloat16()
    nn.init.normal_(layer.lora_B.weight)
    x = torch.randn(5, 16, dtype=torch.bfloat16)
    middle = x @ layer.lora_A.weight.T
    expected = base(x) + middle @ layer.lora_B.weight.T
    assert layer(x).dtype is torch.bfloat16
    assert torch.equal(layer(x), expected)


def test_adapters_sit_on_the_ten_linears_of_each_layer_and_nowhere_else(golden_dir):
    manifest = json.loads((golden_dir / "checkpoint-manifest.json").read_text())
    published = manifest["files"]["lora.pt"]["tensors"]
    with torch.device("meta"):
        model = DiT("wan-1.3b")
        assert len(list(lora_targets(model))) == 300
        add_lora(model, rank=256, alpha=256)
    ours = {name: list(tensor.shape) for name, tensor in lora_state_dict(model).items()}
    assert ours == {name: shape for name, (shape, _) in published.items()}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == 349_962_240


def test_fresh_adapters_change_nothing_and_train(parity):
    model = parity.model()
    add_lora(model, rank=2, alpha=2)
    close(parity.flow(model), parity.case["out.base_flow"])
    layer = model.blocks[0].ffn[0]
    assert layer.lora_A.weight.abs().sum() > 0
    layer(torch.randn(3, 64)).sum().backward()
    assert layer.lora_B.weight.grad.abs().sum() > 0
    assert layer.base_layer.weight.grad is None
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {name for name, _ in model.named_parameters() if ".lora_" in name}


def test_saved_adapters_read_back_the_same(parity):
    model = parity.model()
    inject_lora(model, parity.adapters, alpha=4)
    saved = lora_state_dict(model)
    assert saved.keys() == parity.lora.keys()
    assert all(torch.equal(saved[name], parity.lora[name]) for name in saved)


def test_adapters_take_the_type_of_their_layer(parity):
    model = parity.model().bfloat16()
    inject_lora(model, parity.adapters, alpha=4)
    assert model.blocks[0].self_attn.q.lora_A.weight.dtype is torch.bfloat16


def test_bare_and_wrapped_and_in_memory_names_are_read(parity):
    wrapped = {"generator_lora": parity.lora, "critic_lora": {}, "step": 3}
    renamed = {
        name.removeprefix("base_model.model.").replace(".weight", ".default.weight"): tensor
        for name, tensor in parity.lora.items()
    }
    for content in (wrapped, renamed):
        read = adapters_of(content, "lora.pt")
        assert read.keys() == parity.adapters.keys()
        assert all(torch.equal(read[t].a_RI, parity.adapters[t].a_RI) for t in read)
    critic = {"generator_lora": {}, "critic_lora": parity.lora}
    assert len(adapters_of(critic, "lora.pt", "critic_lora")) == 30


def test_an_adapter_for_some_layers_leaves_the_others_alone(parity):
    one = {"blocks.1.ffn.2": parity.adapters["blocks.1.ffn.2"]}
    model = parity.model()
    inject_lora(model, one, alpha=4)
    assert isinstance(model.blocks[1].ffn[2], LoRALinear)
    assert sum(isinstance(m, LoRALinear) for m in model.modules()) == 1


def test_what_is_no_lora_or_half_of_one_is_refused(parity):
    with pytest.raises(UserError, match="no LoRA adapters under generator_lora; it has generator"):
        adapters_of({"generator": {}}, "longlive_base.pt")
    half = {name: t for name, t in parity.lora.items() if "blocks.0.ffn.0.lora_B" not in name}
    with pytest.raises(UserError, match=r"one factor for blocks\.0\.ffn\.0"):
        adapters_of(half, "lora.pt")
    name = "base_model.model.blocks.0.ffn.0.lora_B.weight"
    with pytest.raises(UserError, match="different ranks"):
        adapters_of(parity.lora | {name: torch.ones(160, 3)}, "lora.pt")


@pytest.mark.parametrize("how", ["merge", "inject"])
def test_a_lora_of_another_model_is_refused_by_name(parity, how):
    def apply(adapters):
        if how == "merge":
            merge_lora(parity.base, adapters, alpha=4)
        else:
            inject_lora(parity.model(), adapters, alpha=4)

    pair = parity.adapters["blocks.0.ffn.0"]
    with pytest.raises(UserError, match=r"1 of its 1 adapters have no layer here \(blocks\.9\."):
        apply({"blocks.9.ffn.0": pair})
    wide = Adapter(torch.ones(4, 128), torch.ones(160, 4))
    with pytest.raises(UserError, match=r"blocks\.0\.ffn\.0 is 160x128, the layer is 160x64"):
        apply({"blocks.0.ffn.0": wide})


def test_adapters_are_not_put_on_twice(parity):
    model = parity.model()
    add_lora(model, rank=2, alpha=2)
    with pytest.raises(UserError, match="already has LoRA"):
        inject_lora(model, parity.adapters, alpha=4)
    with pytest.raises(UserError, match="at least 1"):
        add_lora(parity.model(), rank=0, alpha=1)
