"""Channels-last memory for the VAE's convolutions, in training."""

import lightning.pytorch as pl
import torch

from longlive.models.vae import WanVAE
from longlive.models.vae_layers import use_channels_last


class ChannelsLast(pl.Callback):
    """Keeps the VAE's convolution weights channels-last, the layout of the tensor cores.

    Activations follow the weights. Numerics: another kernel rounds differently.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.set_float32_matmul_precision("high")
        for module in pl_module.modules():
            if isinstance(module, WanVAE):
                use_channels_last(module)
