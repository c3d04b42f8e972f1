"""What a walk over a network counts is what the network computes."""

import pytest
import torch
import torch.nn.functional as F
from nano import seeded
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from longlive.geometry import Geometry
from longlive.metrics.cost import Product
from longlive.metrics.cost_walk import count_work, text_encoder_work, vae_decode_work
from longlive.models.text_encoder import TEXT_ENCODER_SIZES, UMT5Config, UMT5Encoder
from longlive.models.vae import WanVAE
from longlive.models.vae_networks import SIZES as VAE_SIZES
from longlive.models.vae_networks import VAEConfig

VIDEO = Geometry(480, 832)
BF16 = torch.bfloat16
SMALL_VAE = VAEConfig(base_width=4, latent_mean=(0.0,) * 16, latent_std=(1.0,) * 16)
SMALL_VIDEO = Geometry(32, 48)


@pytest.mark.parametrize(("latent_frames", "is_first", "total"), [(3, False, 40.6), (1, True, 4.3)])
def test_the_published_vae_takes_the_tflop_of_the_table(latent_frames, is_first, total):
    work = vae_decode_work(VAE_SIZES["wan"], VIDEO, latent_frames, BF16, is_first=is_first)
    # One unit of the last digit: the table was cut off there (40.65, 4.35), not rounded.
    assert total <= work.flops / 1e12 < total + 0.1
    assert work.kinds.keys() == {"vae convolution", "vae attention"}


def test_the_published_text_encoder_takes_the_tflop_of_the_table():
    work = text_encoder_work(TEXT_ENCODER_SIZES["umt5-xxl"], 512, BF16)
    linear = 2 * 512 * 24 * (4 * 4096**2 + 3 * 4096 * 10_240)
    attention = 4 * 512 * 512 * 4096 * 24
    assert work.kinds["text encoder linear"].flops == linear
    assert work.kinds["text encoder attention"].flops == attention
    assert f"{linear / 1e12:.1f}" == "4.7"


def convolution_flops(vae: WanVAE, run) -> int:
    counted = 0

    def count(layer, inputs, output):
        nonlocal counted
        counted += 2 * output.numel() * layer.weight[0].numel()

    layers = [layer for layer in vae.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return counted


def test_the_walk_over_the_vae_counts_every_convolution_of_a_real_decode():
    vae, latents = WanVAE(SMALL_VAE), seeded("latents", 1, 5, 16, 4, 6, dtype=torch.float32)
    stream = vae.open_stream()
    for start, frames in ((0, 1), (1, 3), (4, 1)):
        run = convolution_flops(vae, lambda a=start, n=frames: stream.decode(latents[:, a : a + n]))
        walked = vae_decode_work(SMALL_VAE, SMALL_VIDEO, frames, torch.float32, is_first=start == 0)
        assert walked.kinds["vae convolution"].flops == run


def test_attention_in_the_vae_is_among_the_positions_of_each_latent_frame():
    work = vae_decode_work(SMALL_VAE, SMALL_VIDEO, 3, BF16)
    positions, channels = 4 * 6, 16
    assert work.kinds["vae attention"].flops == 3 * 4 * positions**2 * channels
    # Fused: the scores are never written.
    assert work.kinds["vae attention"].bytes == 3 * 4 * positions * channels * 2


def test_the_walk_over_the_text_encoder_counts_what_torch_counts():
    config = UMT5Config(
        vocab=8, width=12, attention_width=16, ffn_width=20, heads=2, layers=2, text_len=9
    )
    encoder, ids = UMT5Encoder(config), torch.zeros(1, 7, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        encoder.encode(ids, torch.ones_like(ids))
    assert text_encoder_work(config, 7, torch.float32).flops == counter.get_total_flops()


def test_the_walk_counts_operands_once_in_their_own_type():
    conv = nn.Conv2d(2, 6, 3, groups=2, dtype=BF16, device="meta")
    linear = nn.Linear(4, 5, device="meta")
    q, kv = (torch.empty(1, 2, rows, 8, device="meta") for rows in (3, 7))

    def run():
        conv(torch.empty(1, 2, 5, 5, dtype=BF16, device="meta"))
        linear(torch.empty(3, 4, device="meta"))
        F.scaled_dot_product_attention(q, kv, kv)
        q @ kv.transpose(-1, -2)
        (q + 1).relu().sum()

    assert count_work(run, "net").kinds == {
        "net convolution": Product("conv", 2 * 6 * 9 * 9, 2 * (50 + 60 + 54)),
        "net linear": Product("gemm", 2 * 3 * 4 * 5, 4 * (12 + 25 + 15)),
        "net attention": Product(
            "attention",
            4 * 2 * 3 * 7 * 8 + 2 * 2 * 3 * 7 * 8,
            4 * 2 * ((2 * 3 + 2 * 7) * 8 + 3 * 8 + 7 * 8 + 3 * 7),
        ),
    }
