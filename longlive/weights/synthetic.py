"""Random weights that behave: for speed tests and dry runs without a download.

Every tensor is drawn on its device from a generator seeded by its name, so a weight does not depend
on what else the model has; it does depend on the kind of device, whose generators differ.
"""

import hashlib

import torch
from torch import Tensor, nn

BIAS_STD = 0.02
NORM_STD = 0.05


@torch.no_grad()
def fill_synthetic(
    module: nn.Module,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    drawn_on: torch.device | str | None = None,
) -> None:
    """Fill a module with random weights that keep activations in a sane range at any depth.

    Matrices and filters are normal with variance 1 / fan-in, norm weights lie near one, biases
    near zero.

    Args:
        module: Any module, on the meta device or not; meta weights are drawn where they shall be.
        seed: Together with its name, what a tensor's values depend on.
        dtype: Type of the floating-point weights; by default the module's own.
        device: Where the weights are wanted; by default where the module is, or the CPU.
        drawn_on: Where they are drawn one by one; by default there. A thousand million numbers
            take a core ten seconds.
    """
    state = {}
    for name, like in module.state_dict().items():
        place = torch.device(device or ("cpu" if like.is_meta else like.device))
        kind = dtype if dtype and like.is_floating_point() else like.dtype
        empty = torch.empty(like.shape, dtype=kind, device=drawn_on or place)
        state[name] = draw_weight(name, empty, seed).to(place)
    module.load_state_dict(state, assign=True)
    if device is not None:
        module.to(device)


def draw_weight(name: str, weight: Tensor, seed: int) -> Tensor:
    """Fill one tensor in place, by the rule that its name and shape call for."""
    if not weight.is_floating_point():
        return weight.zero_()
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator(weight.device)
    generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    if name.endswith("bias"):
        return weight.normal_(std=BIAS_STD, generator=generator)
    # One value a channel is what a norm multiplies with.
    if weight.ndim < 2 or weight.numel() == weight.shape[0]:
        return weight.normal_(mean=1.0, std=NORM_STD, generator=generator)
    fan_in = weight[0].numel()
    return weight.normal_(std=fan_in**-0.5, generator=generator)
