"""Regions inside modules, timed by forward hooks that are removed after the rollout.

The transformer and the attention know nothing of this. A pass is cut at the borders that hooks can
see, each border ending one part and beginning the next, so that the parts of a layer add up to it:

    layer, norm1, self_attn.k   forward hooks      norms and modulation, QKV projection
    attend, cache, kernel       stand-ins          RoPE, KV-cache update, attention
    self_attn, cross_attn, ffn  forward hooks      output projection, cross-attention, FFN

The gates and the residual sums count as modulation, for no module begins or ends round them. RoPE
includes the slicing of what is stored.
"""

# Shape suffixes: B batch, L tokens of the call, S tokens read, F latent frames, N heads,
# D head dim.

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from longlive.attention.core import Attend, LayerAttend, WindowAttention
from longlive.attention.kv_cache import KVCache, LayerCache, Slots
from longlive.metrics.regions import RegionRecorder
from longlive.metrics.rollout_profile import LAYER
from longlive.models.dit import DiT
from longlive.models.layers import DiTLayer
from longlive.models.text_encoder import UMT5Encoder

TEXT_ENCODER = "text encoder"
CROSS_RESET = "cross-attention reset"

EMBEDDINGS = "embeddings"
HEAD = "head"
NORMS = "norms and modulation"
QKV = "QKV projection"
ROPE = "RoPE"
UPDATE = "KV-cache update"
ATTENTION = "attention"
OUTPUT_PROJECTION = "output projection"
CROSS_ATTENTION = "cross-attention"
FFN = "FFN"

_ATTEND_INDEX = 3  # among the arguments of DiT.forward


class Hooks:
    """Forward hooks of one rollout.

    Args:
        recorder: Of this thread; calls of the modules from other threads are none of its business.
    """

    def __init__(self, recorder: RegionRecorder) -> None:
        self.recorder = recorder
        self._handles: list[RemovableHandle] = []
        self._thread = threading.get_ident()

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def is_here(self) -> bool:
        """Whether Python runs a module in the rollout's thread, and not its compiler."""
        return not torch.compiler.is_compiling() and threading.get_ident() == self._thread

    def _before(self, module: nn.Module, call: Callable[[], None]) -> None:
        self._handles.append(module.register_forward_pre_hook(lambda module, args: call()))

    def _after(self, module: nn.Module, call: Callable[[], None]) -> None:
        self._handles.append(module.register_forward_hook(lambda module, args, output: call()))


class TextHooks(Hooks):
    """Divides the encoding of a prompt into text encoder and cross-attention reset.

    The reset is the keys and values of the new prompt for every layer, computed and stored. A
    compiled module is left alone; its part is then not told apart.

    Args:
        recorder: Of this thread.
        pl_module: Has the modules.
        region: The region round both.
    """

    def __init__(
        self, recorder: RegionRecorder, pl_module: pl.LightningModule, region: str
    ) -> None:
        super().__init__(recorder)
        self._region = region
        for module in pl_module.modules():
            if isinstance(module, UMT5Encoder) and not is_compiled(module):
                self._before(module, lambda: self._begin(TEXT_ENCODER, after=CROSS_RESET))
                self._after(module, lambda: self._end(TEXT_ENCODER))
            if isinstance(module, DiT) and not is_compiled(module.text_embedding):
                self._before(module.text_embedding, lambda: self._begin(CROSS_RESET))

    def _begin(self, name: str, after: str | None = None) -> None:
        if not self.is_here:
            return
        if after is not None:
            self._end(after)
        if self.recorder.current == self._region:
            self.recorder.open(name)

    def _end(self, name: str) -> None:
        if self.is_here and self.recorder.current == name:
            self.recorder.close()


class LayerHooks(Hooks):
    """Divides every pass of the transformer into layers, and every layer into its parts.

    Args:
        recorder: Of this thread.
        pl_module: Has the transformer.

    Attributes:
        passes: Passes that were divided.
        obstacle: Why none can be, if that is known beforehand.
    """

    def __init__(self, recorder: RegionRecorder, pl_module: pl.LightningModule) -> None:
        super().__init__(recorder)
        self.passes = 0
        self.obstacle = ""
        self._is_on = False
        self._in_layer = False
        dits = [module for module in pl_module.modules() if isinstance(module, DiT)]
        if any(is_compiled(module) for dit in dits for module in dit.modules()):
            self.obstacle = "the transformer's layers are compiled"
        elif not dits:
            self.obstacle = "the module has no transformer"
        else:
            for dit in dits:
                self._attach(dit)

    def detach(self) -> None:
        """Remove every hook."""
        self._is_on = self._in_layer = False
        super().detach()

    def swap(self, name: str) -> None:
        """Go from one part of a layer to the next."""
        if self._in_layer:
            self.recorder.swap(name, memory=False)

    def end_layer(self, *, is_last: bool) -> None:
        """The layer is done, and the pass too if it only left keys and values."""
        if self._in_layer:
            self._in_layer = False
            at = self.recorder.close(self.recorder.close())
            if is_last:
                self.recorder.open(HEAD, memory=False, at=at)

    def _attach(self, dit: DiT) -> None:
        self._handles.append(dit.register_forward_pre_hook(self._begin_pass, with_kwargs=True))
        self._after(dit, self._end_pass)
        for index, layer in enumerate(dit.layers):
            self._attach_layer(layer, index, is_last=index == dit.config.layers - 1)

    def _attach_layer(self, layer: DiTLayer, index: int, *, is_last: bool) -> None:
        self._before(layer, lambda: self._begin_layer(index))
        # Where a layer only leaves keys and values behind, it is not called as a module.
        self._before(layer.norm1, lambda: self._begin_layer(index))
        self._before(layer.self_attn.k, self._begin_keys)
        for part, name in (
            (layer.self_attn, QKV),
            (layer.cross_attn, CROSS_ATTENTION),
            (layer.ffn, FFN),
        ):
            self._before(part, partial(self.swap, name))
            self._after(part, partial(self.swap, NORMS))
        self._after(layer, lambda: self.end_layer(is_last=is_last))

    def _begin_pass(
        self, dit: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._is_on = self.is_here and self.recorder.current is not None and not self._is_captured
        if not self._is_on:
            return None
        self.passes += 1
        self.recorder.open(EMBEDDINGS, memory=False)
        if "attend" in kwargs:
            return args, {**kwargs, "attend": _TimedAttend(kwargs["attend"], self)}
        timed = _TimedAttend(args[_ATTEND_INDEX], self)
        return (*args[:_ATTEND_INDEX], timed, *args[_ATTEND_INDEX + 1 :]), kwargs

    def _end_pass(self) -> None:
        if self._is_on:
            self._is_on = False
            self.recorder.close_through(HEAD)
            if self.recorder.current == EMBEDDINGS:
                # No layer was called as a module, so this was no embedding but the whole pass.
                self.recorder.cancel()
                self.passes -= 1

    def _begin_layer(self, index: int) -> None:
        if not self._is_on or self._in_layer:
            return
        self._in_layer = True
        at = self.recorder.close() if self.recorder.current == EMBEDDINGS else None
        at = self.recorder.open(LAYER, layer=index, memory=False, at=at)
        self.recorder.open(NORMS, memory=False, at=at)

    def _begin_keys(self) -> None:
        if self.recorder.current == NORMS:
            self.swap(QKV)

    @property
    def _is_captured(self) -> bool:
        return self.recorder.clock.is_device and torch.cuda.is_current_stream_capturing()


class _TimedAttend:
    """Self-attention of one pass that tells where it stands; the numbers are those of ``attend``.

    Of an ``attend`` that is no :class:`WindowAttention` nothing is known but its whole.
    """

    def __init__(self, attend: Attend, hooks: LayerHooks) -> None:
        self._hooks = hooks
        self._call = self._store = attend
        self._first_part = ATTENTION
        if isinstance(attend, WindowAttention):
            self._first_part = ROPE
            # Both have all that WindowAttention asks of a cache.
            cache = cast(KVCache, _TimedCache(attend.cache, hooks, then=ROPE))
            self._call = replace(attend, cache=cache)
            cache = cast(KVCache, _TimedCache(attend.cache, hooks, then=None))
            self._store = replace(attend, cache=cache)

    def __getitem__(self, layer: int) -> LayerAttend:
        return _TimedLayerAttend(
            self._call[layer], self._store[layer], self._hooks, self._first_part
        )


class _TimedLayerAttend:
    """The same of one layer."""

    def __init__(
        self, call: LayerAttend, store: LayerAttend, hooks: LayerHooks, first_part: str
    ) -> None:
        self._call = call
        self._store = store
        self._hooks = hooks
        self._first_part = first_part

    def __call__(self, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
        self._hooks.swap(self._first_part)
        out_BLND = self._call(q_BLND, k_BLND, v_BLND)
        self._hooks.swap(OUTPUT_PROJECTION)
        return out_BLND

    def store(self, k_BLND: Tensor, v_BLND: Tensor) -> None:
        self._hooks.swap(self._first_part)
        self._store.store(k_BLND, v_BLND)
        self._hooks.end_layer(is_last=False)


class _TimedCache:
    """A cache that tells when it is updated, and which part follows."""

    def __init__(self, cache: KVCache, hooks: LayerHooks, then: str | None) -> None:
        self._cache = cache
        self._hooks = hooks
        self._then = then

    def __getitem__(self, layer: int) -> "_TimedLayerCache":
        return _TimedLayerCache(self._cache[layer], self._hooks, self._then)


class _TimedLayerCache:
    """The same of one layer."""

    def __init__(self, cache: LayerCache, hooks: LayerHooks, then: str | None) -> None:
        self.tokens_per_slot = cache.tokens_per_slot
        self._cache = cache
        self._hooks = hooks
        self._then = then

    def update(
        self, k_BLND: Tensor, v_BLND: Tensor, write_slots_F: Tensor, read: Slots
    ) -> tuple[Any, ...]:
        self._hooks.swap(UPDATE)
        seen = self._cache.update(k_BLND, v_BLND, write_slots_F, read)
        if self._then is not None:
            self._hooks.swap(self._then)
        return seen

    def kernel(self, attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
        kernel = self._cache.kernel(attention)

        def timed(*given: Any) -> Tensor:
            self._hooks.swap(ATTENTION)
            return kernel(*given)

        return timed


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module.compile()`` was called; there is no public way to ask."""
    return module._compiled_call_impl is not None


@contextmanager
def uncompiled(root: nn.Module) -> Iterator[None]:
    """Run every module as it was before ``module.compile()``, so that hooks see what is inside."""
    calls = {module: module._compiled_call_impl for module in root.modules() if is_compiled(module)}
    for module in calls:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in calls.items():
            module._compiled_call_impl = call
