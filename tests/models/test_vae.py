"""The causal video VAE: parity, streaming, causality and training."""

import json
import math
from copy import deepcopy
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from longlive.errors import UserError
from longlive.models.reconstruction import FramePair, LossWeights, around_objects, psnr_db
from longlive.models.vae import WanVAE, usable_frames
from longlive.models.vae_layers import CausalConv3d, ChannelNorm, use_channels_last
from longlive.models.vae_networks import DecoderState, EncoderState, VAEConfig

SMALL = VAEConfig(
    base_width=2, latent_channels=4, latent_mean=(0.1, -0.2, 0.3, 0.0), latent_std=(0.5, 1, 2, 1.5)
)
EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64, the same sums in another order


@pytest.fixture(scope="module")
def small() -> WanVAE:
    """A tiny VAE in float64 whose norms and biases are not at their neutral values."""
    torch.manual_seed(0)
    vae = WanVAE(SMALL).double().requires_grad_(False)
    for parameter in vae.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return vae


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> tuple[WanVAE, dict[str, Tensor], dict]:
    case = json.loads((golden_dir / "07-vae.json").read_text())
    vae = WanVAE(VAEConfig(base_width=case["config"]["dim"])).requires_grad_(False)
    vae.load_state_dict(load_file(golden_dir / case["weights"]["model"]))
    return vae, load_file(golden_dir / case["file"]), case


# The whole-sequence definition of the VAE, written down frame by frame and layer by layer.


def literal_conv(w: dict, key: str, x: Tensor) -> Tensor:
    return F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), w[f"{key}.weight"], w[f"{key}.bias"])


def literal_norm(w: dict, key: str, x: Tensor) -> Tensor:
    length = x.square().sum(1, keepdim=True).sqrt()
    return x / length.clamp(min=1e-12) * math.sqrt(x.shape[1]) * w[f"{key}.gamma"]


def literal_residual(w: dict, key: str, x: Tensor) -> Tensor:
    h = literal_conv(w, f"{key}.residual.2", F.silu(literal_norm(w, f"{key}.residual.0", x)))
    h = literal_conv(w, f"{key}.residual.6", F.silu(literal_norm(w, f"{key}.residual.3", h)))
    if f"{key}.shortcut.weight" in w:
        x = F.conv3d(x, w[f"{key}.shortcut.weight"], w[f"{key}.shortcut.bias"])
    return x + h


def literal_attention(w: dict, key: str, x: Tensor) -> Tensor:
    frames = []
    for frame in x.unbind(2):
        flat = literal_norm(w, f"{key}.norm", frame).flatten(2)
        qkv = w[f"{key}.to_qkv.weight"][..., 0, 0] @ flat + w[f"{key}.to_qkv.bias"][:, None]
        q, k, v = qkv.chunk(3, dim=1)
        scores = q.transpose(1, 2) @ k / math.sqrt(q.shape[1])
        out = w[f"{key}.proj.weight"][..., 0, 0] @ (v @ scores.softmax(-1).transpose(1, 2))
        frames.append(frame + (out + w[f"{key}.proj.bias"][:, None]).view_as(frame))
    return torch.stack(frames, 2)


def literal_time_conv(w: dict, key: str, window: list[Tensor]) -> Tensor:
    taps = w[f"{key}.time_conv.weight"][..., 0, 0]
    out = sum(torch.einsum("oi,bihw->bohw", taps[:, :, n], frame) for n, frame in enumerate(window))
    return out + w[f"{key}.time_conv.bias"][:, None, None]


def literal_up(w: dict, key: str, x: Tensor) -> Tensor:
    frames = list(x.unbind(2))
    if f"{key}.time_conv.weight" in w:
        zero = torch.zeros_like(frames[0])
        padded, frames = [zero, zero, *frames[1:]], frames[:1]
        for n in range(len(padded) - 2):
            frames += literal_time_conv(w, key, padded[n : n + 3]).chunk(2, dim=1)
    weight, bias = w[f"{key}.resample.1.weight"], w[f"{key}.resample.1.bias"]
    big = [f.repeat_interleave(2, -1).repeat_interleave(2, -2) for f in frames]
    return torch.stack([F.conv2d(f, weight, bias, padding=1) for f in big], 2)


def literal_down(w: dict, key: str, x: Tensor) -> Tensor:
    weight, bias = w[f"{key}.resample.1.weight"], w[f"{key}.resample.1.bias"]
    padded = [F.pad(f, (0, 1, 0, 1)) for f in x.unbind(2)]
    frames = [F.conv2d(f, weight, bias, stride=2) for f in padded]
    if f"{key}.time_conv.weight" in w:
        windows = [frames[n : n + 3] for n in range(0, len(frames) - 2, 2)]
        frames = [frames[0], *(literal_time_conv(w, key, window) for window in windows)]
    return torch.stack(frames, 2)


LITERAL = {
    "R": literal_residual,
    "A": literal_attention,
    "U": literal_up,
    "D": literal_down,
}


def literal_network(w: dict, part: str, kinds: str, x: Tensor) -> Tensor:
    """Run ``kinds``: the middle's three layers are in brackets, the rest is numbered in order."""
    numbered = "downsamples" if part == "encoder" else "upsamples"
    group, index = numbered, 0
    x = literal_conv(w, f"{part}.conv1", x)
    for kind in kinds:
        if kind in "[]":
            group, index = "middle" if kind == "[" else numbered, 0
            continue
        x = LITERAL[kind](w, f"{part}.{group}.{index}", x)
        index += 1
    return literal_conv(w, f"{part}.head.2", F.silu(literal_norm(w, f"{part}.head.0", x)))


def literal_statistics(config: VAEConfig) -> list[Tensor]:
    # They are single-precision constants in every type.
    both = torch.tensor([config.latent_mean, config.latent_std], dtype=torch.float32)
    return list(both.double()[..., None, None])


def literal_decode(w: dict, latents: Tensor, config: VAEConfig) -> Tensor:
    mean, std = literal_statistics(config)
    z = (latents * std + mean).transpose(1, 2)
    z = F.conv3d(z, w["conv2.weight"], w["conv2.bias"])
    return literal_network(w, "decoder", "[RAR]RRRURRRURRRURRR", z).transpose(1, 2)


def literal_encode(w: dict, frames: Tensor, config: VAEConfig) -> Tensor:
    mean, std = literal_statistics(config)
    x = literal_network(w, "encoder", "RRDRRDRRDRR[RAR]", frames.transpose(1, 2) * 2 - 1)
    x = F.conv3d(x, w["conv1.weight"], w["conv1.bias"]).transpose(1, 2)
    return (x[:, :, : config.latent_channels] - mean) / std


def chunkings(most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda c: sum(c) <= most)


def decode_in_chunks(vae: WanVAE, latents: Tensor, chunks: list[int]) -> Tensor:
    stream = vae.open_stream()
    return torch.cat([stream.decode_raw(part) for part in latents.split(chunks, dim=1)], dim=1)


def assert_golden(ours: Tensor, theirs: Tensor, case: dict) -> None:
    tolerance = case["tolerance"]
    torch.testing.assert_close(ours, theirs, rtol=tolerance["rtol"], atol=tolerance["atol"])


def test_keys_and_shapes_at_full_size_are_those_of_the_published_file(golden_dir):
    manifest = json.loads((golden_dir / "checkpoint-manifest.json").read_text())
    published = manifest["files"]["Wan2.1_VAE.pth"]
    with torch.device("meta"):
        vae = WanVAE("wan")
    ours = {key: [list(value.shape), "float32"] for key, value in vae.state_dict().items()}
    assert ours == published["tensors"]
    assert len(ours) == 194
    assert sum(p.numel() for p in vae.parameters()) == published["parameters"] == 126_892_531
    assert vae.latent_mean.device.type == "cpu", "statistics are not in the file: they must exist"


@pytest.mark.parametrize("latents_at_once", [1, 2, None])
@pytest.mark.parametrize("latent_frames", [1, 3, 7])
def test_decoding_equals_the_reference(golden, latent_frames, latents_at_once):
    vae, tensors, case = golden
    latents = tensors["in.latents"][:, :latent_frames]
    raw = vae.decode_raw(latents, latents_at_once=latents_at_once)
    assert_golden(raw.transpose(1, 2), tensors[f"out.decode{latent_frames}.raw"], case)
    frames = vae.decode(latents, latents_at_once=latents_at_once)
    assert_golden(frames * 2 - 1, tensors[f"out.decode{latent_frames}.pixel"], case)


@pytest.mark.parametrize("chunks", [[1] * 7, [3, 3, 1], [2, 5]], ids=str)
def test_streamed_decoding_equals_the_reference(golden, chunks):
    vae, tensors, case = golden
    stream = vae.open_stream()
    for index, part in enumerate(tensors["in.latents"].split(chunks, dim=1)):
        name = f"out.stream_{'_'.join(map(str, chunks))}.part{index}"
        assert_golden(stream.decode(part) * 2 - 1, tensors[name], case)


def test_a_new_stream_for_every_chunk_equals_the_reference_with_its_cache_cleared(golden):
    vae, tensors, case = golden
    frames = torch.cat([vae.decode(part) for part in tensors["in.latents"].split(3, dim=1)], dim=1)
    assert_golden(frames * 2 - 1, tensors["out.chunk_reset_7_by_3"], case)


def test_every_recorded_layer_of_the_decoder_equals_the_reference(golden):
    vae, tensors, case = golden
    seen: dict[str, Tensor] = {}
    modules = dict(vae.named_modules())
    hooks = [
        modules[name].register_forward_hook(
            lambda module, args, out, name=name: seen.__setitem__(name, out)
        )
        for name in {key.split(".", 2)[2] for key in tensors if "latent_frame" in key}
    ]
    stream = vae.open_stream()
    compared = 0
    for index, latent in enumerate(tensors["in.latents"][:, :3].split(1, dim=1)):
        stream.decode(latent)
        for name, ours in seen.items():
            theirs = tensors.get(f"out.latent_frame{index}.{name}")
            if theirs is not None and theirs.shape == ours.shape:
                tolerance = case["tolerance"]["intermediates (out.latent_frame*)"]
                torch.testing.assert_close(ours, theirs, **tolerance)
                compared += 1
    for hook in hooks:
        hook.remove()
    # All but conv2, which the recording ran over the three latents at once.
    assert compared == sum("latent_frame" in key for key in tensors) - 1


@pytest.mark.parametrize("latents_at_once", [1, 2, None])
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_encoding_equals_the_reference(golden, frames, latents_at_once):
    vae, tensors, case = golden
    video = (tensors["in.video"].transpose(1, 2)[:, :frames] + 1) / 2
    latents = vae.encode(video, latents_at_once=latents_at_once)
    assert_golden(latents, tensors[f"out.encode{frames}"], case)


@settings(max_examples=12, deadline=None)
@given(chunks=chunkings(6), batch=st.integers(1, 2))
def test_decoding_in_any_chunks_equals_the_definition(small, chunks, batch):
    latents = torch.randn(batch, sum(chunks), 4, 2, 1, dtype=torch.float64)
    expected = literal_decode(small.state_dict(), latents, SMALL)
    assert expected.shape[1] == 1 + 4 * (sum(chunks) - 1)
    torch.testing.assert_close(decode_in_chunks(small, latents, chunks), expected, **EXACT)
    whole = small.decode_raw(latents, latents_at_once=None)
    torch.testing.assert_close(whole, expected, **EXACT)


@settings(max_examples=8, deadline=None)
@given(chunks=chunkings(4), batch=st.integers(1, 2))
def test_encoding_in_any_chunks_equals_the_definition(small, chunks, batch):
    frames = torch.rand(batch, 1 + 4 * (sum(chunks) - 1), 3, 16, 8, dtype=torch.float64)
    expected = literal_encode(small.state_dict(), frames, SMALL).float()
    torch.testing.assert_close(small.encode(frames, latents_at_once=None), expected)
    torch.testing.assert_close(small.encode(frames, latents_at_once=chunks[0]), expected)

    sizes = [1 + 4 * (chunks[0] - 1), *(4 * n for n in chunks[1:])]
    state, parts = EncoderState(), []
    for part in (frames * 2 - 1).transpose(1, 2).split(sizes, dim=2):
        features, state = small.encoder.stream(part, state)
        parts.append(features)
    whole = small.encoder((frames * 2 - 1).transpose(1, 2))
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, **EXACT)


def test_streams_side_by_side_do_not_disturb_each_other(small):
    latents = torch.randn(2, 5, 4, 2, 2, dtype=torch.float64)
    one, two = small.open_stream(), small.open_stream()
    parts = [(one.decode_raw(a[:1]), two.decode_raw(a[1:])) for a in latents.split([1, 3, 1], 1)]
    side_by_side = torch.cat([torch.cat(pair) for pair in parts], dim=1)
    torch.testing.assert_close(side_by_side, small.decode_raw(latents), **EXACT)


def test_a_state_can_be_kept_and_gone_on_from_twice(small):
    latents = torch.randn(1, 3, 4, 2, 2, dtype=torch.float64)
    _, state = small.decode_step(latents[:, :2], DecoderState())
    before = [slot.clone() for slot in state.slots]
    first, _ = small.decode_step(latents[:, 2:], state)
    second, _ = small.decode_step(latents[:, 2:], state)
    assert torch.equal(first, second)
    assert all(map(torch.equal, before, state.slots)), "a step must not write into its input state"


def test_the_state_has_one_slot_a_temporal_convolution_and_never_changes_shape(small):
    state, shapes = DecoderState(), []
    for latent in torch.randn(1, 3, 4, 2, 2, dtype=torch.float64).split(1, dim=1):
        _, state = small.decode_step(latent, state)
        shapes.append([tuple(slot.shape) for slot in state.slots])
    assert len(state.slots) == 32
    assert shapes[0] == shapes[1] == shapes[2]
    assert all(slot.is_contiguous() and slot._base is None for slot in state.slots)
    _, encoder_state = small.encoder.stream(
        torch.randn(1, 3, 5, 8, 8, dtype=torch.float64), EncoderState()
    )
    assert len(encoder_state.slots) == 24


def test_a_later_latent_never_changes_an_earlier_frame(small):
    latents = torch.randn(1, 4, 4, 2, 2, dtype=torch.float64)
    changed = latents.clone()
    changed[:, 2] += 1
    before, after = (small.decode_raw(x, latents_at_once=None) for x in (latents, changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).flatten(2).any(-1).all(), "all later ones see it"


def test_a_later_frame_never_changes_an_earlier_latent(small):
    frames = torch.rand(1, 13, 3, 8, 8, dtype=torch.float64)
    changed = frames.clone()
    changed[:, 5] = 1 - changed[:, 5]
    before, after = (small.encode(x, latents_at_once=None) for x in (frames, changed))
    assert torch.equal(before[:, :2], after[:, :2])
    assert (before[:, 2:] != after[:, 2:]).flatten(2).any(-1).all()


@pytest.mark.parametrize(("frames", "usable"), [(1, 1), (4, 1), (5, 5), (8, 5), (16, 13), (17, 17)])
def test_frames_that_fill_no_group_of_four_are_dropped(small, frames, usable):
    video = torch.rand(1, frames, 3, 8, 8, dtype=torch.float64)
    assert usable_frames(frames) == usable
    assert torch.equal(small.encode(video), small.encode(video[:, :usable]))


def test_statistics_are_rounded_to_the_type_of_the_latents_before_they_are_inverted():
    vae = WanVAE(VAEConfig(base_width=2))
    zeros = torch.zeros(1, 1, 16, 1, 1, dtype=torch.bfloat16)
    ones = torch.ones_like(zeros)
    assert vae.denormalize(zeros)[0, 0, 0].item() == -0.7578125
    scale = vae.normalize(ones + vae.latent_mean.bfloat16()).flatten()
    assert scale[0].item() == 0.35546875
    reciprocal = vae._reciprocal_std(zeros).flatten()
    assert reciprocal[:2].tolist() == [0.35546875, 0.6875]
    latents = torch.randn(1, 2, 16, 2, 2).bfloat16()
    divided = latents / vae._reciprocal_std(latents) + vae.latent_mean.bfloat16()
    assert torch.equal(vae.denormalize(latents), divided)


def test_the_module_computes_in_the_type_of_its_weights_and_returns_float32_frames():
    vae = WanVAE(VAEConfig(base_width=4)).to(torch.bfloat16)
    latents = 3 * torch.randn(1, 2, 16, 2, 2)
    with torch.no_grad():
        assert vae.decode_raw(latents).dtype == torch.bfloat16
        frames = vae.decode(latents)
        assert vae.encode(frames).dtype == torch.float32
    assert frames.dtype == torch.float32
    assert 0 <= frames.min() < frames.max() <= 1


def test_under_autocast_the_norm_keeps_activations_small():
    norm = ChannelNorm(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(torch.randn(1, 4, 1, 2, 2).bfloat16()).dtype == torch.bfloat16


def keeps_channels_last() -> bool:
    """Whether this CPU has bfloat16 convolutions that give back the layout they are given."""
    last = torch.channels_last_3d
    weight, x = (torch.randn(64, 64, 3, 3, 3).to(memory_format=last) for _ in range(2))
    with torch.no_grad():
        out = F.conv3d(x.bfloat16(), weight.bfloat16())
        wide = F.conv3d(F.pad(x, (1,) * 6).bfloat16(), weight.bfloat16())
    return all(y.is_contiguous(memory_format=last) for y in (out, wide))


def test_channels_last_weights_change_the_layout_of_all_activations_and_nothing_else():
    vae, other = WanVAE("tiny"), WanVAE("tiny")
    other.load_state_dict(vae.state_dict())
    use_channels_last(other)
    latents = torch.randn(1, 3, 16, 2, 2)
    strays = []

    def check(module: torch.nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        last = torch.channels_last_3d if out.ndim == 5 else torch.channels_last
        if not (
            args[0].is_contiguous(memory_format=last) and out.is_contiguous(memory_format=last)
        ):
            strays.append(tuple(out.shape))

    stream = other.open_stream()
    # On one CPU thread, small float32 convolutions have kernels of one layout only.
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        stream.decode_raw(latents[:, :1])
        for module in (*other.decoder.upsamples.modules(), *other.decoder.head.modules()):
            if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
                module.register_forward_hook(check)
        stream.decode_raw(latents[:, 1:])
    if keeps_channels_last():
        assert strays == []
    with torch.no_grad():
        raw = decode_in_chunks(other, latents, [1, 2])
        expected = decode_in_chunks(vae, latents, [1, 2])
    torch.testing.assert_close(raw, expected, rtol=1e-3, atol=1e-3)  # float32, untrained weights


@pytest.mark.slow
def test_one_step_of_a_stream_is_one_graph(small):
    step = torch.compile(small.decoder.stream, fullgraph=True, backend="eager")
    state = expected_state = DecoderState()
    for latent in torch.randn(2, 1, 4, 1, 2, 2, dtype=torch.float64):
        out, state = step(latent, state)
        expected, expected_state = small.decoder.stream(latent, expected_state)
        torch.testing.assert_close(out, expected, **EXACT)


def test_a_few_training_steps_lower_the_loss_on_a_fixed_batch():
    vae = WanVAE(SMALL, learning_rate=2e-3, warmup_steps=1)
    frames = torch.rand(2, 1, 3, 1, 1).expand(2, 5, 3, 16, 16).contiguous()
    configured = vae.configure_optimizers()
    losses = []
    for _ in range(15):
        terms = vae.reconstruction_terms(FramePair(frames, frames))
        terms["loss"].backward()
        configured["optimizer"].step()
        configured["optimizer"].zero_grad()
        losses.append(terms["loss"].item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_loss_is_against_the_target():
    vae = WanVAE(SMALL)
    frames, target = torch.rand(2, 1, 5, 3, 16, 16)
    losses = []
    for wanted in (frames, target):
        torch.manual_seed(0)
        losses.append(vae.reconstruction_terms(FramePair(frames, wanted))["pixel"].item())
    assert losses[0] != losses[1]


def test_gradients_reach_every_parameter_from_nine_frames():
    vae = WanVAE(SMALL)
    frames = torch.rand(1, 9, 3, 16, 16)
    vae.reconstruction_terms(FramePair(frames, frames))["loss"].backward()
    without = {
        name
        for name, parameter in vae.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    }
    assert without == set()


def test_the_trainer_fits_it_and_logs_the_reconstruction(tmp_path):
    vae = WanVAE(SMALL, max_steps=2)
    frames = torch.rand(2, 6, 3, 16, 16)
    loader = DataLoader([FramePair(clip, clip) for clip in frames], batch_size=1)  # type: ignore[arg-type]
    trainer = pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        log_every_n_steps=1,
    )
    trainer.fit(vae, loader, loader)
    assert trainer.global_step == 2
    assert 0 < trainer.callback_metrics["val/psnr_db"] < 60
    assert trainer.callback_metrics["train/loss"] > 0


def test_psnr_of_a_uniform_error_of_a_tenth_is_twenty_decibels():
    assert psnr_db(torch.full((1, 4), 0.6), torch.full((1, 4), 0.5)).item() == pytest.approx(20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae: vae.decode(torch.zeros(1, 1, 3, 2, 2)), "latents must have the shape"),
        (lambda vae: vae.decode(torch.zeros(1, 0, 4, 2, 2)), "latents must have the shape"),
        (lambda vae: vae.encode(torch.zeros(1, 0, 3, 8, 8)), "frames must have the shape"),
        (lambda vae: vae.encode(torch.zeros(1, 1, 3, 8, 12)), "multiples of 8"),
        (lambda vae: WanVAE("huge"), "choose from wan, tiny"),
        (lambda vae: VAEConfig(latent_channels=4), "one entry for each of the 4"),
        (lambda vae: VAEConfig(multipliers=(1, 2)), "multipliers needs 4 entries"),
        (lambda vae: VAEConfig(base_width=3, multipliers=(1, 1, 2, 4)), "must be even"),
    ],
)
def test_input_that_cannot_work_is_refused_in_one_line(small, call, message):
    with pytest.raises(UserError, match=message) as error:
        call(small)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bias", [True, False], ids=["as built", "features of exact zeros"])
def test_mid_gray_which_is_zero_at_the_input_has_finite_gradients(bias):
    vae = WanVAE(VAEConfig(base_width=2))
    if not bias:
        torch.nn.init.zeros_(vae.encoder.conv1.bias)
    gray = torch.full((1, 5, 3, 16, 16), 0.5)
    vae.reconstruction_terms(FramePair(gray, gray))["loss"].backward()
    largest = [float(weight.grad.abs().max()) for weight in vae.parameters()]
    assert all(value < 1e4 for value in largest), "also false for NaN"


def test_a_vector_of_zeros_is_normed_to_zeros_with_and_without_gradients():
    norm, x = ChannelNorm(4), torch.zeros(1, 4, 1, 2, 2)
    with torch.no_grad():
        assert not norm(x).any()
    assert not norm(x.requires_grad_()).any()


def test_a_frozen_encoder_leaves_the_latents_and_trains_the_decoder():
    vae = WanVAE(SMALL, trains_encoder=False)
    frames = torch.rand(1, 5, 3, 16, 16)
    vae.reconstruction_terms(FramePair(frames, frames))["loss"].backward()
    trained = {name.partition(".")[0] for name, p in vae.named_parameters() if p.grad is not None}
    assert trained == {"decoder", "conv2"}


def test_objects_weigh_what_they_are_given():
    # A square on gray: of 64 pixels 4 are object, and 5x5 around each makes 36.
    target = torch.full((1, 1, 3, 8, 8), 0.5)
    target[..., 3:5, 3:5] = 1.0
    assert around_objects(target).sum() == 36
    terms = {}
    for objects in (0.0, 2.0):
        torch.manual_seed(0)
        vae = WanVAE(SMALL, weights=LossWeights(kl=0.0, objects=objects))
        terms[objects] = vae.reconstruction_terms(FramePair(target, target))
    assert terms[0.0]["loss"] == terms[0.0]["pixel"] == terms[2.0]["pixel"]
    share = (terms[2.0]["loss"] - terms[2.0]["pixel"]) / terms[2.0]["pixel"]
    assert 0.1 < share < 1.9, "a part of the picture, not all of it"


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_a_float32_convolution_on_a_cpu_is_the_float64_one_with_its_gradients(last):
    conv = CausalConv3d(8, 12)
    exact = deepcopy(conv).double()
    if last:
        use_channels_last(conv)
    x = torch.randn(1, 8, 4, 6, 6, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    made, expected = conv(x), exact(wide)
    torch.testing.assert_close(made, expected.float(), rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(made)
    (made * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    pairs = ((x, wide), (conv.weight, exact.weight), (conv.bias, exact.bias))
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.grad, theirs.grad.float(), rtol=1e-4, atol=1e-4)
