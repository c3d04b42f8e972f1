"""LPIPS and the CLIP score, with weights made here: arithmetic, and what is said without any."""

import sys

import numpy as np
import pytest
import torch

from longlive.errors import UserError
from longlive.metrics.clip_score import ClipScore, TransformersClip
from longlive.metrics.lpips import PerceptualDistance, PerceptualFidelity, _heads
from longlive.video.frames import evenly

CHANNELS = (3, 64, 192, 384, 256, 256)
KERNELS = (11, 5, 3, 3, 3)
PLACES = (0, 3, 6, 8, 10)


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """A file like torchvision's, of random numbers."""
    source = torch.Generator().manual_seed(0)
    tensors = {}
    for index, place in enumerate(PLACES):
        shape = (CHANNELS[index + 1], CHANNELS[index], KERNELS[index], KERNELS[index])
        scale = (shape[1] * shape[2] ** 2) ** -0.5
        tensors[f"features.{place}.weight"] = torch.randn(shape, generator=source) * scale
        tensors[f"features.{place}.bias"] = torch.randn(shape[0], generator=source) * 0.1
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save(tensors, path)
    return path


def numpy_convolved(x, weight, bias, stride, padding):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    views = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(1, 2))
    views = views[:, ::stride, ::stride]
    return np.einsum("chwij,ocij->ohw", views, weight, optimize=True) + bias[:, None, None]


def numpy_pooled(x):
    views = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return views[:, ::2, ::2].max((-1, -2))


def numpy_lpips(x, y, weights):
    shift, scale = [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]
    x, y = (
        (f * 2 - 1 - np.reshape(shift, (3, 1, 1))) / np.reshape(scale, (3, 1, 1)) for f in (x, y)
    )
    total = 0.0
    for index, place in enumerate(PLACES):
        weight, bias = (
            weights[f"features.{place}.{part}"].double().numpy() for part in ("weight", "bias")
        )
        stride, padding = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))[index]
        if index in (1, 2):
            x, y = numpy_pooled(x), numpy_pooled(y)
        x, y = (np.maximum(numpy_convolved(f, weight, bias, stride, padding), 0) for f in (x, y))
        a, b = (f / (np.sqrt((f**2).sum(0)) + 1e-10) for f in (x, y))
        head = _heads()[index].double().numpy().reshape(-1, 1, 1)
        total += (head * (a - b) ** 2).sum(0).mean()
    return total


def test_lpips_agrees_with_numpy(alexnet):
    x, y = torch.rand(2, 2, 3, 71, 80, generator=torch.Generator().manual_seed(1))
    got = PerceptualDistance(alexnet)(x, y)
    weights = torch.load(alexnet, weights_only=True)
    expected = [
        numpy_lpips(a, b, weights)
        for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(got.numpy(), expected, rtol=2e-5)


def test_lpips_is_zero_for_equal_frames_and_adds_up_over_ranks(alexnet):
    x, y = torch.rand(2, 4, 3, 64, 64)
    distance = PerceptualDistance(alexnet)
    whole, first, second = (PerceptualFidelity(distance) for _ in range(3))
    whole.update(x, x)
    assert float(whole.compute()["lpips"]) == 0
    whole.reset()
    whole.update(x, y)
    first.update(x[:1], y[:1])
    second.update(x[1:], y[1:])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute())
    assert first.total.dtype == torch.float64


def test_lpips_names_the_file_it_wants(alexnet, tmp_path):
    with pytest.raises(UserError, match=r"no weights at .*alexnet.pth"):
        PerceptualDistance(tmp_path / "alexnet.pth")
    torch.save({"classifier.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="alexnet-owt-7be5be79.pth"):
        PerceptualDistance(tmp_path / "other.pth")
    with pytest.raises(UserError, match="63 a side"):
        PerceptualDistance(alexnet)(torch.rand(1, 3, 32, 64), torch.rand(1, 3, 32, 64))


def test_frames_are_chosen_evenly_from_the_first_to_the_last():
    assert evenly(3, 8) == [0, 1, 2]
    assert evenly(81, 5) == [0, 20, 40, 60, 80]
    assert evenly(81, 1) == [0]
    assert evenly(3, None) == [0, 1, 2]


class ByBrightness:
    """Features of one frame: its brightness and the rest; of a text: the same in its words."""

    def __init__(self):
        self.asked = []

    def images(self, frames_NCHW):
        self.asked.append(len(frames_NCHW))
        light = frames_NCHW.mean((1, 2, 3))
        return torch.stack([light, 1 - light], 1)

    def texts(self, prompts):
        return torch.tensor([[1.0, 0.0] if p == "bright" else [0.0, 1.0] for p in prompts])


def test_the_clip_score_is_of_each_prompts_own_span():
    frames = torch.cat([torch.ones(40, 3, 8, 8), torch.zeros(60, 3, 8, 8)])
    encoder = ByBrightness()
    metric = ClipScore(encoder, frames=4)
    metric.update(frames, [(0, "bright"), (40, "dark")])
    assert float(metric.compute()["clip_score"]) == 100
    assert encoder.asked == [4, 4]
    metric.reset()
    metric.update(frames, [(0, "dark"), (40, "dark")])
    assert float(metric.compute()["clip_score"]) == 50


def test_the_second_after_a_switch_is_not_scored():
    frames = torch.cat([torch.ones(40 + 16, 3, 8, 8), torch.zeros(44, 3, 8, 8)])
    metric = ClipScore(ByBrightness())
    metric.update(frames, [(0, "bright"), (40, "dark")])
    assert float(metric.compute()["clip_score"]) == 100


def test_clip_scores_agree_with_numpy_and_add_up_over_ranks():
    frames = torch.rand(20, 3, 8, 8)
    whole, first, second = (ClipScore(ByBrightness(), frames=20) for _ in range(3))
    whole.update(frames, [(0, "bright")])
    whole.update(frames * 0.5, [(0, "dark")])
    first.update(frames, [(0, "bright")])
    second.update(frames * 0.5, [(0, "dark")])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute())
    light = frames.double().mean((1, 2, 3)).numpy()
    cosine = [
        light / np.hypot(light, 1 - light),
        (1 - light / 2) / np.hypot(light / 2, 1 - light / 2),
    ]
    assert float(whole.compute()["clip_score"]) == pytest.approx(100 * np.mean(cosine), abs=1e-4)


def test_clip_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="has no config.json"):
        TransformersClip(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install transformers"):
        TransformersClip(tmp_path)
