"""Activation checkpointing of a transformer's layers, correct with a KV cache.

A layer keeps its inputs and computes the rest again in the backward pass (arXiv:1604.06174). The
second run must not write into the cache: see :mod:`longlive.distillation.caches`.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longlive.attention.core import LayerAttend
from longlive.distillation.caches import TrainingLayerCache
from longlive.models.dit import DiT, run_layer
from longlive.models.layers import DiTLayer


def recompute_layers(dit: DiT) -> None:
    """Let a transformer compute its layers again in the backward pass, from now on."""
    dit.run_layer = run_layer_checkpointed


def run_layer_checkpointed(layer: DiTLayer, *inputs: Any) -> Tensor:
    """Call a layer and keep only its inputs for the backward pass.

    Args:
        layer: The layer.
        *inputs: Its inputs; the last one is how it attends.
    """
    if not torch.is_grad_enabled():
        return run_layer(layer, *inputs)
    x_BLE: Tensor = checkpoint(
        layer,
        *inputs,
        use_reentrant=False,
        # Nothing in a layer is random.
        preserve_rng_state=False,
        context_fn=partial(_contexts, inputs[-1]),
    )
    return x_BLE


def _contexts(
    attend: LayerAttend,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the first run and of the second."""
    cache = getattr(attend, "cache", None)
    if isinstance(cache, TrainingLayerCache):
        return nullcontext(), cache.replaying()
    return nullcontext(), nullcontext()
