"""GELU and rounding to FP8 in one, beside the steps it stands for."""

import pytest
import torch
import torch.nn.functional as F
from in_interpreter import needs_triton, run_interpreted
from torch import Tensor

from longlive.callbacks.quantized_linear import quantize
from longlive.kernels.gelu_fp8 import gelu_fp8, plain_gelu_fp8

SIZES = torch.tensor([1.0, 0.0, 1e-20, 1e-3, 30.0, 1e4, 1.0])


def tokens(inputs: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Tokens of very different sizes, one of them nothing."""
    wide = torch.randn(len(SIZES), inputs + 8, device=device) * SIZES.to(device)[:, None]
    return wide.to(dtype)[:, :inputs]


def test_it_is_the_gelu_and_then_what_a_quantized_layer_does():
    x = tokens(50)
    expected, scale = quantize(F.gelu(x, approximate="tanh"), "fp8", "row")
    for got in (plain_gelu_fp8(x), gelu_fp8(x)):
        assert torch.equal(got[0].float(), expected.float())
        assert torch.equal(got[1], scale)


def test_the_largest_number_of_a_token_is_the_largest_of_e4m3():
    values, scale = plain_gelu_fp8(tokens(50))
    assert values.float()[SIZES > 1e-12].abs().amax(1).tolist() == [448.0] * 5
    assert values.float().isfinite().all()
    assert (scale > 0).all()


def test_the_operation_is_registered_as_torch_asks():
    # The other checks of torch ask e4m3 for sums, which it does not have.
    checked = torch.ops.longlive.gelu_fp8.default
    torch.library.opcheck(checked, (tokens(50),), test_utils="test_faketensor")


# The kernel, by Triton's interpreter; a process of its own, since Triton is told when it is loaded.


def differences(device: str, dtype: torch.dtype) -> float:
    """Share of values that the kernel rounds otherwise, in chunks that are full and one that is
    not."""
    from longlive.kernels.gelu_fp8_triton import triton_gelu_fp8

    worst = 0.0
    for inputs in (2048, 2500, 7, 8960):
        x = tokens(inputs, device, dtype)
        (values, scale), (expected, wanted) = triton_gelu_fp8(x), plain_gelu_fp8(x)
        torch.testing.assert_close(scale, wanted, rtol=1e-5, atol=1e-12)
        differ = values.float() != expected.float()
        # To the next number, if any.
        torch.testing.assert_close(values.float(), expected.float(), rtol=0.13, atol=2**-8)
        worst = max(worst, float(differ.float().mean()))
    values, scale = triton_gelu_fp8(tokens(64, device, dtype)[:0])
    assert (values.shape, scale.shape) == ((0, 64), (0, 1))
    return worst


def check_interpreted() -> None:
    """Run in that process."""
    import interpreted  # noqa: F401 - it mends the interpreter.

    assert differences("cpu", torch.float32) < 0.01


@needs_triton
def test_the_kernel_computes_what_the_plain_operations_do():
    run_interpreted("test_gelu_fp8")


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_the_kernel_computes_what_the_plain_operations_do(dtype):
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs FP8")
    assert differences("cuda", dtype) < 0.01
