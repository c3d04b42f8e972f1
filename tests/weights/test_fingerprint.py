"""The name of loaded weights."""

import torch
from torch import nn

from longlive.weights import fingerprint as module_of_fingerprint
from longlive.weights.fingerprint import fingerprint


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(70, 80), nn.Linear(80, 3))


def test_equal_weights_have_equal_names_and_any_other_value_another():
    name = fingerprint([model()])
    assert name.startswith("sha256:")
    assert fingerprint([model()]) == name
    changed = model()
    with torch.no_grad():
        changed[0].weight[33, 44] += 1e-6
    assert fingerprint([changed]) != name
    assert fingerprint([model().to(torch.bfloat16)]) != name
    assert fingerprint([model(), model()]) != name


def test_large_weights_are_sampled_and_say_so(monkeypatch):
    monkeypatch.setattr(module_of_fingerprint, "FULL_BYTES", 0)
    name = fingerprint([model()])
    assert name.startswith("sampled-sha256:")
    other = model()
    with torch.no_grad():
        other[0].weight.mul_(1.0001)
    assert fingerprint([other]) != name
    assert fingerprint([model()]) == name
