"""The streaming decoder with one kernel between two convolutions; here, their plain versions."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from graph_tape import TapeRecorder
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longlive.callbacks.capture_decoder import CaptureDecoder
from longlive.callbacks.fold_upsampling import FoldUpsampling
from longlive.callbacks.fuse_decoder import FuseDecoder, FusedStep
from longlive.models.decoding_stream import DecodingStream
from longlive.models.tiny_decoder import TinyDecoder
from longlive.models.vae import WanVAE
from longlive.models.vae_networks import DecoderState, VAEConfig
from longlive.weights.synthetic import fill_synthetic

ODD = VAEConfig(
    base_width=6, multipliers=(1, 3, 5, 7), latent_mean=(0.1,) * 16, latent_std=(0.7,) * 16
)
NARROW = VAEConfig(base_width=2, latent_mean=(0.1,) * 16, latent_std=(0.7,) * 16)
PIECES = [[1, 1, 1, 1, 1], [3, 3], [1, 2, 3], [2, 1, 3], [4, 1]]


def vae_of(config: VAEConfig, dtype: torch.dtype = torch.float64, device: str = "cpu") -> WanVAE:
    vae = WanVAE(config).eval().requires_grad_(False)
    fill_synthetic(vae, dtype=dtype, device=torch.device(device))
    vae.to(device)
    # Zero is where a bias that is forgotten or added twice does not show.
    for name, weights in vae.named_parameters():
        if name.endswith("bias"):
            weights.copy_(torch.linspace(-0.4, 0.5, weights.numel()).view_as(weights))
        elif name.endswith("gamma"):
            weights.copy_(torch.linspace(0.6, 1.3, weights.numel()).view_as(weights))
    return vae


def fused(vae: WanVAE, folds: bool = False) -> DecodingStream[DecoderState]:
    stream: Any = vae.open_stream()
    if folds:
        stream = FoldUpsampling().configure_decoder(None, vae, stream)
    return FuseDecoder().configure_decoder(None, vae, stream)


def latents_of(frames: int, batch: int = 2, **options: Any) -> Tensor:
    return torch.randn(batch, frames, 16, 2, 3, **{"dtype": torch.float64, **options})


@pytest.mark.parametrize("config", [NARROW, ODD], ids=["narrow", "odd"])
@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize("folds", [False, True], ids=["plain", "folded"])
@torch.no_grad()
def test_pieces_of_any_length_give_the_frames_of_the_module(config, pieces, folds):
    plain, vae = vae_of(config).open_stream(), vae_of(config)
    stream = fused(vae, folds)
    assert isinstance(stream.step, FusedStep)
    for piece in latents_of(sum(pieces)).split(pieces, dim=1):
        expected = plain.decode_raw(piece)
        torch.testing.assert_close(stream.decode_raw(piece), expected, rtol=0, atol=1e-10)
        for mine, theirs in zip(stream.state.slots, plain.state.slots, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@torch.no_grad()
def test_in_float32_the_frames_are_those_of_the_module_up_to_rounding():
    vae = vae_of(NARROW, torch.float32)
    latents = latents_of(6, dtype=torch.float32)
    exact = vae_of(NARROW, torch.float32).double().decode_raw(latents)
    plain, stream = vae.open_stream(), fused(vae)
    error = {
        name: max(
            float((each.decode_raw(piece).double() - exact[:, start:stop]).abs().max())
            for piece, start, stop in zip(latents.split(3, 1), (0, 9), (9, 21), strict=True)
        )
        for name, each in (("plain", plain), ("fused", stream))
    }
    assert error["fused"] < 3 * error["plain"] < 1e-4


@torch.no_grad()
def test_either_step_goes_on_from_the_state_of_the_other():
    vae = vae_of(NARROW)
    expected = vae.decode_raw(latents := latents_of(4))
    steps = [vae.decode_step, FusedStep(vae)]
    state, frames = DecoderState(), []
    for number, piece in enumerate(latents.split(1, dim=1)):
        raw, state = steps[number % 2](piece, state)
        frames.append(raw)
    torch.testing.assert_close(torch.cat(frames, 1), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_state_can_be_kept_and_gone_on_from_twice():
    stream = fused(vae_of(NARROW))
    stream.decode(latents_of(2))
    kept, latents = stream.snapshot(), latents_of(1)
    first = stream.decode(latents)
    stream.restore(kept)
    assert torch.equal(stream.decode(latents), first)


class Convolutions(TorchDispatchMode):
    """Counts convolutions, and those with an operand that the kernels would have to lay out."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.copied, self.biased = 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            for operand in args[:2]:
                flat = operand.ndim == 4
                last = torch.channels_last if flat else torch.channels_last_3d
                self.copied += not operand.is_contiguous(memory_format=last)
            self.count += 1
            self.biased += args[2] is not None
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("folds", [False, True], ids=["plain", "folded"])
@torch.no_grad()
def test_no_convolution_is_given_a_tensor_in_another_layout_nor_a_bias_that_a_kernel_adds(folds):
    vae = vae_of(NARROW, torch.float32)
    fused(vae)  # Lays the weights out, as their loading does.
    stream = fused(vae, folds)
    stream.decode(latents_of(3, batch=1, dtype=torch.float32))
    with Convolutions() as seen:
        stream.decode(latents_of(3, batch=1, dtype=torch.float32))
    # Of the residual blocks two each and a shortcut; two of the attention; three that double rows
    # and columns, two that double frames; the first and the last; and one of the latents.
    assert seen.count == 2 * 14 + 1 + 2 + 3 + 2 + 2 + 1
    # The latents come as they are.
    assert seen.copied == 1
    assert seen.biased == 2 + 1 + 1


@torch.no_grad()
def test_weights_that_change_later_are_used():
    vae = vae_of(NARROW)
    stream, latents = fused(vae), latents_of(1)
    before = stream.decode_raw(latents)
    vae.decoder.head[0].gamma.mul_(2)
    after = fused(vae).decode_raw(latents)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, vae.decode_raw(latents), rtol=0, atol=1e-10)


def test_steps_of_one_vae_are_equal_so_that_its_graphs_serve_the_next_video():
    vae = vae_of(NARROW)
    assert fused(vae).step == fused(vae).step
    assert fused(vae).step != fused(vae_of(NARROW)).step


@torch.no_grad()
def test_the_step_is_one_graph_to_the_compiler():
    vae = vae_of(replace(NARROW, decoder_res_blocks=1))
    step = torch.compile(FusedStep(vae), fullgraph=True, backend="eager")
    state, expected = DecoderState(), vae.open_stream()
    for piece in latents_of(4).split(2, dim=1):
        raw, state = step(piece, state)
        torch.testing.assert_close(raw, expected.decode_raw(piece), rtol=0, atol=1e-10)
    torch._dynamo.reset()


@torch.no_grad()
def test_captured_steps_serve_two_videos_in_turn():
    vae, capture, tapes = vae_of(NARROW), CaptureDecoder(), TapeRecorder()
    capture._recorder = lambda device: tapes
    capture.missing = lambda device: None
    captured = [capture.configure_decoder(None, vae, fused(vae)) for _ in range(2)]
    expected = [vae.open_stream() for _ in captured]
    for _ in range(4):
        for decoder, stream in zip(captured, expected, strict=True):
            latents = latents_of(3)
            torch.testing.assert_close(decoder.decode(latents), stream.decode(latents))
    # With a state and without one.
    assert tapes.count == 2


def test_another_decoder_is_left_alone():
    tiny = TinyDecoder("tiny")
    stream = tiny.open_stream()
    assert FuseDecoder().configure_decoder(None, tiny, stream) is stream
    other = vae_of(NARROW).open_stream()
    assert FuseDecoder().configure_decoder(None, vae_of(NARROW), other) is other


def test_parameters_and_their_names_stay_as_they_were():
    vae, before = vae_of(NARROW), vae_of(NARROW).state_dict()
    fused(vae)
    after = vae.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("pieces", [[1, 2, 3], [3, 3]], ids=str)
@pytest.mark.parametrize("folds", [False, True], ids=["plain", "folded"])
@torch.no_grad()
def test_on_a_gpu_bfloat16_is_no_further_from_float64_than_the_module(pieces, folds):
    config = VAEConfig(base_width=96)
    exact = vae_of(config, torch.bfloat16, "cuda").double().open_stream()
    eager = vae_of(config, torch.bfloat16, "cuda").open_stream()
    stream = fused(vae_of(config, torch.bfloat16, "cuda"), folds)
    assert isinstance(stream.step, FusedStep)
    latents = latents_of(sum(pieces), batch=1, dtype=torch.bfloat16, device="cuda")
    for piece in latents.split(pieces, dim=1):
        expected = exact.decode_raw(piece.double())

        def error(raw: Tensor, expected: Tensor = expected) -> float:
            return float((raw.double() - expected).norm() / expected.norm())

        assert error(stream.decode_raw(piece)) <= 1.2 * error(eager.decode_raw(piece))
