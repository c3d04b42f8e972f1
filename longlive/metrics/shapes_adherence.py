"""Adherence to prompts of the shapes world, accumulated over batches and processes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from longlive.metrics.shapes_judge import ClipScore
from longlive.shapes import SLOTS


class ShapesAdherence(Metric):
    """Share of clips that show what was asked for: slot by slot, on average, and in all five.

    Counts are kept in float64 and summed over processes, so the result does not depend on how the
    prompts were spread.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    right: Tensor
    all_right: Tensor
    clips: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(len(SLOTS), dtype=torch.float64)
        self.add_state("right", default=zeros, dist_reduce_fx="sum")
        self.add_state("all_right", default=zeros.new_zeros(()), dist_reduce_fx="sum")
        self.add_state("clips", default=zeros.new_zeros(()), dist_reduce_fx="sum")

    def update(self, scores: Sequence[ClipScore]) -> None:
        """Count clips that were judged, see :func:`longlive.metrics.shapes_judge.judge_clips`."""
        for score in scores:
            self.right += self.right.new_tensor([getattr(score, slot) for slot in SLOTS])
            self.all_right += score.all_five
            self.clips += 1

    def compute(self) -> dict[str, Tensor]:
        """Shares in [0, 1]: ``adherence``, ``all_five``, and one for each slot by its name."""
        share = self.right / self.clips
        named = dict(zip(SLOTS, share, strict=True))
        return {"adherence": share.mean(), "all_five": self.all_right / self.clips, **named}
