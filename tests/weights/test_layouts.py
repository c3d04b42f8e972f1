"""Finding components in the publishers' folders, and saying what is missing."""

import json
from pathlib import Path

import pytest

from longlive.errors import UserError
from longlive.models.sizes import SIZES
from longlive.weights.layouts import COMPONENTS, config_beside, format_size, locate, survey

ALL = ["longlive_base", "longlive_lora", "text_encoder", "tokenizer", "vae"]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def wan(folder: Path) -> None:
    touch(
        folder / "Wan2.1_VAE.pth",
        folder / "models_t5_umt5-xxl-enc-bf16.pth",
        folder / "google/umt5-xxl/tokenizer.json",
        folder / "diffusion_pytorch_model.safetensors",
    )


def longlive(folder: Path) -> None:
    touch(folder / "longlive_base.pt", folder / "lora.pt")


@pytest.mark.parametrize(
    ("wan_folder", "longlive_folder"),
    [
        ("Wan2.1-T2V-1.3B", "LongLive-1.3B/models"),
        ("wan_models/Wan2.1-T2V-1.3B", "longlive_models/models"),
        ("Wan2.1-T2V-14B", "LongLive/models"),
        (".", "."),
    ],
)
def test_components_are_found_where_publishers_and_guides_put_them(
    tmp_path, wan_folder, longlive_folder
):
    wan(tmp_path / wan_folder)
    longlive(tmp_path / longlive_folder)
    found = locate(ALL, tmp_path)
    assert list(found) == ALL
    assert found["vae"] == tmp_path / wan_folder / "Wan2.1_VAE.pth"
    assert found["tokenizer"] == tmp_path / wan_folder / "google/umt5-xxl"
    assert found["longlive_lora"] == tmp_path / longlive_folder / "lora.pt"


def test_shards_are_found_by_their_index(tmp_path):
    index = "diffusion_pytorch_model.safetensors.index.json"
    touch(tmp_path / "Wan2.1-T2V-14B" / index)
    assert locate(["wan-14b"], tmp_path)["wan-14b"].name == index
    assert survey(tmp_path)["wan-1.3b"] is None


def test_all_that_is_missing_is_listed_in_one_line_with_size_and_command(tmp_path):
    wan(tmp_path / "Wan2.1-T2V-1.3B")
    with pytest.raises(UserError) as error:
        locate([*ALL, "wan-14b"], tmp_path)
    assert str(error.value) == (
        f"not found under {tmp_path}: "
        "LongLive base weights (LongLive-1.3B/models/longlive_base.pt, 5.7 GB), "
        "LongLive LoRA (LongLive-1.3B/models/lora.pt, 2.8 GB), Wan2.1 14B transformer "
        "(Wan2.1-T2V-14B/diffusion_pytorch_model.safetensors.index.json, 57.2 GB); "
        "run `longlive download longlive-1.3b` and run `longlive download wan-14b`"
    )


def test_a_root_that_is_not_there_says_so_too(tmp_path):
    with pytest.raises(UserError, match="not found under .*nowhere"):
        locate(["vae"], tmp_path / "nowhere")


def test_sizes_agree_with_the_published_parameter_counts(golden_dir):
    summary = json.loads((golden_dir / "checkpoint-manifest.json").read_text())["summary"]
    counts = {name: entry["parameters"] for name, entry in summary.items()}
    wan_1_3b = counts["Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors"]
    expected = {
        "longlive_base": 4 * wan_1_3b,
        "converted": 2 * wan_1_3b,
        "longlive_lora": 8 * counts["lora.pt"],
        "text_encoder": 2 * counts["models_t5_umt5-xxl-enc-bf16.pth"],
        "vae": 4 * counts["Wan2.1_VAE.pth"],
        "wan-1.3b": 4 * wan_1_3b,
        "wan-14b": 4 * counts["Wan2.1-T2V-14B/diffusion_pytorch_model-*.safetensors"],
    }
    for name, size in expected.items():
        assert COMPONENTS[name].size_bytes == pytest.approx(size, rel=1e-3)


def test_the_configuration_beside_weights_is_read(tmp_path):
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    assert config_beside(weights) is None
    official = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30, "in_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(official))
    assert config_beside(weights) == SIZES["wan-1.3b"]
    for broken in ("{", "[]", '{"hidden_size": 5}'):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(UserError, match=r"config\.json does not describe a transformer"):
            config_beside(weights)


def test_sizes_read_as_download_pages_show_them():
    assert [format_size(n) for n in (11_362_000_000, 507_600_000, 17_000, 0)] == [
        "11.4 GB",
        "507.6 MB",
        "17 kB",
        "0 kB",
    ]
