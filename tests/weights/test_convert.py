"""Conversion: the merged weights, their papers, and no half-written file."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.models.sizes import SIZES, DiTConfig
from longlive.weights import convert as module
from longlive.weights.convert import HEADER_KEY, convert
from longlive.weights.layouts import config_beside, locate
from longlive.weights.loading import load_strict
from longlive.weights.state_dicts import read_metadata, read_state_dict

CONFIG = DiTConfig(width=64, ffn_width=160, heads=2, layers=3, text_width=48, text_len=12)
OFFICIAL = {"dim": 64, "ffn_dim": 160, "num_heads": 2, "num_layers": 3, "text_dim": 48} | {
    "text_len": 12,
    "in_dim": 16,
    "freq_dim": 256,
    "eps": 1e-6,
}


@pytest.fixture
def sources(golden_dir, tmp_path):
    """Base and adapter as the publisher packs them, from the reference's tiny weights."""
    base = load_file(golden_dir / "weights" / "dit-a.safetensors")
    lora = load_file(golden_dir / "weights" / "lora-a.safetensors")
    folder = tmp_path / "published"
    folder.mkdir()
    wrapped = {f"model.{name}": tensor for name, tensor in base.items()}
    torch.save({"generator": wrapped, "step": 1}, folder / "longlive_base.pt")
    torch.save({"generator_lora": lora, "critic_lora": lora, "step": 1}, folder / "lora.pt")
    (folder / "config.json").write_text(json.dumps(OFFICIAL))
    return folder


def made(sources, tmp_path, lora=True, **options):
    lora_file = sources / "lora.pt" if lora else None
    return convert(
        sources / "longlive_base.pt", lora_file, tmp_path / "out", **({"alpha": 4} | options)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_file_holds_the_merged_weights_rounded_once(golden_dir, sources, tmp_path, dtype):
    path = made(sources, tmp_path, dtype=dtype)
    tensors = read_state_dict(path)
    case = load_file(golden_dir / "09-lora-rank4.safetensors")
    base = load_file(golden_dir / "weights" / "dit-a.safetensors")
    assert tensors.keys() == base.keys()
    kind = getattr(torch, dtype)
    for name, tensor in tensors.items():
        expected = case.get(f"out.merged.{name}", base[name])
        assert tensor.dtype is kind
        torch.testing.assert_close(tensor, expected.to(kind))


def test_the_folder_is_found_and_loads_strictly(sources, tmp_path):
    path = made(sources, tmp_path)
    assert locate(["converted"], tmp_path / "out") == {"converted": path}
    config = config_beside(path)
    assert config == CONFIG
    load_strict(DiT(config), read_state_dict(path), str(path))


def test_the_header_and_the_card_say_what_it_was_made_of(sources, tmp_path):
    path = made(sources, tmp_path)
    header = json.loads(read_metadata(path)[HEADER_KEY])
    base_sha256 = hashlib.sha256((sources / "longlive_base.pt").read_bytes()).hexdigest()
    assert header["base_sha256"] == base_sha256
    assert header["base"] == "longlive_base.pt"
    assert header["lora"] == "lora.pt"
    assert (header["lora_rank"], header["lora_alpha"], header["dtype"]) == ("4", "4", "bfloat16")
    assert header["torch"] == torch.__version__
    card = (path.parent / "README.md").read_text()
    assert base_sha256 in card
    assert "rank 4, alpha 4" in card
    assert str(tmp_path) not in card + json.dumps(header)


def test_the_same_sources_give_the_same_bytes(sources, tmp_path):
    first = made(sources, tmp_path).read_bytes()
    assert made(sources, tmp_path, overwrite=True).read_bytes() == first


def test_a_base_without_a_lora_keeps_its_numbers(golden_dir, sources, tmp_path):
    path = made(sources, tmp_path, lora=False, dtype="float32")
    base = load_file(golden_dir / "weights" / "dit-a.safetensors")
    assert all(torch.equal(t, base[name]) for name, t in read_state_dict(path).items())
    assert "lora" not in read_metadata(path)[HEADER_KEY]
    assert "No adapter was merged." in (path.parent / "README.md").read_text()


def test_a_named_size_needs_no_configuration_beside_it(tmp_path):
    weights = DiT("tiny").state_dict()
    save_file(weights, tmp_path / "tiny.safetensors")
    path = convert(tmp_path / "tiny.safetensors", None, tmp_path / "out", dtype="float32")
    assert config_beside(path) == SIZES["tiny"]


def test_a_size_without_name_or_configuration_is_refused(sources, tmp_path):
    (sources / "config.json").unlink()
    with pytest.raises(UserError, match="width 64 with 3 layers.*config.json"):
        made(sources, tmp_path)


def test_weights_that_are_not_a_whole_transformer_are_refused(sources, tmp_path):
    tensors = read_state_dict(sources / "longlive_base.pt")
    del tensors["head.head.bias"]
    save_file(tensors, sources / "cut.safetensors")
    with pytest.raises(UserError, match=r"1 missing: head\.head\.bias"):
        convert(sources / "cut.safetensors", None, tmp_path / "out")
    with pytest.raises(UserError, match="no LoRA adapters"):
        convert(sources / "longlive_base.pt", sources / "longlive_base.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten_unasked(sources, tmp_path):
    path = made(sources, tmp_path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists"):
        made(sources, tmp_path, lora=False)
    assert path.read_bytes() == before
    made(sources, tmp_path, lora=False, overwrite=True)
    assert path.read_bytes() != before


def test_a_write_that_fails_leaves_the_old_file_and_no_scraps(sources, tmp_path, monkeypatch):
    path = made(sources, tmp_path)
    before = path.read_bytes()

    def fail_half_way(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", fail_half_way)
    with pytest.raises(OSError, match="No space"):
        made(sources, tmp_path, overwrite=True)
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "README.md",
        "config.json",
        "longlive.safetensors",
    ]


def test_a_full_disk_and_an_unknown_type_are_refused_before_writing(sources, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="float32, bfloat16, float16"):
        made(sources, tmp_path, dtype="fp8")
    usage = module.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="0 kB free"):
        made(sources, tmp_path)
