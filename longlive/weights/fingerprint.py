"""A name for loaded weights that changes when any of them does."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

FULL_BYTES = 256 * 2**20
"""Up to here every byte is hashed; beyond, samples of every tensor."""
_SAMPLES = 4096


@torch.no_grad()
def fingerprint(modules: Iterable[nn.Module]) -> str:
    """Hash the parameters and buffers of some modules, as they are in memory.

    Small models are hashed whole (``sha256:``). Of large ones 4096 evenly spaced values of every
    tensor are (``sampled-sha256:``), which takes milliseconds instead of a minute and tells any two
    trained checkpoints apart.

    Args:
        modules: In a fixed order.
    """
    tensors = [
        (f"{index}.{name}", tensor)
        for index, module in enumerate(modules)
        for name, tensor in sorted(module.state_dict().items())
    ]
    is_full = sum(tensor.nbytes for _, tensor in tensors) <= FULL_BYTES
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor if is_full else _sampled(tensor)))
    return f"{'sha256' if is_full else 'sampled-sha256'}:{digest.hexdigest()}"


def _sampled(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    step = max(1, -(-flat.numel() // _SAMPLES))
    return flat[::step]


def _bytes_of(tensor: Tensor) -> bytes:
    contiguous = tensor.detach().contiguous().reshape(-1).cpu()
    return contiguous.view(torch.uint8).numpy().tobytes()
