"""Reading weight files: kinds, wrapping, prefixes, and what a bad file says."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longlive.errors import UserError
from longlive.weights.state_dicts import read_checkpoint, read_metadata, read_state_dict

BARE = {"blocks.0.self_attn.q.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.ones(2)}


def same(read: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = BARE) -> bool:
    return read.keys() == expected.keys() and all(
        torch.equal(read[name], expected[name]) for name in expected
    )


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in BARE.items()}


def pickled(content: object, path: Path, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


def sharded(folder: Path) -> Path:
    names = list(BARE)
    for number, name in enumerate(names):
        save_file({name: BARE[name]}, folder / f"part-{number}.safetensors")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    shard_of = {name: f"part-{number}.safetensors" for number, name in enumerate(names)}
    index.write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return index


def test_safetensors_shards_and_both_pickle_formats_read_the_same(tmp_path):
    save_file(BARE, tmp_path / "a.safetensors", {"base": "b.pt"})
    assert same(read_state_dict(tmp_path / "a.safetensors"))
    assert read_metadata(tmp_path / "a.safetensors") == {"base": "b.pt"}
    assert same(read_state_dict(sharded(tmp_path)))
    assert same(read_state_dict(pickled(BARE, tmp_path / "new.pt")))
    old = pickled(BARE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_state_dict(old))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_tensors_are_mapped_from_the_file_and_not_read(tmp_path, suffix):
    path = tmp_path / f"large{suffix}"
    large = {"w": torch.zeros(25_000_000)}
    save_file(large, path) if suffix == ".safetensors" else torch.save(large, path)
    del large
    before = resident_mb()
    tensor = read_state_dict(path)["w"]
    assert resident_mb() - before < 20
    assert tensor.sum() == 0


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.parametrize(
    "content",
    [
        {"generator": prefixed("model."), "critic": {}, "step": 3},
        {"model": prefixed("model.")},
        {"model": BARE},
        prefixed("model."),
        prefixed("text_encoder."),
        prefixed("model._fsdp_wrapped_module."),
        prefixed("_orig_mod.model._checkpoint_wrapped_module."),
        {**BARE, "step": 7},
    ],
)
def test_wrapping_and_prefixes_are_taken_off(tmp_path, content):
    assert same(read_state_dict(pickled(content, tmp_path / "w.pt")))


def test_wrappers_inside_a_name_are_taken_off(tmp_path):
    inside = {
        "model._fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.self_attn.q.weight": BARE[
            "blocks.0.self_attn.q.weight"
        ],
        "model._fsdp_wrapped_module.head.bias": BARE["head.bias"],
    }
    path = pickled({"generator_ema": inside}, tmp_path / "w.pt")
    assert same(read_state_dict(path, "generator_ema"))


def test_a_prefix_stays_where_only_some_names_have_it(tmp_path):
    mixed = {"model.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert read_state_dict(pickled(mixed, tmp_path / "w.pt")).keys() == mixed.keys()


def test_the_entry_asked_for_is_taken_and_no_other(tmp_path):
    twice = {name: 2 * tensor for name, tensor in BARE.items()}
    path = pickled({"generator": BARE, "generator_ema": twice, "step": 1}, tmp_path / "w.pt")
    assert same(read_state_dict(path))
    assert same(read_state_dict(path, "generator_ema"), twice)
    with pytest.raises(UserError, match=r"no critic; it has generator, generator_ema, step"):
        read_state_dict(path, "critic")
    with pytest.raises(UserError, match="no generator or model; it has generator_lora"):
        read_state_dict(pickled({"generator_lora": BARE}, tmp_path / "lora.pt"))


def test_one_tensor_under_two_names_is_refused(tmp_path):
    double = {"head.bias": torch.ones(1), "_orig_mod.head.bias": torch.zeros(1)}
    with pytest.raises(UserError, match="twice"):
        read_state_dict(pickled(double, tmp_path / "w.pt"))


def damaged(folder: Path) -> dict[str, Path]:
    """Files as downloads leave them when they go wrong."""
    save_file(BARE, folder / "whole.safetensors")
    torch.save(BARE, folder / "whole.pt")
    files = {}
    for name in ("whole.safetensors", "whole.pt"):
        content = (folder / name).read_bytes()
        for label, kept in (("empty", 0), ("start", 20), ("half", len(content) // 2)):
            files[f"{label} {name}"] = folder / f"{label}-{name}"
            files[f"{label} {name}"].write_bytes(content[:kept])
        files[f"cut {name}"] = folder / f"cut-{name}"
        files[f"cut {name}"].write_bytes(content[:-3])
        files[f"page {name}"] = folder / f"page-{name}"
        files[f"page {name}"].write_text("<!doctype html><title>404</title>" * 20)
    return files


def test_a_damaged_file_is_one_line_that_names_it_and_says_what_to_do(tmp_path):
    files = damaged(tmp_path)
    assert len(files) == 10
    for label, path in files.items():
        with pytest.raises(UserError) as error:
            read_checkpoint(path)
        message = str(error.value)
        assert str(path) in message, label
        assert "delete it and download it again" in message, label
        assert "\n" not in message, label
        assert "\x1b" not in message, label


def test_a_missing_file_a_folder_and_a_strange_name_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="longlive download"):
        read_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(UserError, match="is a folder"):
        read_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="must end in one of"):
        read_checkpoint(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_git_lfs_placeholder_is_recognized(tmp_path, name):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n")
    with pytest.raises(UserError, match="git lfs pull"):
        read_checkpoint(path)


class Stranger:
    pass


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    path = pickled({"generator": BARE, "args": Stranger()}, tmp_path / "w.pt")
    assert zipfile.is_zipfile(path)
    with pytest.raises(UserError, match="could run code"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="holds a list"):
        read_checkpoint(pickled([1, 2], tmp_path / "list.pt"))


def test_absent_and_mismatched_shards_are_named(tmp_path):
    index = sharded(tmp_path)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"not beside it: part-1\.safetensors"):
        read_checkpoint(index)
    save_file({"other": torch.ones(1)}, tmp_path / "part-1.safetensors")
    with pytest.raises(UserError, match=r"lack head\.bias \(1 in all\)"):
        read_checkpoint(index)
    (tmp_path / "part-1.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"part-1\.safetensors is damaged"):
        read_checkpoint(index)
    index.write_text("{}")
    with pytest.raises(UserError, match="not an index"):
        read_checkpoint(index)
