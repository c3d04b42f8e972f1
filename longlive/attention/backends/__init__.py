"""One attention call, several kernels behind it.

Every backend is a function ``(q_BLND, k_BSND, v_BSND) -> out_BLND``: softmax(q k^T / sqrt(D)) v,
without a mask. ``auto`` takes the fastest that works on the device and says which one it took.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

import torch
from torch import Tensor

from longlive.attention.backends.flex import flex_masked_attention
from longlive.attention.backends.sdpa import sdpa_attention, sdpa_masked_attention
from longlive.attention.masks import Mask
from longlive.errors import UserError

log = logging.getLogger(__name__)

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
BackendName = Literal["auto", "sdpa", "flash-attn-4", "flash-attn-3", "flash-attn-2"]


@dataclass(frozen=True, slots=True)
class Backend:
    """How to load a kernel, and what to tell somebody who lacks it.

    Attributes:
        module: Module of this package with a function ``load() -> Attention``.
        capabilities: Major compute capabilities it is for; empty for any device, a CPU included.
        install: Command that installs it.
    """

    module: str
    capabilities: tuple[int, ...]
    install: str


BACKENDS: dict[str, Backend] = {
    "flash-attn-4": Backend("flash4", (9, 10), "pip install 'longlive[cuda]'"),
    "flash-attn-3": Backend(
        "flash3", (9,), "build flash_attn_interface from the hopper folder of flash-attention"
    ),
    "sdpa": Backend("sdpa", (), "pip install torch"),
    "flash-attn-2": Backend(
        "flash2", (8, 9, 10, 12), "pip install --no-build-isolation 'longlive[flash-attn]'"
    ),
}
"""Fastest first: on Hopper torch's SDPA runs cuDNN, which beats FlashAttention 2."""


def missing_reason(name: str, device: torch.device) -> str | None:
    """Why a backend cannot be used on a device, or None if it can."""
    backend = BACKENDS[name]
    if backend.capabilities:
        if device.type != "cuda":
            return "needs a CUDA device"
        major = torch.cuda.get_device_capability(device)[0]
        if major not in backend.capabilities:
            return f"needs compute capability {backend.capabilities}, this GPU is {major}.x"
    try:
        import_module(f"{__name__}.{backend.module}").load()
    # A kernel package that is half installed fails in its own ways.
    except (ImportError, RuntimeError, OSError) as error:
        return f"not installed ({' '.join(str(error).split())}): {backend.install}"
    return None


def resolve_attention(name: BackendName, device: torch.device, dtype: torch.dtype) -> Attention:
    """Load a backend by name.

    Args:
        name: A key of ``BACKENDS``, or ``auto``.
        device: Where the tensors will be.
        dtype: Their type; the flash kernels take bfloat16 and float16 only.

    Raises:
        UserError: If the named backend is unknown or cannot be used here.
    """
    if name == "auto":
        half = dtype in (torch.bfloat16, torch.float16)
        candidates = BACKENDS if half else {"sdpa": BACKENDS["sdpa"]}
        chosen = next(key for key in candidates if missing_reason(key, device) is None)
        log.info("attention backend: %s (auto, on %s)", chosen, device)
        return _load(chosen)
    if name not in BACKENDS:
        raise UserError(f"unknown attention backend {name!r}: choose auto or one of {[*BACKENDS]}")
    reason = missing_reason(name, device)
    if reason is not None:
        raise UserError(f"attention backend {name!r} cannot be used: {reason}")
    log.info("attention backend: %s", name)
    return _load(name)


def masked_attention(q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor, mask: Mask) -> Tensor:
    """Attention under a mask: SDPA for a dense one, FlexAttention for a sparse one."""
    masked = sdpa_masked_attention if isinstance(mask, Tensor) else flex_masked_attention
    return masked(q_BLND, k_BLND, v_BLND, mask)


def _load(name: str) -> Attention:
    attention: Attention = import_module(f"{__name__}.{BACKENDS[name].module}").load()
    return attention


__all__ = [
    "BACKENDS",
    "Attention",
    "BackendName",
    "masked_attention",
    "missing_reason",
    "resolve_attention",
    "sdpa_attention",
]
