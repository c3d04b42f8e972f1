"""A CUDA graph for the CPU: operations recorded with their tensors, and repeated on those tensors.

Like a graph it runs no Python of the call again, keeps every number and every address it saw, and
does nothing that it did not see.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longlive.callbacks.graph_recorder import Recording


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.steps:
            again = func(*args, **kwargs)
            if func.namespace == "_c10d_functional":
                torch.ops._c10d_functional.wait_tensor(again)
            for kept, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(kept, Tensor) and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


class TapeRecorder:
    """Records tapes; ``count`` says how many, ``fails`` makes the next ones fail."""

    def __init__(self) -> None:
        self.count = 0
        self.fails = False

    def record(self, call: Callable[[], Any]) -> Recording:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.count += 1
        with _Tape() as tape:
            out = call()
        return Recording(out, tape.replay)
