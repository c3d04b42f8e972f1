"""The losses of distillation as functions of tensors; no network is called here.

Distribution matching: DMD (arXiv:2311.18828), DMD2 (arXiv:2405.14867), with self-forcing rollouts
(arXiv:2506.08009). Regression on ODE pairs and causal students: CausVid (arXiv:2412.07772).
Consistency: arXiv:2303.01469. Discriminator: the non-saturating loss of arXiv:1406.2661.
"""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns.

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Granularity = Literal["clip", "block"]
_SMALLEST_NORM = 1e-8


def guided(
    prompted: Tensor,
    unprompted: Tensor,
    scale: float,
    start: Literal["prompted", "unprompted"],
) -> Tensor:
    """Classifier-free guidance (arXiv:2207.12598): ``start + scale * (prompted - unprompted)``."""
    origin = prompted if start == "prompted" else unprompted
    return origin + scale * (prompted - unprompted)


def matching_gradient(
    x_BFCHW: Tensor, fake_BFCHW: Tensor, real_BFCHW: Tensor, *, block: int | None = None
) -> Tensor:
    """Direction in which the student's clips are too likely, ``(fake - real) / mean |x - real|``.

    The difference of the two clean estimates is, up to a factor of the noise level, the gradient of
    the KL divergence between the noisy distributions (arXiv:2311.18828, equation 7); the norm makes
    its size the same at all levels (equation 8).

    Args:
        x_BFCHW: The student's clip.
        fake_BFCHW: The critic's clean estimate of it.
        real_BFCHW: The teacher's.
        block: Latent frames over which the norm is a mean; None for the whole clip.
    """
    frames = x_BFCHW.shape[1] if block is None else block
    distance = rearrange((x_BFCHW - real_BFCHW).abs(), "B (K F) C H W -> B K (F C H W)", F=frames)
    norm_BK = distance.mean(-1).clamp_min(_SMALLEST_NORM)
    norm_BF = norm_BK.repeat_interleave(frames, 1)
    return (fake_BFCHW - real_BFCHW) / norm_BF[..., None, None, None]


def matching_loss(x_BFCHW: Tensor, gradient_BFCHW: Tensor, counts: Tensor | None = None) -> Tensor:
    """A loss whose gradient with respect to ``x`` is the given one over the number of elements.

    ``mean((x - stopgrad(x - g)) ** 2) / 2``, in float64 as in the reference.

    Args:
        x_BFCHW: The student's clip, in the graph.
        gradient_BFCHW: Of :func:`matching_gradient`.
        counts: Booleans that broadcast to the clip: which elements count; all by default.
    """
    x = x_BFCHW.double()
    target = (x_BFCHW - gradient_BFCHW).double().detach()
    return 0.5 * mean_over((x - target).square(), counts)


def velocity_loss(
    velocity_BFCHW: Tensor, noise_BFCHW: Tensor, x0_BFCHW: Tensor, counts: Tensor | None = None
) -> Tensor:
    """Flow matching (arXiv:2210.02747): mean squared error of a velocity ``noise - x0``."""
    return mean_over((velocity_BFCHW - (noise_BFCHW - x0_BFCHW)).square(), counts)


def regression_loss(x0_BFCHW: Tensor, target_BFCHW: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean squared error of a clean estimate, in float32 at least."""
    wide = torch.promote_types(x0_BFCHW.dtype, torch.float32)
    return mean_over((x0_BFCHW.to(wide) - target_BFCHW.to(wide)).square(), counts)


def pseudo_huber_loss(
    x0_BFCHW: Tensor, target_BFCHW: Tensor, counts: Tensor | None = None, *, c: float = 0.03
) -> Tensor:
    """Distance of consistency training (arXiv:2310.14189, equation 8), a mean over elements.

    Quadratic for errors below ``c`` times the standard deviation of the latents, which is one, and
    absolute above: a consistency target is noisy, and outliers must not lead.
    """
    wide = torch.promote_types(x0_BFCHW.dtype, torch.float32)
    error = x0_BFCHW.to(wide) - target_BFCHW.to(wide)
    return mean_over((error.square() + c**2).sqrt() - c, counts)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logits of true clips shall be high and those of the student's low."""
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def deception_loss(fake: Tensor) -> Tensor:
    """The student's side of :func:`discriminator_loss`."""
    return F.softplus(-fake.float()).mean()


def mean_over(values: Tensor, counts: Tensor | None) -> Tensor:
    """Mean of the values that count.

    Args:
        values: Any shape.
        counts: Booleans that broadcast to it; None if all count.
    """
    if counts is None:
        return values.mean()
    weights = counts.expand_as(values)
    return (values * weights).sum() / weights.sum()
