"""Weights of several layers in one tensor, for one product with all of them.

Each weight becomes a view of its part of the stack. So there is one copy in memory, the state dict
keeps its keys, and what is loaded into a weight later is in the stack too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def stack_weights(layers: Sequence[nn.Module], name: str) -> Tensor:
    """Stack a parameter that all layers have, ``[layers, ...]``, and make each a view of it."""
    stack = torch.stack([layer.get_parameter(name).detach() for layer in layers])
    for layer, part in zip(layers, stack, strict=True):
        # Parameters of their own: a captured graph that holds the old addresses has to notice.
        setattr(layer, name, nn.Parameter(part, requires_grad=False))
    return stack


def are_stacked(layers: Sequence[nn.Module], name: str, stack: Tensor) -> bool:
    """Whether the parameters are still views; a move to another device or type parts them."""
    start, size = stack.data_ptr(), stack.nbytes // len(layers)
    # By address: slices of the stack would take longer, and this is asked before a first frame.
    return all(
        getattr(layer, name).data_ptr() == start + index * size
        for index, layer in enumerate(layers)
    )
