"""Trains text encoder and diffusion transformer together, from nothing, by flow matching."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from longlive.data.shapes_data import ClipBatch
from longlive.data.shapes_pretraining import PretrainingBatch
from longlive.models.dit import DiT, TeacherForcingOptions
from longlive.models.learning_rate import TimedTraining
from longlive.models.sizes import DiTConfig
from longlive.models.text_encoder import UMT5Encoder, text_encoder_config
from longlive.models.tokenizer import EOS_ID, PAD_ID

BETAS = (0.9, 0.95)
"""Of AdamW; the usual second one for transformers (arXiv:2005.14165)."""
WARMUP_STEPS = 200
"""Training steps over which the learning rate rises."""


class TextToVideoPretraining(TimedTraining):
    """Teacher-forced flow matching of a causal transformer under prompts.

    First blocks alone come first: they are where a prompt has to be obeyed, and they are cheap. The
    whole clips then teach how a video goes on, and the first blocks stay beside them.

    Args:
        size: Named size of the transformer, or its configuration.
        text_encoder: Named size of the text encoder.
        teacher_forcing: How clips are cut and noised.
        unprompted_share: How often the prompt is left out, for classifier-free guidance
            (arXiv:2207.12598).
        openings_share: How much of the training, at its start, sees first blocks only; nothing of
            one without an end.
        learning_rate: Of AdamW.
        max_steps: Training steps after which it has fallen to zero; None keeps it up.
        max_seconds: The same in seconds of training.
    """

    def __init__(
        self,
        size: str | DiTConfig = "tiny",
        text_encoder: str = "tiny",
        teacher_forcing: TeacherForcingOptions | None = None,
        unprompted_share: float = 0.1,
        openings_share: float = 0.4,
        learning_rate: float = 1e-3,
        max_steps: int | None = None,
        max_seconds: float | None = None,
    ) -> None:
        super().__init__(learning_rate, BETAS, WARMUP_STEPS, max_steps, max_seconds)
        self.dit = DiT(size, teacher_forcing)
        self.dit.reset_parameters()
        self.text_encoder = UMT5Encoder(text_encoder_config(text_encoder))
        self.text_encoder.init_weights()
        self.unprompted_share = unprompted_share
        self.openings_share = openings_share

    def on_train_start(self) -> None:
        # All processes begin with one seed, for the same weights; their noise is their own.
        if self.trainer.world_size > 1:
            torch.manual_seed(torch.initial_seed() + self.global_rank + self.global_step)

    def training_step(self, batch: PretrainingBatch, batch_index: int = 0) -> Tensor:
        loss = self._loss(batch.openings)
        self.log("train/opening_loss", loss.detach())
        if not self.clock.has_end or self.clock.progress >= self.openings_share:
            flow_loss = self._loss(batch.clips)
            self.log("train/flow_loss", flow_loss.detach(), prog_bar=True)
            loss = loss + flow_loss
        return loss

    def _loss(self, batch: ClipBatch) -> Tensor:
        ids_BM, mask_BM = self._without_some_prompts(batch.ids, batch.mask)
        text_BME = self.text_encoder(ids_BM, mask_BM, trim=False)
        text = self.dit.text_keys_values(text_BME)
        return self.dit.flow_matching_loss(batch.latents, text, batch.starts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sizes beside the weights, for the export."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["sizes"] = {
            "dit": asdict(self.dit.config),
            "text_encoder": asdict(self.text_encoder.config),
        }

    def _without_some_prompts(self, ids_BM: Tensor, mask_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Replace a share of the prompts by the empty one: end of sequence, then padding."""
        left_out_B1 = torch.rand(len(ids_BM), 1, device=ids_BM.device) < self.unprompted_share
        empty_ids, empty_mask = torch.full_like(ids_BM, PAD_ID), torch.zeros_like(mask_BM)
        empty_ids[:, 0], empty_mask[:, 0] = EOS_ID, 1
        return torch.where(left_out_B1, empty_ids, ids_BM), torch.where(
            left_out_B1, empty_mask, mask_BM
        )
