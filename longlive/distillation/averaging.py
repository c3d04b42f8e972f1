"""A moving average of the student's weights."""

import torch
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Move each weight of ``average`` towards that of ``current``: ``a + (1 - decay)(c - a)``.

    Both may be sharded in the same way. Kept in the average's own type, float32 for training.

    Args:
        average: Changed in place.
        current: A network of the same make.
        decay: Share of the old average that stays; 0 copies.
    """
    for mean, weight in zip(average.parameters(), current.parameters(), strict=True):
        mean.lerp_(weight.detach().to(mean.dtype), 1 - decay)
