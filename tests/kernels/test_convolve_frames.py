"""The convolution of the decoder's last level, against float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from in_interpreter import needs_triton, run_interpreted
from made_inputs import last
from torch import Tensor, nn

from longlive.kernels.convolve_frames import convolve_frames, fits, plain_convolve_frames

PADDING = (0, 1, 1)


def exactly(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv3d(x.double(), weight.double(), padding=PADDING)


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


def given(
    frames: int, sides: tuple[int, int], channels: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    x = last(2, channels, frames + 2, *sides, dtype=dtype, device=device)
    return x, last(96, channels, 3, 3, 3, dtype=dtype, device=device)


def convolution(weight: Tensor, **others: Any) -> nn.Conv3d:
    """A convolution with a weight of its own."""
    settings = {"padding": PADDING, **others}
    with torch.device("meta"):
        made = nn.Conv3d(weight.shape[1], weight.shape[0], weight.shape[2:], **settings)
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made


def test_without_a_gpu_it_is_what_torch_computes():
    x, weight = given(2, (5, 7), 4, torch.float32)
    got = convolve_frames(x, weight)
    assert torch.equal(got, plain_convolve_frames(x, weight))
    assert distance(got, exactly(x, weight)) < 1e-6
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    assert not fits(x, convolution(weight))


def test_the_compiler_is_told_the_shape_and_strides_of_the_result():
    torch.library.opcheck(
        torch.ops.longlive.convolve_frames.default, given(2, (5, 7), 4, torch.float32)
    )


# The kernel, by Triton's interpreter; a process of its own, since Triton is told when it is loaded.


def check_interpreted() -> None:
    """Run in that process."""
    from longlive.kernels.convolve_frames_triton import TILES, Tile, triton_convolve_frames

    torch.manual_seed(0)
    # Frames for each of the tiles, sides that none of them divides, two chunks of channels.
    for frames in (4, 2, 3):
        x, weight = given(frames, (5, 19), 64, torch.float32)
        assert distance(triton_convolve_frames(x, weight), exactly(x, weight)) < 1e-6
    x, weight = given(4, (9, 8), 32, torch.float32)
    for tile in (*TILES, Tile(2, 8, 8, 4, 2)):
        got = triton_convolve_frames(x.contiguous(), weight.contiguous(), tile)
        assert distance(got, exactly(x, weight)) < 1e-6


@needs_triton
def test_the_kernel_computes_what_the_plain_operation_does():
    run_interpreted("test_convolve_frames")


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frames", [1, 2, 8])
@pytest.mark.parametrize("channels", [96, 192])
def test_on_a_gpu_every_tile_computes_what_the_plain_operation_does(frames, channels, dtype):
    from longlive.kernels.convolve_frames_triton import TILES, triton_convolve_frames

    if torch.cuda.get_device_capability()[0] not in (9, 10):
        pytest.skip("needs tensor descriptors, and room for tiles")
    x, weight = given(frames, (61, 43), channels, dtype, "cuda")
    assert fits(x, convolution(weight))
    expected = exactly(x, weight)
    error = distance(plain_convolve_frames(x, weight), expected)
    assert distance(convolve_frames(x, weight), expected) < 1.1 * error
    for tile in TILES:
        if frames % tile.frames == 0:
            assert distance(triton_convolve_frames(x, weight, tile), expected) < 1.1 * error, tile


@pytest.mark.gpu
def test_others_are_left_to_cudnn():
    x, weight = given(1, (5, 7), 32, torch.bfloat16, "cuda")
    assert fits(x, convolution(weight))
    assert not fits(x.float(), convolution(weight.float()))
    assert not fits(x, convolution(weight[:3]))
    assert not fits(x[:, :16], convolution(weight[:, :16]))
    assert not fits(x, convolution(weight[:, :, :, :1, :1], padding=0))
    for others in ({"padding": 1}, {"stride": 2}, {"dilation": 2}):
        assert not fits(x, convolution(weight, **others))
