"""The GELU as the end of a product."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from longlive.callbacks.fuse_gelu import FusedFeedForward, FuseGELU, has_tanh_epilogue
from longlive.callbacks.quantized_linear import QuantizedLinear
from longlive.errors import UserError
from longlive.models.layers import DiTLayer

CPU = torch.device("cpu")


def feed_forward(width: int = 16, wide: int = 32) -> nn.Sequential:
    return DiTLayer(width, wide, 2, 1e-6).ffn.requires_grad_(False)


@pytest.fixture
def ends_products(monkeypatch) -> None:
    """On a CPU products end in the GELU with the error function."""
    monkeypatch.setattr(FusedFeedForward, "_ends_products", lambda self, x: True)


def test_without_epilogues_the_children_are_called_one_after_the_other():
    plain = feed_forward()
    fused = FusedFeedForward(*plain)
    assert list(fused.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 5, 16)
    assert torch.equal(fused(x), plain(x))


@pytest.mark.usefixtures("ends_products")
def test_the_epilogue_takes_the_place_of_the_gelu_and_tokens_stay_where_they_are():
    plain = feed_forward()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        got = FusedFeedForward(*plain)(x)
    torch.testing.assert_close(got, plain[2](F.gelu(plain[0](x))))
    assert got.shape == x.shape


@pytest.mark.usefixtures("ends_products")
@pytest.mark.parametrize("fuses_first", [True, False])
def test_a_quantized_first_product_keeps_its_gelu_in_either_order(fuses_first):
    plain = feed_forward()
    quantized = QuantizedLinear(plain[0], "int8")
    expected_of = nn.Sequential(quantized, plain[1], plain[2])
    fused = FusedFeedForward(*(plain if fuses_first else expected_of))
    fused.set_submodule("0", quantized)
    x = torch.randn(1, 3, 16)
    with torch.no_grad():
        assert torch.equal(fused(x), expected_of(x))


@pytest.mark.usefixtures("ends_products")
@torch.no_grad()
def test_between_products_of_fp8_it_is_rounded_with_the_gelu():
    plain = feed_forward()
    quantized = nn.Sequential(
        QuantizedLinear(plain[0], "fp8", emulates=True),
        plain[1],
        QuantizedLinear(plain[2], "fp8", emulates=True),
    )
    x = torch.randn(2, 5, 16)
    got = FusedFeedForward(*quantized)(x)
    torch.testing.assert_close(got, quantized(x))
    assert got.dtype == x.dtype
    # One scale for all of an activation is found otherwise.
    by_tensor = QuantizedLinear(plain[2], "fp8", "tensor", emulates=True)
    others = nn.Sequential(quantized[0], plain[1], by_tensor)
    assert torch.equal(FusedFeedForward(*others)(x), others(x))


@pytest.mark.usefixtures("ends_products")
def test_with_gradients_it_is_the_plain_network():
    plain = feed_forward().requires_grad_(True)
    x = torch.randn(1, 3, 16)
    assert torch.equal(FusedFeedForward(*plain)(x), plain(x))


def test_a_product_that_ends_in_another_gelu_is_found_out_and_refused(monkeypatch):
    # As on a CPU.
    assert not has_tanh_epilogue(CPU)
    monkeypatch.setattr(
        "torch._addmm_activation",
        lambda bias, x, weight, use_gelu: F.gelu(x @ weight + bias, approximate="tanh"),
    )
    assert has_tanh_epilogue(CPU)
    monkeypatch.setattr("longlive.callbacks.fuse_gelu.has_tanh_epilogue", lambda device: False)
    with pytest.raises(UserError, match="FuseGELU needs a cuBLASLt whose GELU is the tanh one"):
        FuseGELU()._find_out(torch.device("cuda"))


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_on_a_gpu_it_is_as_near_to_float64_as_the_plain_network(dtype):
    if need := FuseGELU().missing(torch.device("cuda")):
        pytest.skip(need)
    plain = feed_forward(1536, 8960).to("cuda", dtype)
    x = torch.randn(1, 4680, 1536, device="cuda", dtype=dtype)
    fused = FusedFeedForward(*plain)
    exact = feed_forward(1536, 8960).to("cuda", torch.float64)
    exact.load_state_dict(plain.state_dict())
    wanted = exact(x.double())

    def distance(network: nn.Module) -> float:
        return float((network(x).double() - wanted).norm() / wanted.norm())

    # An approximation of tanh may be what ends a product in float32.
    assert distance(fused) <= 1.02 * distance(plain) + 1e-5
