"""Kernels and their plain versions, against float64 and against the layers they stand for."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from made_inputs import ALL, check, conv_inputs, exactly, kernels, last, worst
from torch import nn

from longlive.callbacks.fold_upsampling import FoldedUpsampling
from longlive.kernels.conv_input import Addends, conv_input, conv_input_and_sum, plain_conv_input
from longlive.kernels.interleave import (
    interleave_frames,
    interleave_phases,
    plain_interleave_frames,
    plain_interleave_phases,
)
from longlive.kernels.tiles import TILES, padded_channels, tile_of
from longlive.models.vae_layers import ChannelNorm

WIDE = torch.float64
PLAIN = {
    "conv_input": plain_conv_input,
    "interleave_frames": plain_interleave_frames,
    "interleave_phases": plain_interleave_phases,
}


def test_plain_versions_compute_in_float32_and_round_once():
    assert check(PLAIN, "cpu") > 50


@torch.no_grad()
def test_a_convolution_is_given_what_the_layers_would_give_it():
    norm = ChannelNorm(6).double()
    norm.gamma.copy_(torch.rand_like(norm.gamma))
    x, residual, bias, history, *_ = conv_inputs(6, WIDE, residual=True, bias=True, history=True)
    expected_sum = x + bias.view(-1, 1, 1, 1) + residual
    expected = torch.cat([history, F.silu(norm(expected_sum))], dim=2)
    addends, gamma = Addends(x, residual, bias), norm.gamma.flatten()
    got, got_sum = conv_input_and_sum(addends, history, gamma)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got_sum, expected_sum)
    torch.testing.assert_close(addends.total(), expected_sum)
    torch.testing.assert_close(conv_input(addends, history, gamma), expected)
    padded = conv_input(addends, None)
    torch.testing.assert_close(padded, F.pad(expected_sum, (0, 0, 0, 0, 2, 0)))


def test_without_anything_to_add_the_sum_is_the_tensor_itself_and_is_not_copied():
    x = last(1, 6, 2, 3, 4, dtype=WIDE)
    _, total = conv_input_and_sum(Addends(x), None, torch.ones(6, dtype=WIDE))
    assert total.data_ptr() == x.data_ptr()
    assert Addends(x).total().data_ptr() == x.data_ptr()


def test_any_layout_is_taken_and_the_result_has_its_channels_last():
    arguments = conv_inputs(6, WIDE, residual=True, history=True, gamma=True)
    x, residual, _, history, gamma, *_ = arguments
    mixed = Addends(x.contiguous(), residual.contiguous())
    got = conv_input(mixed, history.contiguous(), gamma)
    assert worst(got, exactly(plain_conv_input, arguments)) == 0


def test_interleaved_frames_are_the_halves_of_the_channels_in_turn():
    halves = last(2, 6, 4, 3, 5, dtype=WIDE)
    bias = torch.randn(6, dtype=WIDE)
    got = interleave_frames(halves, bias)
    with_bias = halves + bias.view(-1, 1, 1, 1)
    assert torch.equal(got[:, :, ::2], with_bias[:, :3])
    assert torch.equal(got[:, :, 1::2], with_bias[:, 3:])


@torch.no_grad()
def test_interleaved_phases_are_what_folded_upsampling_gives():
    upsample = nn.Upsample(scale_factor=2.0, mode="nearest")
    fold = FoldedUpsampling(upsample, nn.Conv2d(6, 4, 3, padding=1).double())
    x = last(3, 6, 5, 7, dtype=WIDE)
    torch.testing.assert_close(interleave_phases(*fold.phases(x)), fold(x))


@pytest.mark.parametrize("case", ALL[:4] + ALL[-2:], ids=str)
def test_the_compiler_is_told_the_shapes_and_strides_of_the_results(case):
    operation = torch.ops.longlive.conv_input.default
    torch.library.opcheck(operation, conv_inputs(6, torch.float32, **case))


@pytest.mark.parametrize("bias", [True, False])
def test_the_compiler_is_told_those_of_interleaved_tensors(bias):
    for name, shape in (("frames", (2, 8, 3, 2, 5)), ("phases", (2, 8, 3, 5))):
        operation = getattr(torch.ops.longlive, f"interleave_{name}").default
        x = last(*shape, dtype=torch.float32)
        torch.library.opcheck(operation, (x, torch.randn(8) if bias else None))


def test_a_tile_holds_whole_positions_in_powers_of_two():
    for channels in (1, 2, 6, 16, 96, 100, 192, 384, 5000):
        tile = tile_of(channels)
        assert padded_channels(channels) in range(channels, 2 * channels)
        assert tile.positions & (tile.positions - 1) == 0
        assert tile.positions >= 1
    assert tile_of(96) is TILES[128]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_interpreted_kernels_equal_the_plain_versions():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    program = Path(__file__).with_name("made_inputs.py")
    ran = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


# On a GPU.


@pytest.mark.gpu
def test_kernels_compute_in_float32_and_round_once():
    assert check(kernels(), "cuda") > 50


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [96, 192, 384])
def test_kernels_reach_tensors_of_more_than_2_to_the_31_numbers(channels):
    # Frames enough that 32 bits do not count the numbers.
    side, frames = 416, 2**31 // (channels * 416 * 416) + 2
    layout = {"dtype": torch.bfloat16, "device": "cuda", "memory_format": torch.channels_last_3d}
    x = torch.empty((1, channels, frames, side, side), **layout)
    x.normal_()
    bias = torch.randn(channels, device="cuda", dtype=torch.bfloat16)
    gamma = torch.randn_like(bias)
    got = conv_input(Addends(x, bias_C=bias), None, gamma)
    end = exactly(plain_conv_input, (x[:, :, -2:], None, bias, None, gamma, False, False))[0]
    assert float(((got[:, :, -2:].double() - end).abs() / end.abs().clamp_min(1)).max()) < 1e-2
