"""The text encoder against the reference's tensors and the published checkpoint's names."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longlive.errors import UserError
from longlive.models.text_encoder import (
    TEXT_ENCODER_SIZES,
    T5Norm,
    UMT5Config,
    UMT5Encoder,
    relative_buckets,
    text_encoder_config,
)

CASES = ["06-umt5-short", "06-umt5-long"]


def golden_encoder(golden_dir: Path) -> UMT5Encoder:
    weights = load_file(golden_dir / "weights" / "umt5-a.safetensors")
    config = UMT5Config(
        vocab=256,
        width=64,
        attention_width=64,
        ffn_width=160,
        heads=4,
        layers=4,
        text_len=24,
    )
    encoder = UMT5Encoder(config)
    encoder.load_state_dict(weights)
    return encoder.eval()


def tiny_encoder() -> UMT5Encoder:
    encoder = UMT5Encoder("tiny")
    encoder.init_weights(torch.Generator().manual_seed(3))
    return encoder


def prompts(*lengths: int, tokens: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    mask = (torch.arange(tokens)[None] < torch.tensor(lengths)[:, None]).long()
    return torch.randint(3, 64, mask.shape) * mask, mask


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("trim", [True, False])
@torch.no_grad()
def test_prompt_rows_equal_the_reference(golden_dir, case, trim):
    golden = load_file(golden_dir / f"{case}.safetensors")
    text = golden_encoder(golden_dir)(golden["in.ids"], golden["in.mask"].long(), trim=trim)
    torch.testing.assert_close(text, golden["out.prompt_embeds"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_every_position_and_the_first_layer_equal_the_reference(golden_dir, case):
    golden = load_file(golden_dir / f"{case}.safetensors")
    ids, mask = golden["in.ids"], golden["in.mask"].long()
    encoder = golden_encoder(golden_dir)
    buckets = relative_buckets(ids.shape[1], encoder.config.buckets)
    assert torch.equal(buckets, golden["out.rel_bucket"])
    layer = encoder.blocks[0]
    torch.testing.assert_close(layer.pos_embedding(buckets), golden["out.block0.pos_bias"])
    after_first = layer(encoder.token_embedding(ids), buckets, ~mask.bool()[:, None, None])
    torch.testing.assert_close(after_first, golden["out.block0"], rtol=1e-4, atol=2e-5)
    out = encoder.encode(ids, mask)
    torch.testing.assert_close(out, golden["out.encoder"], rtol=1e-4, atol=2e-5)


def test_full_size_has_the_names_and_shapes_of_the_published_checkpoint(golden_dir):
    manifest = json.loads((golden_dir / "checkpoint-manifest.json").read_text())
    published = manifest["files"]["models_t5_umt5-xxl-enc-bf16.pth"]
    with torch.device("meta"):
        encoder = UMT5Encoder("umt5-xxl")
    ours = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert ours == {name: shape for name, (shape, _) in published["tensors"].items()}
    assert len(ours) == 242
    assert sum(p.numel() for p in encoder.parameters()) == 5_680_910_336


def test_buckets_hold_the_distances_of_the_specification():
    first_of_bucket = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    expected = [sum(d >= first for first in first_of_bucket) - 1 for d in range(200)]
    buckets = relative_buckets(200, 32)
    assert buckets[:, 0].tolist() == expected  # the key is first: it lies before every query
    assert buckets[0, 1:].tolist() == [16 + bucket for bucket in expected[1:]]


@torch.no_grad()
def test_trimming_changes_nothing_but_rounding():
    encoder = tiny_encoder()
    ids, mask = prompts(5, 11, 1)
    trimmed, full = encoder(ids, mask, trim=True), encoder(ids, mask, trim=False)
    assert trimmed.shape == full.shape == (3, 16, 64)
    torch.testing.assert_close(trimmed, full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trim", [True, False])
@torch.no_grad()
def test_rows_past_a_prompt_are_zero_and_what_stood_there_plays_no_part(trim):
    encoder = tiny_encoder()
    ids, mask = prompts(5, 11)
    text = encoder(ids, mask, trim=trim)
    assert (text[0, 5:] == 0).all()
    assert (text[1, 11:] == 0).all()
    assert (text[0, :5].abs().sum(dim=-1) > 0).all()
    garbled = torch.where(mask.bool(), ids, 63)
    torch.testing.assert_close(encoder(garbled, mask, trim=trim), text, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_prompt_does_not_depend_on_its_neighbours_in_the_batch():
    encoder = tiny_encoder()
    ids, mask = prompts(4, 16)
    alone = encoder(ids[:1], mask[:1])
    torch.testing.assert_close(encoder(ids, mask)[:1], alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_order_of_words_matters():
    encoder = tiny_encoder()
    ids, mask = prompts(6)
    swapped = ids.clone()
    swapped[0, [0, 4]] = ids[0, [4, 0]]
    assert not torch.allclose(encoder(ids, mask)[0, 2], encoder(swapped, mask)[0, 2], atol=1e-3)


def test_norm_rounds_before_it_scales_in_half_precision():
    norm = T5Norm(8).to(torch.bfloat16)
    norm.weight.data.copy_(torch.linspace(0.3, 3, 8))
    x = torch.randn(1, 4, 8, dtype=torch.bfloat16)
    rows = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    expected = rows.to(torch.bfloat16) * norm.weight
    assert norm(x).dtype is torch.bfloat16
    assert torch.equal(norm(x), expected)
    assert not torch.equal(norm(x), (rows * norm.weight.float()).to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_stays_close_to_float32(dtype):
    encoder = tiny_encoder()
    ids, mask = prompts(5, 16)
    expected = encoder(ids, mask)
    text = encoder.to(dtype)(ids, mask)
    assert text.dtype is dtype
    # Three layers' worth of bfloat16 rounding on values of order one.
    assert (text.float() - expected).abs().mean() < 2e-2


@torch.no_grad()
def test_float16_survives_a_residual_stream_past_its_range():
    encoder = tiny_encoder().half()
    encoder.token_embedding.weight.fill_(60_000)
    encoder.blocks[0].ffn.fc2.weight.fill_(200)
    encoder.blocks[0].ffn.fc1.weight.fill_(5)
    encoder.blocks[0].ffn.gate[0].weight.fill_(5)
    assert encoder(*prompts(5)).isfinite().all()


def test_fresh_weights_train_at_once():
    encoder = tiny_encoder()
    text = encoder(*prompts(9, 16))
    rows = text[1]
    assert 0.9 < rows.pow(2).mean() < 1.1
    text.pow(4).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_fresh_weights_depend_on_the_generator_alone():
    first, second = tiny_encoder(), tiny_encoder()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_an_unknown_size_and_impossible_sizes_are_refused():
    with pytest.raises(UserError, match=r"umt5-xxl, tiny"):
        text_encoder_config("t5-small")
    with pytest.raises(UserError, match="heads"):
        replace(TEXT_ENCODER_SIZES["tiny"], heads=3)
    with pytest.raises(UserError, match="buckets"):
        replace(TEXT_ENCODER_SIZES["tiny"], buckets=6)
