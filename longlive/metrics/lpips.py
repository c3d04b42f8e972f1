"""LPIPS with the AlexNet that the user has (Zhang et al., CVPR 2018, arXiv:1801.03924).

The learned part of the distance, five small linear heads, comes with torchmetrics. The network
under them does not: ``alexnet-owt-7be5be79.pth``, the file that torchvision fetches, must be given.
It is run here layer by layer, because torchvision cannot be installed beside every torch.

Shape suffixes: ``N`` frames, ``C`` channels, ``H`` ``W`` rows and columns.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from longlive.errors import UserError
from longlive.video.frames import evenly
from longlive.weights.state_dicts import read_state_dict

WEIGHTS_FILE = "alexnet-owt-7be5be79.pth"
# Index in torchvision's ``features``, stride, padding, and whether a pooling comes before.
_LAYERS = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))
_SHIFT = (-0.030, -0.088, -0.188)  # of images in [-1, 1], as the heads were trained
_SCALE = (0.458, 0.448, 0.450)
_SMALLEST_SIDE = 63  # pixels that leave one value after the last pooling


class PerceptualDistance:
    """LPIPS of pairs of frames.

    Args:
        weights: The AlexNet of torchvision, as a file.
        device: Where to compute.

    Raises:
        UserError: If the file is missing or holds another network.
    """

    def __init__(self, weights: Path | str, device: torch.device | str = "cpu") -> None:
        tensors = read_state_dict(Path(weights))
        self._layers = []
        for index, *_ in _LAYERS:
            names = [f"features.{index}.{part}" for part in ("weight", "bias")]
            if any(name not in tensors for name in names):
                raise UserError(
                    f"{weights} has no {names[0]}: give torchvision's AlexNet, {WEIGHTS_FILE}"
                )
            self._layers.append([tensors[name].float().to(device) for name in names])
        self._heads = [head.to(device) for head in _heads()]
        if any(
            len(bias) != head.shape[1]
            for (_, bias), head in zip(self._layers, self._heads, strict=True)
        ):
            raise UserError(f"{weights} has other widths: give torchvision's AlexNet")

    @torch.no_grad()
    def __call__(self, frames_NCHW: Tensor, reference_NCHW: Tensor) -> Tensor:
        """Distances ``[N]``, 0 for equal frames; values in [0, 1], at least 63 pixels a side.

        Raises:
            UserError: If the frames are smaller.
        """
        if min(frames_NCHW.shape[-2:]) < _SMALLEST_SIDE:
            height, width = frames_NCHW.shape[-2:]
            raise UserError(
                f"frames of {width}x{height} pixels are too small for LPIPS: it needs "
                f"{_SMALLEST_SIDE} a side"
            )
        x, y = (self._prepared(frames) for frames in (frames_NCHW, reference_NCHW))
        distance = x.new_zeros(len(x))
        for (weight, bias), head, (_, stride, padding, pooled) in zip(
            self._layers, self._heads, _LAYERS, strict=True
        ):
            if pooled:
                x, y = (functional.max_pool2d(f, 3, 2) for f in (x, y))
            x, y = (
                functional.conv2d(f, weight, bias, stride=stride, padding=padding).relu_()
                for f in (x, y)
            )
            off = (_normed(x) - _normed(y)).square()
            distance = distance + functional.conv2d(off, head).mean((1, 2, 3))
        return distance

    def _prepared(self, frames_NCHW: Tensor) -> Tensor:
        device = self._heads[0].device
        shift = torch.tensor(_SHIFT, device=device).view(3, 1, 1)
        scale = torch.tensor(_SCALE, device=device).view(3, 1, 1)
        return (frames_NCHW.float().to(device) * 2 - 1 - shift) / scale


class PerceptualFidelity(Metric):
    """Mean LPIPS over frames: how different two videos look to a network that people agree with.

    When it misleads: it was fitted to small patches of photographs; on flat drawings it is blind to
    small objects and sensitive to texture. It is a distance, not a judgment of quality.

    Args:
        distance: Of pairs of frames; usually :class:`PerceptualDistance`.
        frames: How many of a video are compared, evenly spaced.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    total: Tensor
    count: Tensor

    def __init__(self, distance: PerceptualDistance, frames: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distance = distance
        self.frames = frames
        for name in ("total", "count"):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, default=zero, dist_reduce_fx="sum")

    def update(self, frames_TCHW: Tensor, reference_TCHW: Tensor) -> None:
        """Add one video: float in [0, 1] or ``uint8``, both of one shape."""
        some = evenly(len(frames_TCHW), self.frames)
        x, y = (unit(frames[some]) for frames in (frames_TCHW, reference_TCHW))
        self.total += self.distance(x, y).double().sum().to(self.device)
        self.count += len(x)

    def compute(self) -> dict[str, Tensor]:
        """``lpips``."""
        return {"lpips": self.total / self.count}


def unit(frames: Tensor) -> Tensor:
    """Frames as float32 in [0, 1]."""
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()


def _normed(x_NCHW: Tensor) -> Tensor:
    return x_NCHW / (x_NCHW.norm(dim=1, keepdim=True) + 1e-10)


def _heads() -> list[Tensor]:
    import torchmetrics.functional.image as image

    path = Path(image.__file__).parent / "lpips_models" / "alex.pth"
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return [tensors[f"lin{index}.model.1.weight"].float() for index in range(len(_LAYERS))]
