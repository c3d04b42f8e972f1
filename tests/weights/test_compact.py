"""Eight-bit storage: small, close, and invisible to whoever reads it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from longlive.weights.compact import SCALE_SUFFIX, pack, unpack


@given(rows=st.integers(1, 9), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_every_row_is_within_half_a_step_of_its_own_largest_value(rows, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = scale * 10 ** torch.linspace(-3, 3, rows).view(-1, 1, 1)
    weight = sizes * torch.randn(rows, 32, 130, generator=generator)
    restored = unpack(pack({"weight": weight}))["weight"]
    step = weight.flatten(1).abs().amax(1) / 127
    error = (restored - weight).flatten(1).abs().amax(1)
    assert (error <= 0.501 * step).all()


def test_large_matrices_take_a_quarter_of_the_room_and_the_rest_is_exact():
    tensors = {"matrix": torch.randn(64, 64), "bias": torch.randn(64), "small": torch.randn(3, 3)}
    packed = pack(tensors)
    assert packed["matrix"].dtype == torch.int8
    assert packed["matrix" + SCALE_SUFFIX].shape == (64,)
    restored = unpack(packed)
    assert restored.keys() == tensors.keys()
    assert torch.equal(restored["bias"], tensors["bias"])
    assert torch.equal(restored["small"], tensors["small"])


def test_a_row_of_zeros_stays_zero():
    weight = torch.randn(4, 2048)
    weight[1] = 0
    assert (unpack(pack({"weight": weight}))["weight"][1] == 0).all()


def test_what_was_never_packed_comes_back_as_it_is():
    tensors = {"weight": torch.randn(80, 80), "bias": torch.randn(80)}
    for name, value in unpack(tensors).items():
        assert value is tensors[name]
