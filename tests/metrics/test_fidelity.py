"""Distances from a reference agree with a second implementation in NumPy, and add up over ranks."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from longlive.errors import UserError
from longlive.metrics.fidelity import FrameFidelity, LatentFidelity
from longlive.metrics.similarity import SCALE_WEIGHTS, ms_ssim, scale_weights, ssim

AGREES = 1e-6


def pair(frames=3, height=40, width=56, seed=0):
    """Smooth frames and a disturbed copy, values in [0, 1]."""
    source = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        0.5 + 0.4 * np.sin((0.1 + 0.05 * c) * x + 0.07 * y + t)
        for t in range(frames)
        for c in range(3)
    ]
    clean = np.reshape(waves, (frames, 3, height, width))
    noisy = np.clip(clean * 0.9 + source.normal(0, 0.05, clean.shape), 0, 1)
    return noisy, clean


# The second implementation: plain loops over the window, everything float64.


def numpy_maps(x, y):
    """Similarity and contrast of two planes: windows of 11 x 11, borders mirrored."""
    offsets = np.arange(11) - 5
    tap = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(tap, tap) / tap.sum() ** 2

    def mean(plane):
        padded = np.pad(plane, 5, mode="reflect")
        views = np.lib.stride_tricks.sliding_window_view(padded, (11, 11))
        return (views * window).sum((-1, -2))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    contrast = (2 * cov + 0.03**2) / (vx + vy + 0.03**2)
    return (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2) * contrast, contrast


def numpy_ssim(x_CHW, y_CHW):
    return np.mean([numpy_maps(x, y)[0] for x, y in zip(x_CHW, y_CHW, strict=True)])


def numpy_ms_ssim(x_CHW, y_CHW, weights):
    product = 1.0
    for index, weight in enumerate(weights):
        maps = [numpy_maps(x, y) for x, y in zip(x_CHW, y_CHW, strict=True)]
        if index == len(weights) - 1:
            term = np.mean([similarity for similarity, _ in maps])
        else:
            term = np.mean([contrast[5:-5, 5:-5] for _, contrast in maps])
        product *= max(term, 0.0) ** weight
        x_CHW, y_CHW = halved(x_CHW), halved(y_CHW)
    return product


def halved(x_CHW):
    rows, columns = (side // 2 for side in x_CHW.shape[1:])
    cells = x_CHW[:, : 2 * rows, : 2 * columns].reshape(3, rows, 2, columns, 2)
    return cells.mean((2, 4))


def test_psnr_ssim_and_ms_ssim_agree_with_numpy():
    x, y = pair(height=64, width=48)
    metric = FrameFidelity()
    metric.update(torch.from_numpy(x), torch.from_numpy(y))
    got = metric.compute()
    mse = np.mean((x - y) ** 2)
    weights = scale_weights((64, 48))
    assert len(weights) == 3
    expected = {
        "frame_mse": mse,
        "psnr_db": 10 * np.log10(1 / mse),
        "ssim": np.mean([numpy_ssim(a, b) for a, b in zip(x, y, strict=True)]),
        "ms_ssim": np.mean([numpy_ms_ssim(a, b, weights) for a, b in zip(x, y, strict=True)]),
    }
    for name, value in expected.items():
        assert float(got[name]) == pytest.approx(value, abs=AGREES), name


def test_five_scales_agree_with_numpy():
    x, y = pair(frames=1, height=176, width=192)
    got = ms_ssim(torch.from_numpy(x), torch.from_numpy(y))
    assert float(got) == pytest.approx(numpy_ms_ssim(x[0], y[0], SCALE_WEIGHTS), abs=AGREES)


def test_the_values_are_those_of_torchmetrics():
    x, y = (torch.from_numpy(frames) for frames in pair(frames=2, height=176, width=192))
    theirs = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(x, y), theirs, atol=AGREES, rtol=0)
    theirs = multiscale_structural_similarity_index_measure(
        x, y, data_range=1.0, reduction="none", betas=SCALE_WEIGHTS
    )
    torch.testing.assert_close(ms_ssim(x, y), theirs, atol=AGREES, rtol=0)
    metric = FrameFidelity()
    metric.update(x, y)
    theirs = peak_signal_noise_ratio(x, y, data_range=1.0)
    # Its logarithms are float32.
    assert float(metric.compute()["psnr_db"]) == pytest.approx(float(theirs), abs=5e-6)


def test_the_latent_error_of_each_block_agrees_with_numpy():
    source = np.random.default_rng(1)
    reference = source.normal(size=(2, 9, 4, 6, 5))
    latents = reference + source.normal(size=reference.shape) * np.repeat(
        [0.01, 0.1, 0.3], 3
    ).reshape(1, 9, 1, 1, 1)
    metric = LatentFidelity()
    metric.update(torch.from_numpy(latents), torch.from_numpy(reference))
    got = metric.compute()
    errors = [
        [
            np.linalg.norm((latents - reference)[b, part]) / np.linalg.norm(reference[b, part])
            for part in (slice(0, 3), slice(3, 6), slice(6, 9))
        ]
        for b in range(2)
    ]
    by_block = np.mean(errors, axis=0)
    np.testing.assert_allclose(got["latent_error_by_block"].numpy(), by_block, atol=AGREES)
    assert float(got["latent_error"]) == pytest.approx(by_block.mean(), abs=AGREES)
    slope = np.polyfit(range(3), by_block, 1)[0]
    assert float(got["latent_error_growth"]) == pytest.approx(slope, abs=AGREES)


def test_some_frames_of_each_video_are_enough_for_ssim_and_all_count_for_psnr():
    x, y = (torch.from_numpy(frames) for frames in pair(frames=10))
    some, chosen, whole = FrameFidelity(3), FrameFidelity(), FrameFidelity()
    some.update(x.view(2, 5, 3, 40, 56), y.view(2, 5, 3, 40, 56))
    picked = [0, 2, 4, 5, 7, 9]
    chosen.update(x[picked], y[picked])
    whole.update(x, y)
    assert some.compute()["ssim"] == pytest.approx(float(chosen.compute()["ssim"]))
    assert some.compute()["ms_ssim"] == pytest.approx(float(chosen.compute()["ms_ssim"]))
    assert some.compute()["frame_mse"] == pytest.approx(float(whole.compute()["frame_mse"]))


def test_two_ranks_together_equal_one_pass():
    x, y = (torch.from_numpy(frames) for frames in pair(frames=6))
    whole, first, second = FrameFidelity(), FrameFidelity(), FrameFidelity()
    whole.update(x, y)
    first.update(x[:4], y[:4])
    second.update(x[4:], y[4:])
    first.merge_state(second)
    for name, value in whole.compute().items():
        torch.testing.assert_close(first.compute()[name], value, atol=1e-12, rtol=0)

    latents, reference = torch.randn(2, 3, 9, 4, 2, 2, dtype=torch.float64)
    whole, first, second = LatentFidelity(), LatentFidelity(), LatentFidelity()
    whole.update(latents, reference)
    first.update(latents[:1], reference[:1])
    # Of another length, too.
    second.update(latents[1:, :6], reference[1:, :6])
    second.update(latents[1:, 6:], reference[1:, 6:])
    first.merge_state(second)
    assert first.videos_K[:3].tolist() == [5, 3, 1]
    first, second = LatentFidelity(), LatentFidelity()
    first.update(latents[:1], reference[:1])
    second.update(latents[1:], reference[1:])
    first.merge_state(second)
    for name, value in whole.compute().items():
        torch.testing.assert_close(first.compute()[name], value, atol=1e-12, rtol=0)


def test_sums_are_float64_whatever_the_frames_are():
    metric = FrameFidelity()
    x = torch.rand(2, 3, 32, 32)
    metric.update(x.bfloat16(), (x * 0.5).bfloat16())
    assert metric.squared_error.dtype == torch.float64
    assert metric.compute()["ssim"].dtype == torch.float64
    assert LatentFidelity().error_K.dtype == torch.float64


def test_eight_bit_frames_are_read_in_units_of_the_value_range():
    x = torch.randint(0, 256, (2, 2, 3, 32, 32), dtype=torch.uint8)
    whole, scaled = FrameFidelity(), FrameFidelity()
    whole.update(x, x.flip(0))
    scaled.update(x.double() / 255, x.flip(0).double() / 255)
    assert whole.compute() == scaled.compute()


def test_equal_frames_and_latents_have_no_error():
    x = torch.rand(1, 2, 3, 32, 32)
    metric = FrameFidelity()
    metric.update(x, x)
    got = metric.compute()
    assert (float(got["frame_mse"]), float(got["psnr_db"])) == (0, math.inf)
    assert float(got["ssim"]) == float(got["ms_ssim"]) == pytest.approx(1)
    latents = LatentFidelity()
    latents.update(torch.randn(1, 6, 2, 2, 2), torch.randn(1, 6, 2, 2, 2))
    latents.reset()
    same = torch.randn(1, 6, 2, 2, 2)
    latents.update(same, same)
    assert {float(v.sum()) for v in latents.compute().values()} == {0}


def test_the_growth_is_what_a_block_adds():
    reference = torch.ones(1, 12, 1, 1, 1)
    steps = torch.arange(4.0).repeat_interleave(3).view(1, 12, 1, 1, 1)
    metric = LatentFidelity()
    metric.update(reference + 0.01 * steps, reference)
    assert float(metric.compute()["latent_error_growth"]) == pytest.approx(0.01)
    one = LatentFidelity()
    one.update(reference[:, :3], reference[:, :3])
    assert math.isnan(one.compute()["latent_error_growth"])


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UserError, match="same size and length"):
        FrameFidelity().update(torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 48))
    with pytest.raises(UserError, match="same size and length"):
        LatentFidelity().update(torch.rand(1, 3, 2, 4, 4), torch.rand(1, 6, 2, 4, 4))
    with pytest.raises(UserError, match="11 a side"):
        FrameFidelity().update(torch.rand(1, 3, 8, 32), torch.rand(1, 3, 8, 32))
