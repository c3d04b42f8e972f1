"""What all optimizations share: what they need of the machine, and what happens where it is absent.

No optimization imports another. Each states its numerics in the first line of its overlay in
``configs/opt``, and ``tests/test_optimizations.py`` holds it to that.
"""

import logging
import weakref
from collections.abc import Iterator
from typing import TypeVar

import lightning.pytorch as pl
import torch
from torch import nn

from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.models.tiny_decoder import TinyDecoder
from longlive.models.vae import WanVAE
from longlive.rollout.hooks import RolloutCallback
from longlive.weights.lora import LoRALinear

log = logging.getLogger(__name__)

Part = TypeVar("Part", bound=nn.Module)


class Optimization(RolloutCallback):
    """A rollout callback that makes something faster, where the machine lets it.

    Args:
        required: Whether a machine without what it needs is an error. If not, the run goes on
            without this optimization and says so once.
    """

    def __init__(self, required: bool = True) -> None:
        self.required = required
        self._usable_on: dict[torch.device, bool] = {}

    def missing(self, device: torch.device) -> str | None:
        """What it needs and the machine lacks, to follow "needs"; None if nothing."""
        return None

    def is_usable(self, pl_module: pl.LightningModule) -> bool:
        """Whether it can be applied to a module, whose weights are on their device.

        Raises:
            UserError: If it cannot, and is required.
        """
        device = device_of(pl_module)
        if device not in self._usable_on:
            self._usable_on[device] = self._find_out(device)
        return self._usable_on[device]

    def _find_out(self, device: torch.device) -> bool:
        need = self.missing(device)
        if need is None:
            return True
        name = type(self).__name__
        if self.required:
            raise UserError(
                f"{name} needs {need}: leave its overlay out, or set required to false to go on "
                "without it"
            )
        log.warning("%s is off: it needs %s", name, need)
        return False


class SeenOnce:
    """Notes what has been seen with a module, without keeping the module alive."""

    def __init__(self) -> None:
        self._module: weakref.ref[pl.LightningModule] | None = None
        self._keys: set[object] = set()

    def is_new(self, pl_module: pl.LightningModule, key: object) -> bool:
        """Whether this is the first time that ``key`` is asked for with this module."""
        if self._module is None or self._module() is not pl_module:
            self._module, self._keys = weakref.ref(pl_module), set()
        is_new = key not in self._keys
        self._keys.add(key)
        return is_new


def device_of(pl_module: pl.LightningModule) -> torch.device:
    """Where the weights of a module are."""
    weight = next(pl_module.parameters(), None)
    return pl_module.device if weight is None else weight.device


def check_final(dit: DiT, doing: str) -> None:
    """Check that the weights of a transformer are what they will be.

    Args:
        dit: The transformer.
        doing: What wants to replace them, to begin a sentence.

    Raises:
        UserError: If there are adapters beside the weights, or the weights are being trained.
    """
    if any(isinstance(module, LoRALinear) for module in dit.modules()):
        raise UserError(f"{doing} needs the adapters within the weights: set lora to merged")
    if any(weight.requires_grad for weight in dit.parameters()):
        raise UserError(
            f"{doing} leaves weights that cannot be trained: leave the overlay out of training"
        )


def parts_of(pl_module: pl.LightningModule, kind: type[Part]) -> Iterator[Part]:
    """The components of a kind, such as transformers.

    A component is a LightningModule and has no others inside, so it is not searched: a walk through
    all layers takes milliseconds, and every optimization would add that to the first frame.
    """
    waiting: list[nn.Module] = [pl_module]
    while waiting:
        module = waiting.pop()
        if isinstance(module, kind):
            yield module
        elif module is pl_module or not isinstance(module, pl.LightningModule):
            waiting.extend(module.children())


def decoder_of(pl_module: pl.LightningModule) -> pl.LightningModule:
    """The decoder's weights, which may be on a device of their own; all if there is no decoder."""
    decoders = [*parts_of(pl_module, WanVAE), *parts_of(pl_module, TinyDecoder)]
    return decoders[0] if decoders else pl_module


def compiler_missing(device: torch.device, backend: str) -> str | None:
    """What ``torch.compile`` needs and the machine lacks, or None."""
    if backend != "inductor":
        return None
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton and a GPU it supports"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "a C++ compiler (g++ or clang++)"
    return None
