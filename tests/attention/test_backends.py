"""Which kernel runs, and what somebody is told who lacks it."""

import logging
import math
import sys

import pytest
import torch

from longlive.attention import backends
from longlive.attention.backends import (
    BACKENDS,
    missing_reason,
    resolve_attention,
    sdpa_attention,
)
from longlive.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_attention_is_softmax_over_the_keys_for_every_head():
    q = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, 7, 3, 8, dtype=torch.float64)
    out = sdpa_attention(q, k, v)
    assert out.shape == q.shape
    for b in range(2):
        for n in range(3):
            weights = (q[b, :, n] @ k[b, :, n].T / math.sqrt(8)).softmax(-1)
            torch.testing.assert_close(out[b, :, n], weights @ v[b, :, n])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_auto_on_a_cpu_is_sdpa_and_says_so(dtype, caplog):
    caplog.set_level(logging.INFO, "longlive.attention.backends")
    assert resolve_attention("auto", CPU, dtype) is sdpa_attention
    assert caplog.messages == ["attention backend: sdpa (auto, on cpu)"]


def test_a_backend_that_is_asked_for_by_name_is_logged_too(caplog):
    caplog.set_level(logging.INFO, "longlive.attention.backends")
    assert resolve_attention("sdpa", CPU, torch.float32) is sdpa_attention
    assert caplog.messages == ["attention backend: sdpa"]


@pytest.fixture
def pretend(monkeypatch):
    """Pretend that some kernels are installed; loading one returns its name."""

    def install(*names: str) -> None:
        monkeypatch.setattr(
            backends, "missing_reason", lambda name, device: None if name in names else "absent"
        )
        monkeypatch.setattr(backends, "_load", lambda name: name)

    return install


def test_auto_takes_the_fastest_that_works(pretend):
    pretend("sdpa", "flash-attn-2", "flash-attn-3")
    assert resolve_attention("auto", CUDA, torch.bfloat16) == "flash-attn-3"
    pretend(*BACKENDS)
    assert resolve_attention("auto", CUDA, torch.bfloat16) == "flash-attn-4"
    pretend("sdpa", "flash-attn-2")
    assert resolve_attention("auto", CUDA, torch.bfloat16) == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_auto_never_takes_a_half_precision_kernel_for_wider_tensors(dtype, pretend):
    pretend(*BACKENDS)
    assert resolve_attention("auto", CUDA, dtype) == "sdpa"


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "sdpa"])
def test_a_kernel_for_gpus_is_a_user_error_on_a_cpu(name):
    with pytest.raises(UserError, match=f"'{name}' cannot be used: needs a CUDA device"):
        resolve_attention(name, CPU, torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("flash-attn-4", "flash_attn"),
        ("flash-attn-3", "flash_attn_interface"),
        ("flash-attn-2", "flash_attn"),
    ],
)
def test_a_kernel_that_is_not_installed_is_a_user_error_with_the_command(
    name, package, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.cute", None)
    with pytest.raises(UserError, match="not installed") as error:
        resolve_attention(name, CUDA, torch.bfloat16)
    assert str(error.value).endswith(BACKENDS[name].install)


@pytest.mark.parametrize(("name", "major"), [("flash-attn-3", 10), ("flash-attn-4", 8)])
def test_a_kernel_for_another_gpu_is_a_user_error_with_both_capabilities(name, major, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    with pytest.raises(UserError, match=rf"compute capability \(.*\), this GPU is {major}\.x"):
        resolve_attention(name, CUDA, torch.bfloat16)


def test_a_broken_installation_is_still_told_in_one_line(monkeypatch):
    class Broken:
        @staticmethod
        def load() -> None:
            raise RuntimeError("undefined symbol\n  in libcute.so\n")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(backends, "import_module", lambda name: Broken)
    reason = missing_reason("flash-attn-4", CUDA)
    assert reason is not None
    assert "\n" not in reason
    assert "undefined symbol in libcute.so" in reason


def test_an_unknown_backend_is_a_user_error_that_lists_the_known_ones():
    with pytest.raises(UserError, match="unknown attention backend 'xformers'.*flash-attn-4"):
        resolve_attention("xformers", CPU, torch.float32)
