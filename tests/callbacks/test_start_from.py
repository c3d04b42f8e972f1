"""Training from weights that are there."""

import pytest
import torch

from longlive.callbacks.start_from import StartFrom
from longlive.errors import UserError
from longlive.models.sizes import DiTConfig
from longlive.models.vae import WanVAE
from longlive.models.vae_networks import VAEConfig
from longlive.modules.pretraining import TextToVideoPretraining
from longlive.weights.embedded import load_dit, load_text_encoder, load_vae, read_config


def test_a_vae_starts_from_the_weights_in_the_package():
    vae = WanVAE("tiny")
    StartFrom().setup(None, vae, "fit")  # type: ignore[arg-type]
    for name, weight in load_vae().state_dict().items():
        assert torch.equal(vae.state_dict()[name], weight)


def test_transformer_and_text_encoder_start_from_the_weights_in_the_package():
    model = TextToVideoPretraining(DiTConfig(**read_config()["dit"]))
    StartFrom().setup(None, model, "fit")  # type: ignore[arg-type]
    for part, loaded in ((model.dit, load_dit()), (model.text_encoder, load_text_encoder())):
        for name, weight in loaded.state_dict().items():
            assert torch.equal(part.state_dict()[name], weight)


def test_other_sizes_and_modules_are_refused_in_one_line():
    with pytest.raises(UserError, match="another size") as error:
        StartFrom().setup(None, WanVAE(VAEConfig(base_width=2)), "fit")  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="leave it out"):
        StartFrom().setup(None, load_dit(), "fit")  # type: ignore[arg-type]


def test_only_training_loads_them():
    vae = WanVAE("tiny")
    before = vae.conv2.weight.clone()
    StartFrom().setup(None, vae, "predict")  # type: ignore[arg-type]
    assert torch.equal(vae.conv2.weight, before)
