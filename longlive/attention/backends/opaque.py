"""Kernels that the compiler calls and does not look into.

A compiled layer would otherwise be cut in two at a kernel written in another language, and torch's
own attention would be traced again for each length of the window. Where gradients are wanted the
kernel is called as it is, because only it knows its backward pass.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

_KERNELS: dict[str, Kernel] = {}


@torch.library.custom_op("longlive::attention", mutates_args=())
def _attention(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor, kernel: str) -> Tensor:
    return _KERNELS[kernel](q_BLND, k_BSND, v_BSND).contiguous()


@_attention.register_fake
def _(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor, kernel: str) -> Tensor:
    return torch.empty(q_BLND.shape, dtype=q_BLND.dtype, device=q_BLND.device)


def opaque(name: str, kernel: Kernel) -> Kernel:
    """Return a kernel that compiled code may call without tracing it, when no gradient is wanted.

    The same name gives the same function, since compiled code is built anew for another one.

    Args:
        name: Of the backend.
        kernel: ``(q_BLND, k_BSND, v_BSND) -> out_BLND``; replaces an earlier one of that name.
    """
    _KERNELS[name] = kernel
    caller = _caller(name)
    # Whoever looks at the function shall find the backend.
    caller.__module__ = kernel.__module__
    return caller


@cache
def _caller(name: str) -> Kernel:
    def attention(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and not torch.is_grad_enabled():
            out: Tensor = _attention(q_BLND, k_BSND, v_BSND, name)
            return out
        return _KERNELS[name](q_BLND, k_BSND, v_BSND)

    return attention
