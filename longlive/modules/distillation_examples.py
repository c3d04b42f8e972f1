"""What a training step of distillation learns from, whichever data module it comes from."""

# Shape suffixes: B batch, S states of an ODE, F latent frames, C channels, H W latent rows and
# columns, M tokens of the prompt, E text width.

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from longlive.data.pair_shards import PairBatch
from longlive.data.shapes_data import ClipBatch
from longlive.data.training_prompts import PromptBatch
from longlive.errors import UserError
from longlive.modules.distillation_networks import Language


@dataclass(frozen=True, slots=True)
class Example:
    """One batch, with its prompts encoded.

    Attributes:
        text: Embeddings of the prompts ``[B, M, E]``.
        negative: Embeddings of the negative prompt, one for each clip, same shape.
        second_text: Embeddings of the prompts after a switch; those of the first where the data
            have none.
        latents: True clips ``[B, F, C, H, W]``, if the data have them.
        states: States of the teacher's ODE ``[B, S, F, C, H, W]``, likewise.
        sigmas: Their noise levels ``[S]``.
        starts: First latent frame of each true clip that follows its prompt ``[B]``; None if all
            clips do from their start.
    """

    text: Tensor
    negative: Tensor
    second_text: Tensor
    latents: Tensor | None = None
    states: Tensor | None = None
    sigmas: Tensor | None = None
    starts: Tensor | None = None

    @property
    def batch(self) -> int:
        """Videos in it."""
        return self.text.shape[0]

    def split(self, parts: int) -> list["Example"]:
        """Cut it into equal parts.

        Raises:
            UserError: If that does not work out evenly.
        """
        if self.batch % parts:
            raise UserError(
                f"a batch of {self.batch} cannot be cut into {parts} equal parts: change "
                "batch_size or updates.micro_batches"
            )
        size = self.batch // parts
        return [self._rows(slice(i * size, (i + 1) * size)) for i in range(parts)]

    def clips(self) -> Tensor:
        """True clips.

        Raises:
            UserError: If the data have none.
        """
        if self.latents is None:
            raise UserError(
                "this stage needs true clips and the data have none: use "
                "longlive.data.shapes_data.ShapesLatents or stored pairs"
            )
        return self.latents

    def _rows(self, rows: slice) -> "Example":
        changes = {
            field.name: getattr(self, field.name)[rows]
            for field in fields(self)
            if field.name != "sigmas" and getattr(self, field.name) is not None
        }
        return replace(self, **changes)


def examples_of(
    batch: Any, language: Language, negative_prompt: str, device: torch.device
) -> Example:
    """Encode the prompts of a batch of any kind.

    Args:
        batch: Of a data module of this package.
        language: Text encoder.
        negative_prompt: What guidance steers away from.
        device: Where the rest goes.
    """
    negative = language.embed([negative_prompt])
    if isinstance(batch, PromptBatch):
        text, second = language.embed(batch.first), language.embed(batch.second)
        return Example(text, negative.expand_as(text), second)
    if isinstance(batch, PairBatch):
        text = language.embed(batch.prompts)
        states = batch.states.to(device)
        sigmas = batch.sigmas.to(device)
        return Example(text, negative.expand_as(text), text, states[:, -1], states, sigmas)
    if isinstance(batch, ClipBatch):
        text = language.encode(batch.ids, batch.mask)
        negatives, latents = negative.expand_as(text), batch.latents.float()
        return Example(text, negatives, text, latents, starts=batch.starts)
    raise UserError(
        f"distillation cannot learn from a {type(batch).__name__}: use prompts, stored pairs or "
        "clips, see docs/distillation.md"
    )
