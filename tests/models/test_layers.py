"""Norms, modulation and timestep features."""

import pytest
import torch

from longlive.models.layers import RMSNorm, gate, modulate, timestep_features

# Features 0, 1, 2, 127 (cosines) and 128, 129, 130, 255 (sines) of the reference.
SINUSOIDS = {
    1000.0: (
        [0.5623790763, 0.7896147286, 0.4399538627, 0.9942316443],
        [0.8268795405, 0.6136029501, -0.8980203777, 0.1072540793],
    ),
    937.5: (
        [0.2623021323, 0.5804872891, 0.2572233843, 0.9949295652],
        [0.9649857986, -0.8142693087, 0.9663519703, 0.1005741535],
    ),
    625.0: (
        [-0.984387257, -0.9159671534, 0.6419437619, 0.9977454141],
        [0.1760162728, -0.401253254, 0.7667517242, 0.0671125068],
    ),
    0.0: ([1, 1, 1, 1], [0, 0, 0, 0]),
}


@pytest.mark.parametrize("timestep", SINUSOIDS)
def test_the_timestep_features_are_those_of_the_reference(timestep):
    features = timestep_features(torch.tensor([timestep]), 256)[0]
    cosines, sines = SINUSOIDS[timestep]
    assert features.dtype == torch.float64
    assert features[[0, 1, 2, 127]].tolist() == pytest.approx(cosines, abs=6e-11)
    assert features[[128, 129, 130, 255]].tolist() == pytest.approx(sines, abs=6e-11)


def test_timestep_features_keep_the_shape_of_the_timesteps():
    timesteps = torch.tensor([[1000.0, 625.0], [0.0, 937.5]])
    features = timestep_features(timesteps, 256)
    assert features.shape == (2, 2, 256)
    assert torch.equal(features[0, 1], timestep_features(timesteps[0, 1], 256))


def test_an_rms_norm_divides_by_the_root_of_the_mean_square_of_the_whole_width():
    norm = RMSNorm(6, 1e-6).double()
    norm.weight.data.normal_()
    x = 1e-3 * torch.randn(2, 5, 6, dtype=torch.float64)  # small, so that eps counts
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


def test_an_rms_norm_rounds_before_the_weight_multiplies():
    norm = RMSNorm(64, 1e-6).bfloat16()
    norm.weight.data.normal_(mean=1)
    x = torch.randn(20, 64).bfloat16()
    wide = x.float() * (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    assert torch.equal(norm(x), wide.bfloat16() * norm.weight)
    assert not torch.equal(norm(x), (wide * norm.weight).bfloat16())


def test_each_latent_frame_has_its_own_shift_scale_and_gate():
    x = torch.randn(2, 3 * 4, 5, dtype=torch.float64)
    shift, scale = torch.randn(2, 2, 3, 1, 5, dtype=torch.float64)
    out, gated = modulate(x, shift, scale), gate(x, scale)
    for token in range(12):
        frame = token // 4
        expected = x[:, token] * (1 + scale[:, frame, 0]) + shift[:, frame, 0]
        torch.testing.assert_close(out[:, token], expected)
        torch.testing.assert_close(gated[:, token], x[:, token] * scale[:, frame, 0])


def test_one_modulation_may_be_shared_by_all_latent_frames_and_videos():
    x = torch.randn(2, 12, 5, dtype=torch.float64)
    shift, scale = torch.randn(2, 1, 1, 1, 5, dtype=torch.float64)
    repeated = modulate(x, shift.expand(2, 3, 1, 5), scale.expand(2, 3, 1, 5))
    torch.testing.assert_close(modulate(x, shift, scale), repeated)
