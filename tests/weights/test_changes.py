"""A network as its four-bit change from another one."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from longlive.weights.changes import (
    CHANGE_SUFFIX,
    SCALE_SUFFIX,
    holds_change,
    pack_change,
    unpack_change,
)
from longlive.weights.compact import pack, unpack


@given(rows=st.integers(1, 9), columns=st.sampled_from([64, 96, 640]), seed=st.integers(0, 99))
def test_every_group_is_within_half_a_step_of_its_own_largest_change(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(64 * rows, columns, generator=generator)
    sizes = 10 ** torch.linspace(-3, 0, len(base)).view(-1, 1)
    change = sizes * torch.randn(base.shape, generator=generator)
    names = {"weight": base}
    restored = unpack_change(pack_change({"weight": base + change}, names), names)["weight"]
    group = 64 if columns % 64 == 0 else columns
    true, made = (x.view(-1, group) for x in (change, restored - base))
    step = true.abs().amax(1, keepdim=True) / 7
    # float16 scales are off by up to a two-thousandth, seven steps away from zero.
    assert ((made - true).abs() <= 0.51 * step + 1e-6).all()


def test_it_takes_half_the_room_of_eight_bits_and_is_closer():
    base = {"weight": torch.randn(256, 256)}
    tuned = {"weight": base["weight"] + 0.02 * torch.randn(256, 256)}
    change, whole = pack_change(tuned, base), pack(tuned)
    assert holds_change(change)
    assert not holds_change(whole)
    assert change["weight" + CHANGE_SUFFIX].nbytes == whole["weight"].nbytes // 2
    assert change["weight" + SCALE_SUFFIX].nbytes <= whole["weight"].nbytes // 32
    errors = [
        (restored["weight"] - tuned["weight"]).square().mean()
        for restored in (unpack_change(change, base), unpack(whole))
    ]
    assert errors[0] < errors[1] / 4


def test_what_is_small_or_the_same_comes_back_exactly():
    base = {"weight": torch.randn(80, 80), "bias": torch.zeros(80), "other": torch.zeros(1)}
    tuned = {"weight": base["weight"].clone(), "bias": torch.randn(80)}
    restored = unpack_change(pack_change(tuned, base), base)
    assert restored.keys() == tuned.keys()
    for name, value in tuned.items():
        assert torch.equal(restored[name], value)
