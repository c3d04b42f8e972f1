"""CLIP score of each prompt's part of a video, with CLIP weights that the user has.

Shape suffixes: ``T`` ``N`` frames, ``C`` channels, ``H`` ``W`` rows and columns, ``D`` features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

from longlive.errors import UserError
from longlive.geometry import FPS
from longlive.metrics.lpips import unit
from longlive.video.frames import evenly


class ClipEncoder(Protocol):
    """Pictures and texts to features that can be compared."""

    def images(self, frames_NCHW: Tensor) -> Tensor:
        """Features ``[N, D]`` of frames in [0, 1]."""
        ...

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Features ``[N, D]``; a prompt that is too long is cut."""
        ...


class TransformersClip:
    """CLIP from a folder that ``transformers`` wrote.

    Args:
        folder: With ``config.json``, weights, tokenizer and preprocessor; nothing is downloaded.
        device: Where to compute.

    Raises:
        UserError: If ``transformers`` is not installed or the folder is no CLIP.
    """

    def __init__(self, folder: Path | str, device: torch.device | str = "cpu") -> None:
        if not (Path(folder) / "config.json").is_file():
            raise UserError(
                f"{folder} has no config.json: give a folder of CLIP weights as transformers saves "
                "them"
            )
        try:
            from transformers import CLIPModel, CLIPProcessor
        except ImportError as error:
            raise UserError("a CLIP score needs transformers: pip install transformers") from error
        try:
            self._model = CLIPModel.from_pretrained(str(folder), local_files_only=True)
            self._processor = CLIPProcessor.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{folder} cannot be read as CLIP ({reason}): save it again") from error
        self._model.eval().to(device)
        self._device = device

    @torch.no_grad()
    def images(self, frames_NCHW: Tensor) -> Tensor:
        pixels = self._processor(
            images=list(frames_NCHW), return_tensors="pt", do_rescale=False
        ).to(self._device)
        return _features(self._model.get_image_features(**pixels))

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        tokens = self._processor(
            text=list(prompts), return_tensors="pt", padding=True, truncation=True
        ).to(self._device)
        return _features(self._model.get_text_features(**tokens))


class ClipScore(Metric):
    """``100 max(cos, 0)`` of frames and the prompt in force (Hessel et al., arXiv:2104.08718).

    Some frames of each prompt's span are scored; the second after a switch is left out. Spans count
    the same.

    When it misleads: CLIP reads what is there more than what happens, so motion, counts and left or
    right hardly matter; values of different CLIPs are not comparable; a prompt of more than 77
    tokens is cut.

    Args:
        encoder: CLIP.
        frames: How many of each prompt's span are scored.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    total: Tensor
    spans: Tensor

    def __init__(self, encoder: ClipEncoder, frames: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder
        self.frames = frames
        for name in ("total", "spans"):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, default=zero, dist_reduce_fx="sum")

    def update(self, frames_TCHW: Tensor, timeline: Sequence[tuple[int, str]]) -> None:
        """Add one video.

        Args:
            frames_TCHW: Float in [0, 1] or ``uint8``.
            timeline: ``(first frame, prompt)`` in order.
        """
        text = self.encoder.texts([prompt for _, prompt in timeline])
        ends = [start for start, _ in timeline[1:]] + [len(frames_TCHW)]
        for index, ((start, _), end) in enumerate(zip(timeline, ends, strict=True)):
            settled = start + FPS if start and start + FPS < end else start
            chosen = [settled + i for i in evenly(end - settled, self.frames)]
            image = self.encoder.images(unit(frames_TCHW[chosen]))
            cosine = torch.cosine_similarity(image.double(), text[index : index + 1].double())
            self.total += 100 * cosine.clamp(min=0).mean().to(self.device)
            self.spans += 1

    def compute(self) -> dict[str, Tensor]:
        """``clip_score``."""
        return {"clip_score": self.total / self.spans}


def _features(found: Any) -> Tensor:
    # transformers 5 wraps what earlier versions returned as a tensor.
    features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return features
