"""Trains text encoder and diffusion transformer together, from nothing, by flow matching."""

from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from longlive.data.shapes_data import ClipBatch
from longlive.models.dit import DiT, TeacherForcingOptions
from longlive.models.reconstruction import adamw_with_schedule
from longlive.models.sizes import DiTConfig
from longlive.models.text_encoder import UMT5Encoder, text_encoder_config
from longlive.models.tokenizer import EOS_ID, PAD_ID

BETAS = (0.9, 0.95)
"""Of AdamW; the usual second one for transformers (arXiv:2005.14165)."""


class TextToVideoPretraining(pl.LightningModule):
    """Teacher-forced flow matching of a causal transformer under prompts.

    Args:
        size: Named size of the transformer, or its configuration.
        text_encoder: Named size of the text encoder.
        teacher_forcing: How clips are cut and noised.
        unprompted_share: How often the prompt is left out, for classifier-free guidance
            (arXiv:2207.12598).
        learning_rate: Of AdamW.
        warmup_steps: Training steps over which the learning rate rises.
        max_steps: Training steps after which it has fallen to zero; None keeps it up.
        max_seconds: The same in seconds of training.
    """

    def __init__(
        self,
        size: str | DiTConfig = "tiny",
        text_encoder: str = "tiny",
        teacher_forcing: TeacherForcingOptions | None = None,
        unprompted_share: float = 0.1,
        learning_rate: float = 1e-3,
        warmup_steps: int = 200,
        max_steps: int | None = None,
        max_seconds: float | None = None,
    ) -> None:
        super().__init__()
        self.dit = DiT(size, teacher_forcing)
        self.dit.reset_parameters()
        self.text_encoder = UMT5Encoder(text_encoder_config(text_encoder))
        self.text_encoder.init_weights()
        self.unprompted_share = unprompted_share
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.max_steps = max_steps
        self.max_seconds = max_seconds

    def training_step(self, batch: ClipBatch, batch_index: int = 0) -> Tensor:
        ids_BM, mask_BM = self._without_some_prompts(batch.ids, batch.mask)
        text_BME = self.text_encoder(ids_BM, mask_BM, trim=False)
        text = self.dit.text_keys_values(text_BME)
        loss = self.dit.flow_matching_loss(batch.latents, text, batch.starts)
        self.log("train/flow_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, schedule = adamw_with_schedule(
            self,
            learning_rate=self.learning_rate,
            betas=BETAS,
            warmup_steps=self.warmup_steps,
            max_steps=self.max_steps,
            max_seconds=self.max_seconds,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sizes beside the weights, for the export."""
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
