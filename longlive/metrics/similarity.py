"""SSIM and MS-SSIM of frames, in float64.

Both give the values of ``torchmetrics.functional.image`` (a Gaussian window of 11 pixels and
standard deviation 1.5, borders mirrored, k1 0.01, k2 0.03, values in [0, 1]). Those functions
convolve, which in float64 on a CPU takes ten times as long as the weighted sum of eleven shifts
below.

Shape suffixes: ``N`` frames, ``C`` channels, ``H`` ``W`` rows and columns.
"""

import torch
from torch import Tensor
from torch.nn import functional

from longlive.errors import UserError

WINDOW = 11
SIGMA = 1.5
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_C1, _C2 = 0.01**2, 0.03**2
_HALF = WINDOW // 2


def ssim(frames_NCHW: Tensor, reference_NCHW: Tensor) -> Tensor:
    """Structural similarity of each frame (Wang et al., IEEE TIP 13(4), 2004).

    Args:
        frames_NCHW: Values in [0, 1]; at least 6 pixels a side.
        reference_NCHW: As many of the same size.

    Returns:
        ``[N]``, float64, at most 1: the mean over channels and pixels.
    """
    similarity_NCHW, _ = _maps(frames_NCHW.double(), reference_NCHW.double())
    return similarity_NCHW.mean((1, 2, 3))


def ms_ssim(frames_NCHW: Tensor, reference_NCHW: Tensor) -> Tensor:
    """Similarity over several scales (Wang, Simoncelli and Bovik, Asilomar 2003).

    Frames too small for five scales are compared on the first ones whose window fits, with their
    weights scaled to a sum of one; such values are not comparable with those of larger frames.

    Args:
        frames_NCHW: Values in [0, 1].
        reference_NCHW: As many of the same size.

    Returns:
        ``[N]``, float64, in [0, 1].
    """
    weights = torch.tensor(scale_weights(frames_NCHW.shape[-2:]), dtype=torch.float64)
    x, y = frames_NCHW.double(), reference_NCHW.double()
    terms = []
    for index in range(len(weights)):
        similarity_NCHW, contrast_NCHW = _maps(x, y)
        if index == len(weights) - 1:
            terms.append(similarity_NCHW.mean((1, 2, 3)))
        else:
            # Where the window hangs over the border, only the luminance term is trusted.
            inner = contrast_NCHW[..., _HALF:-_HALF, _HALF:-_HALF]
            terms.append(inner.mean((1, 2, 3)))
            x, y = functional.avg_pool2d(x, 2), functional.avg_pool2d(y, 2)
    return torch.stack(terms, dim=1).clamp_(min=0).pow(weights.to(x.device)).prod(1)


def scale_weights(size: tuple[int, ...]) -> tuple[float, ...]:
    """Weights of the scales that frames of a size (rows, columns) allow.

    Raises:
        UserError: If not even one window fits.
    """
    fit = [n for n in range(1, 6) if min(size) // max(1, n - 1) ** 2 >= WINDOW]
    if not fit:
        raise UserError(
            f"frames of {size[1]}x{size[0]} pixels are too small for SSIM: it needs {WINDOW} a side"
        )
    if max(fit) == len(SCALE_WEIGHTS):
        return SCALE_WEIGHTS
    some = SCALE_WEIGHTS[: max(fit)]
    return tuple(weight / sum(some) for weight in some)


def _maps(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity and its contrast-structure factor, pixel by pixel."""
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = (_blurred(x * x) - mean_x**2).clamp_(min=0)
    variance_y = (_blurred(y * y) - mean_y**2).clamp_(min=0)
    covariance = _blurred(x * y) - mean_x * mean_y
    contrast = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return luminance * contrast, contrast


def _blurred(x_NCHW: Tensor) -> Tensor:
    offsets = torch.arange(WINDOW, dtype=torch.float64) - _HALF
    taps = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    taps = taps / taps.sum()
    padded = functional.pad(x_NCHW, (_HALF,) * 4, mode="reflect")
    height, width = x_NCHW.shape[-2:]
    rows = sum(float(tap) * padded[..., k : k + height, :] for k, tap in enumerate(taps))
    assert isinstance(rows, Tensor)
    blurred = sum(float(tap) * rows[..., k : k + width] for k, tap in enumerate(taps))
    assert isinstance(blurred, Tensor)
    return blurred
