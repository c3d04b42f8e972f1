"""One convolution of the small picture in place of one of the large."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from longlive.callbacks.fold_upsampling import FoldedUpsampling, FoldUpsampling, folded
from longlive.models.vae import WanVAE
from longlive.models.vae_layers import Up2, Up3, use_channels_last
from longlive.models.vae_networks import VAEConfig
from longlive.modules.longlive import LongLive
from longlive.weights.synthetic import fill_synthetic

ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 3e-2}
SMALL = VAEConfig(base_width=4, latent_mean=(0.1,) * 16, latent_std=(0.7,) * 16)


def pair(dtype: torch.dtype, bias: bool = True) -> tuple[nn.Module, nn.Conv2d]:
    upsample = nn.Upsample(scale_factor=2.0, mode="nearest")
    return upsample, nn.Conv2d(6, 4, 3, padding=1, bias=bias).to(dtype)


def small_vae() -> WanVAE:
    vae = WanVAE(SMALL).eval().requires_grad_(False)
    fill_synthetic(vae, dtype=torch.float64)
    return vae


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("height", "width"), [(5, 7), (1, 1), (2, 9)])
@torch.no_grad()
def test_the_folded_convolution_equals_the_two_steps(dtype, height, width):
    plain = nn.Sequential(*pair(dtype))
    x = torch.randn(3, 6, height, width, dtype=dtype)
    got = FoldedUpsampling(*plain)(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, plain(x), rtol=0, atol=ROUNDING[dtype])


@torch.no_grad()
def test_without_a_bias_there_is_none():
    plain = nn.Sequential(*pair(torch.float64, bias=False))
    x = torch.randn(1, 6, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(FoldedUpsampling(*plain)(x), plain(x), rtol=0, atol=1e-13)


def test_four_products_take_the_place_of_nine():
    plain = nn.Sequential(*pair(torch.float32))
    x = torch.randn(1, 6, 64, 64)
    flops = []
    for module in (plain, FoldedUpsampling(*plain)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x)
        flops.append(counter.get_total_flops())
    # 65 x 65 positions in place of 64 x 64.
    assert flops[0] / flops[1] == pytest.approx(9 / 4 * (64 / 65) ** 2)


def test_weights_are_summed_in_float32_and_rounded_once():
    weight = torch.ones(1, 1, 3, 3, dtype=torch.bfloat16)
    # In bfloat16 1 + 2**-8 is 1, and nothing would be left of the small ones.
    weight[0, 0, 1:, 1:] = torch.tensor([[1.0, 2**-8], [2**-8, 2**-8]])
    assert folded(weight)[0, 0, 1, 1] == torch.tensor(1 + 3 * 2**-8).bfloat16()
    assert folded(weight).dtype == torch.bfloat16


def test_the_result_has_its_channels_last_whatever_came_in():
    upsample, conv = pair(torch.float32)
    conv = conv.to(memory_format=torch.channels_last)
    fold = FoldedUpsampling(upsample, conv)
    assert fold.kernel_OCKK.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 6, 4, 5)
    for layout in (torch.contiguous_format, torch.channels_last):
        out = fold(x.contiguous(memory_format=layout))
        assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
@torch.no_grad()
def test_a_folded_vae_decodes_the_same_video_from_the_same_state_dict(channels_last):
    vae, plain = small_vae(), small_vae()
    if channels_last:
        use_channels_last(vae)
    model = LongLive(latent_frames=3)
    model.vae = vae
    keys = list(vae.state_dict())
    for _ in range(2):  # A second rollout folds nothing twice.
        decoder = FoldUpsampling().configure_decoder(None, model, vae.open_stream())
    ups = [module for module in vae.modules() if isinstance(module, Up2 | Up3)]
    assert len(ups) == 3
    assert all(isinstance(up.resample, FoldedUpsampling) for up in ups)
    assert list(vae.state_dict()) == keys
    latents = torch.randn(2, 3, 16, 4, 6, dtype=torch.float64)
    expected = plain.open_stream().decode(latents)
    torch.testing.assert_close(decoder.decode(latents), expected, rtol=0, atol=1e-6)
    raw = vae.decode_raw(latents)
    torch.testing.assert_close(raw, plain.decode_raw(latents), rtol=0, atol=1e-11)
