"""Adherence to prompts of the shapes world, accumulated over batches and processes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from longlive.errors import UserError
from longlive.metrics.shapes_judge import ClipScore, judge_clip
from longlive.shapes import SLOTS, ShapePrompt, parse


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

    def update(
        self,
        frames_BTCHW: Tensor,
        prompts: Sequence[ShapePrompt | str],
        is_after_switch: bool = False,
    ) -> None:
        """Judge one clip per prompt.

        Args:
            frames_BTCHW: ``[B, T, 3, side, side]``, float in [0, 1].
            prompts: Parsed, or their texts.
            is_after_switch: Whether frame 0 is the first after a prompt switch.

        Raises:
            UserError: If clips and prompts differ in number or a text is no prompt.
        """
        if len(frames_BTCHW) != len(prompts):
            raise UserError(f"{len(frames_BTCHW)} clips need as many prompts, got {len(prompts)}")
        for frames_TCHW, prompt in zip(frames_BTCHW, prompts, strict=True):
            asked = parse(prompt) if isinstance(prompt, str) else prompt
            self.add(judge_clip(frames_TCHW, asked, is_after_switch=is_after_switch))

    def add(self, score: ClipScore) -> None:
        """Count a clip that has been judged already."""
        self.right += self.right.new_tensor([getattr(score, slot) for slot in SLOTS])
        self.all_right += score.all_five
        self.clips += 1

    def compute(self) -> dict[str, Tensor]:
        """Shares in [0, 1]: ``adherence``, ``all_five``, and one for each slot by its name."""
        share = self.right / self.clips
        named = dict(zip(SLOTS, share, strict=True))
        return {"adherence": share.mean(), "all_five": self.all_right / self.clips, **named}
