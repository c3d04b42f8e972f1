"""Strict loading: what fits is loaded as asked, what does not is named."""

import json

import pytest
import torch
from torch import nn

from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.models.sizes import DiTConfig
from longlive.models.text_encoder import UMT5Encoder
from longlive.models.vae import WanVAE
from longlive.weights.loading import load_strict
from longlive.weights.state_dicts import state_dict_of

SMALL = DiTConfig(width=64, ffn_width=160, heads=2, layers=3, text_width=48, text_len=12, patch=2)


def on_meta(factory):
    with torch.device("meta"):
        return factory()


def tensors_like(module: nn.Module, dtype: torch.dtype = torch.float32) -> dict:
    return {name: torch.randn(t.shape).to(dtype) for name, t in module.state_dict().items()}


def published(golden_dir, file: str) -> dict[str, torch.Tensor]:
    """A published file's names and shapes, without its numbers."""
    manifest = json.loads((golden_dir / "checkpoint-manifest.json").read_text())
    tensors = manifest["files"][file]["tensors"]
    return {name: torch.empty(shape, device="meta") for name, (shape, _) in tensors.items()}


@pytest.mark.parametrize(
    ("file", "factory"),
    [
        ("Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors", lambda: DiT("wan-1.3b")),
        ("Wan2.1-T2V-14B/diffusion_pytorch_model-*.safetensors", lambda: DiT("wan-14b")),
        ("longlive_base.pt", lambda: DiT("wan-1.3b")),
        ("Wan2.1_VAE.pth", lambda: WanVAE("wan")),
        (
            "models_t5_umt5-xxl-enc-bf16.pth",
            lambda: UMT5Encoder("umt5-xxl"),
        ),
    ],
)
def test_every_published_file_fits_its_full_size_module(golden_dir, file, factory):
    tensors = state_dict_of(published(golden_dir, file), file)
    module = on_meta(factory)
    load_strict(module, tensors, file)
    if file == "longlive_base.pt":
        wrapped = {"generator": published(golden_dir, file), "step": 5}
        load_strict(module, state_dict_of(wrapped, file), file)


def test_a_meta_module_takes_the_tensors_themselves():
    module = on_meta(lambda: DiT(SMALL))
    tensors = tensors_like(module)
    load_strict(module, tensors, "w.pt")
    for name, loaded in module.state_dict().items():
        assert loaded.data_ptr() == tensors[name].data_ptr()
    assert all(p.requires_grad for p in module.parameters())


def test_types_are_cast_as_asked_else_the_modules_own_are_kept():
    module = on_meta(lambda: DiT(SMALL))
    tensors = tensors_like(module)
    load_strict(module, tensors, "w.pt", dtype=torch.bfloat16)
    for name, loaded in module.state_dict().items():
        assert torch.equal(loaded, tensors[name].bfloat16())

    module.head.float()
    load_strict(module, tensors, "w.pt")
    assert module.head.head.weight.dtype is torch.float32
    assert module.patch_embedding.weight.dtype is torch.bfloat16
    half = on_meta(lambda: DiT(SMALL))
    load_strict(half, {name: t.bfloat16() for name, t in tensors.items()}, "w.pt")
    assert half.patch_embedding.weight.dtype is torch.float32


def test_a_real_module_keeps_its_own_memory():
    module = nn.Linear(3, 2)
    place = module.weight.data_ptr()
    tensors = tensors_like(module)
    load_strict(module, tensors, "w.pt")
    assert module.weight.data_ptr() == place
    assert torch.equal(module.weight, tensors["weight"])
    load_strict(module, tensors, "w.pt", dtype=torch.float32)
    with torch.no_grad():
        module.weight.zero_()
    assert tensors["weight"].abs().sum() > 0


def test_whole_number_buffers_are_not_cast():
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("steps", torch.tensor(3))

    module = Counting()
    load_strict(module, tensors_like(module) | {"steps": torch.tensor(7)}, "w", torch.bfloat16)
    assert module.steps.dtype is torch.int64
    assert module.steps == 7


def test_buffers_without_a_place_in_files_survive_a_meta_module():
    module = on_meta(lambda: WanVAE("tiny"))
    load_strict(module, tensors_like(module), "vae.pth", device="cpu")
    assert not module.latent_mean.is_meta


@pytest.mark.gpu
def test_everything_ends_on_the_device_asked_for():
    module = on_meta(lambda: WanVAE("tiny"))
    load_strict(module, tensors_like(module), "vae.pth", dtype=torch.bfloat16, device="cuda")
    assert module.latent_mean.is_cuda
    assert all(p.is_cuda and p.dtype is torch.bfloat16 for p in module.parameters())


def test_a_buffer_left_on_meta_is_a_loud_mistake():
    class Careless(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("table", torch.ones(3), persistent=False)

    with pytest.raises(RuntimeError, match="keeps table on the meta device"):
        load_strict(on_meta(Careless), {"weight": torch.ones(2, 2), "bias": torch.ones(2)}, "w")


def test_every_kind_of_misfit_is_named_in_one_line():
    module = DiT(SMALL)
    tensors = tensors_like(module)
    del tensors["head.head.bias"]
    tensors["head.norm.weight"] = torch.ones(64)
    tensors["blocks.1.ffn.0.bias"] = torch.ones(100)
    with pytest.raises(UserError) as error:
        load_strict(module, tensors, "w.pt")
    assert str(error.value) == (
        "w.pt does not fit the model; 1 missing: head.head.bias; 1 unexpected: head.norm.weight; "
        "1 of another shape: blocks.1.ffn.0.bias (file 100, model 160)"
    )


def test_long_lists_are_counted_after_ten_names():
    module = DiT(SMALL)
    tensors = tensors_like(module)
    missing = [name for name in tensors if name.startswith("blocks.")][:25]
    for name in missing:
        del tensors[name]
    with pytest.raises(UserError) as error:
        load_strict(module, tensors, "w.pt")
    message = str(error.value)
    assert f"25 missing: {', '.join(missing[:10])} and 15 more" in message
    assert missing[10] not in message


def test_nothing_is_loaded_when_something_does_not_fit():
    module = DiT(SMALL)
    before = module.patch_embedding.weight.clone()
    tensors = tensors_like(module)
    del tensors["head.head.bias"]
    with pytest.raises(UserError):
        load_strict(module, tensors, "w.pt")
    assert torch.equal(module.patch_embedding.weight, before)


@pytest.mark.parametrize(
    ("file", "factory", "hint"),
    [
        (
            "Wan2.1-T2V-14B/diffusion_pytorch_model-*.safetensors",
            lambda: DiT("wan-1.3b"),
            "it looks like wan-14b weights, the model takes wan-1.3b weights",
        ),
        (
            "models_t5_umt5-xxl-enc-bf16.pth",
            lambda: DiT("wan-1.3b"),
            "it looks like umt5-xxl weights, the model takes wan-1.3b weights",
        ),
        ("Wan2.1_VAE.pth", lambda: DiT("tiny"), "it looks like video VAE weights"),
        ("lora.pt", lambda: DiT("wan-1.3b"), "it looks like LoRA weights"),
        (
            "Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors",
            lambda: DiT(SMALL),
            "the model takes transformer weights of width 64 with 3 layers",
        ),
    ],
)
def test_weights_of_another_model_are_recognized(golden_dir, file, factory, hint):
    tensors = published(golden_dir, file)
    with pytest.raises(UserError) as error:
        load_strict(on_meta(factory), tensors, file)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_the_layout_of_another_library_is_recognized():
    tensors = {"condition_embedder.time_embedder.linear_1.weight": torch.ones(1)}
    with pytest.raises(UserError, match="diffusers layout"):
        load_strict(DiT(SMALL), tensors, "w")
