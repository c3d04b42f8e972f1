"""The folder of the embedded model: written, read back, and the one in the package."""

import json
from dataclasses import asdict, replace

import export_embedded
import pytest
import torch

from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.models.sizes import DiTConfig
from longlive.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from longlive.models.vae import WanVAE
from longlive.models.vae_networks import VAEConfig
from longlive.shapes import SLOTS
from longlive.weights import embedded

LARGEST_BYTES = 16_000_000
CONFIG = DiTConfig(
    width=64, ffn_width=64, heads=2, layers=1, text_width=8, text_len=4, frequency_width=8
)


def test_a_component_is_read_back_with_its_size_within_the_error_of_eight_bits(tmp_path):
    dit = DiT(CONFIG)
    embedded.save_component(tmp_path, "dit", dit.state_dict(), asdict(CONFIG))
    read = embedded.load_dit(tmp_path)
    assert read.config == CONFIG
    for name, weight in dit.state_dict().items():
        largest = weight.abs().max()
        assert (read.state_dict()[name] - weight).abs().max() <= largest / 250


def test_latent_statistics_come_back_with_the_vae(tmp_path):
    mean, std = tuple(i / 10 for i in range(16)), tuple(1 + i / 10 for i in range(16))
    config = VAEConfig(base_width=2, latent_mean=mean, latent_std=std)
    embedded.save_component(tmp_path, "vae", WanVAE(config).state_dict(), asdict(config))
    vae = embedded.load_vae(tmp_path)
    assert vae.config == config
    assert torch.equal(vae.latent_mean.flatten(), torch.tensor(mean))


def test_components_share_one_config_file(tmp_path):
    embedded.save_component(tmp_path, "a", {"weight": torch.zeros(1)}, {"x": 1})
    embedded.save_component(tmp_path, "b", {"weight": torch.zeros(1)}, {"y": 2})
    config = json.loads((tmp_path / embedded.CONFIG_FILE).read_text())
    assert config == {"a": {"x": 1}, "b": {"y": 2}}


def test_a_student_lies_beside_the_model_and_an_unknown_one_is_a_user_error(tmp_path):
    dit, student = DiT(CONFIG), DiT(CONFIG)
    embedded.save_component(tmp_path, "dit", dit.state_dict(), asdict(CONFIG))
    with pytest.raises(UserError, match="no student '4step' .*: train it .* to null"):
        embedded.load_dit(tmp_path, "4step")
    embedded.save_student(tmp_path, "4step", student.state_dict(), asdict(CONFIG))
    assert embedded.student_names(tmp_path) == ("4step",)
    for source, read in (
        (dit, embedded.load_dit(tmp_path)),
        (student, embedded.load_dit(tmp_path, "4step")),
    ):
        for name, value in source.state_dict().items():
            torch.testing.assert_close(read.state_dict()[name], value, rtol=0, atol=2e-2)
    with pytest.raises(UserError, match="choose one of 4step"):
        embedded.load_dit(tmp_path, "2step")


def test_a_student_of_another_size_is_stored_whole(tmp_path):
    embedded.save_component(tmp_path, "dit", DiT(CONFIG).state_dict(), asdict(CONFIG))
    config = replace(CONFIG, ffn_width=2 * CONFIG.ffn_width)
    embedded.save_student(tmp_path, "wide", DiT(config).state_dict(), asdict(config))
    assert embedded.load_dit(tmp_path, "wide").config == config


def test_a_student_beside_another_model_than_its_own_is_refused(tmp_path):
    dit = DiT(CONFIG)
    embedded.save_component(tmp_path, "dit", dit.state_dict(), asdict(CONFIG))
    embedded.save_student(tmp_path, "4step", dit.state_dict(), asdict(CONFIG))
    embedded.save_component(tmp_path, "dit", DiT(CONFIG).state_dict(), asdict(CONFIG))
    with pytest.raises(UserError, match=r"is the change of another dit\.safetensors .*: copy both"):
        embedded.load_dit(tmp_path, "4step")


def test_a_folder_without_a_config_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        embedded.load_dit(tmp_path)


def test_the_package_holds_a_whole_model_of_at_most_sixteen_megabytes():
    folder = embedded.embedded_folder()
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    students = {f"{embedded.component_of(name)}.safetensors" for name in embedded.student_names()}
    parts = ("dit", "text_encoder", "vae", "tiny_decoder")
    model = {f"{name}.safetensors" for name in parts}
    assert sizes.keys() == model | students
    assert sum(sizes[name] for name in model) <= LARGEST_BYTES
    assert sum(sizes[name] for name in students) <= LARGEST_BYTES
    dit, encoder = embedded.load_dit(), embedded.load_text_encoder()
    tokenizer = embedded.load_tokenizer()
    assert dit.config.text_width == encoder.config.width
    assert tokenizer.vocab_size <= encoder.config.vocab
    for decoder in (embedded.load_vae(), embedded.load_tiny_decoder()):
        assert decoder.config.latent_channels == dit.config.latent_channels
    words = {word for values in SLOTS.values() for value in values for word in value.split()}
    assert words <= set(tokenizer.known_words())
    assert (folder / "README.md").is_file()


def test_a_tiny_decoder_lies_beside_the_model_where_there_is_one(tmp_path):
    embedded.save_component(tmp_path, "dit", DiT(CONFIG).state_dict(), asdict(CONFIG))
    with pytest.raises(UserError, match="no tiny decoder in .*: set model.decoder to wan"):
        embedded.load_tiny_decoder(tmp_path)
    config = TinyDecoderConfig(widths=(8, 8, 8, 8), blocks=1)
    decoder = TinyDecoder(config)
    embedded.save_component(tmp_path, "tiny_decoder", decoder.state_dict(), asdict(config))
    read = embedded.load_tiny_decoder(tmp_path)
    assert read.config == config
    for name, value in decoder.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name], value, rtol=0, atol=2e-2)


def test_a_trained_tiny_decoder_is_exported_beside_the_model(tmp_path, monkeypatch):
    embedded.save_component(tmp_path, "dit", DiT(CONFIG).state_dict(), asdict(CONFIG))
    config = TinyDecoderConfig(widths=(8, 8, 8, 8), blocks=1)
    decoder = TinyDecoder(config)
    checkpoint: dict[str, object] = {"state_dict": decoder.state_dict()}
    decoder.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    words = ["export_embedded.py", "tiny_decoder", str(tmp_path / "last.ckpt"), str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    assert export_embedded.main() == 0
    read = embedded.load_tiny_decoder(tmp_path)
    assert read.config == config
    assert embedded.load_dit(tmp_path).config == CONFIG
