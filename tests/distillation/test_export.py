"""Weights of a student in layouts that others read."""

import pytest
import torch
from nano import CONFIG, nano_dit

from longlive.distillation.export import (
    config_of,
    merged,
    network_of,
    official_adapters,
    official_generator,
    save_official,
)
from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.weights.lora import adapters_of, add_lora, inject_lora, lora_state_dict
from longlive.weights.state_dicts import read_checkpoint, read_state_dict


def with_adapters() -> DiT:
    dit = nano_dit(torch.float32)
    add_lora(dit, rank=2, alpha=2.0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in dit.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1, generator=generator)
    return dit


def checkpoint_of(**networks: DiT) -> dict:
    return {
        "state_dict": {
            f"{name}.{key}": value
            for name, dit in networks.items()
            for key, value in dit.state_dict().items()
        }
    }


def test_the_official_layout_is_read_as_any_published_file(tmp_path):
    dit = nano_dit(torch.float32)
    found = network_of(checkpoint_of(student=dit, critic=nano_dit()), "student", "a file")
    save_official(tmp_path / "student.pt", official_generator(found))
    content = read_checkpoint(tmp_path / "student.pt")
    assert list(content) == ["generator"]
    assert all(name.startswith("model.") for name in content["generator"])
    read = read_state_dict(tmp_path / "student.pt")
    assert read.keys() == dit.state_dict().keys()
    assert all(torch.equal(read[name], value) for name, value in dit.state_dict().items())


def test_adapters_have_the_official_names_and_do_what_the_trained_network_does(tmp_path):
    dit = with_adapters()
    found = network_of(checkpoint_of(student=dit), "student", "a file")
    content = official_adapters(generator_lora=found, critic_lora=found)
    assert content["generator_lora"].keys() == lora_state_dict(dit).keys()
    save_official(tmp_path / "lora.pt", content)
    plain = nano_dit(torch.float32)
    adapters = adapters_of(read_checkpoint(tmp_path / "lora.pt"), "lora.pt", "critic_lora")
    inject_lora(plain, adapters, 2.0)
    text = torch.randn(1, 3, CONFIG.text_width)
    x = torch.randn(1, 2, 3, 4, 6)
    t = torch.tensor([500.0])
    with torch.no_grad():
        ours, theirs = (n.bidirectional(x, t, n.text_keys_values(text)) for n in (plain, dit))
    assert torch.equal(ours, theirs)


def test_merged_weights_do_what_the_trained_network_does():
    dit, plain = with_adapters(), nano_dit(torch.float32)
    found = network_of(checkpoint_of(student=dit), "student", "a file")
    plain.load_state_dict(merged(found, alpha=2.0))
    text = torch.randn(1, 3, CONFIG.text_width)
    x = torch.randn(1, 2, 3, 4, 6)
    t = torch.tensor([500.0])
    with torch.no_grad():
        ours, theirs = (n.bidirectional(x, t, n.text_keys_values(text)) for n in (plain, dit))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_what_a_checkpoint_does_not_hold_is_refused_in_one_line():
    plain = checkpoint_of(student=nano_dit())
    with pytest.raises(UserError, match="a file holds no critic"):
        network_of(plain, "critic", "a file")
    with pytest.raises(UserError, match="trained all weights"):
        official_adapters(generator_lora=network_of(plain, "student", "a file"))


def test_the_size_of_a_network_is_in_the_checkpoint():
    from dataclasses import asdict

    assert config_of({"sizes": {"student": asdict(CONFIG)}}, "student") == CONFIG


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("longlive.distillation.export.torch.save", fail)
    with pytest.raises(UserError, match="no space left"):
        save_official(tmp_path / "a.pt", {})
    assert list(tmp_path.iterdir()) == []
