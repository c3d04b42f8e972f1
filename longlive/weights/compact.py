"""Weights in eight bits: one scale per output row, for files that must stay small.

Matrices and convolutions are stored as int8 with a float32 scale for each row (symmetric, absolute
maximum); everything else stays as it is. Reading multiplies the two, so the model never knows.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE_SUFFIX = ".row_scale"
_FEWEST_VALUES = 4096


def is_large(value: Tensor) -> bool:
    """Whether a tensor is a matrix or convolution that is worth storing in fewer bits."""
    return value.ndim >= 2 and value.numel() >= _FEWEST_VALUES


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Store large matrices in eight bits, the rest in float32.

    Args:
        tensors: A state dict of floating-point weights.

    Returns:
        int8 tensors under their own names, scales under ``name + ".row_scale"``.
    """
    packed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.detach().float().cpu()
        if not is_large(value):
            packed[name] = value.contiguous()
            continue
        rows = value.flatten(1)
        scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        packed[name] = (rows / scale).round().to(torch.int8).view(value.shape).contiguous()
        packed[name + SCALE_SUFFIX] = scale.squeeze(1).contiguous()
    return packed


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`pack`; a state dict that was never packed comes back as it is."""
    unpacked: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        scale = tensors.get(name + SCALE_SUFFIX)
        if scale is not None:
            value = value.float() * scale.view(-1, *[1] * (value.ndim - 1))
        unpacked[name] = value
    return unpacked
