"""The distilled decoder: the published layout, streaming, and training."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from longlive.errors import UserError
from longlive.geometry import frames_of
from longlive.models.tiny_decoder import (
    TinyDecoder,
    TinyDecoderConfig,
    TinyDecoderState,
    published_weights,
)
from longlive.models.vae import WanVAE
from longlive.models.vae_layers import use_channels_last
from longlive.models.vae_networks import VAEConfig

SMALL = TinyDecoderConfig(widths=(8, 6, 4, 4), latent_channels=4, blocks=2)
EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64, the same sums in another order


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Key to shape of the decoder half of ``taew2_1.pth``."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(key: str, out: int, into: int, side: int = 3, bias: bool = True) -> None:
        shapes[f"decoder.{key}.weight"] = (out, into, side, side)
        if bias:
            shapes[f"decoder.{key}.bias"] = (out,)

    conv("1", 256, 16)
    for first, width, frames, after in ((3, 256, 1, 128), (9, 128, 2, 64), (15, 64, 2, 64)):
        for index in range(first, first + 3):
            conv(f"{index}.conv.0", width, 2 * width)
            conv(f"{index}.conv.2", width, width)
            conv(f"{index}.conv.4", width, width)
        conv(f"{first + 4}.conv", frames * width, width, side=1, bias=False)
        conv(f"{first + 5}", after, width, bias=False)
    conv("22", 3, 64)
    return shapes


class LiteralDecoder:
    """The published network one frame after the other, in the published order of operations."""

    def __init__(self, weights: dict[str, Tensor], config: TinyDecoderConfig) -> None:
        self.weights = weights
        self.blocks = config.blocks
        self.memory: dict[int, Tensor] = {}

    def conv(self, index: int | str, x: Tensor) -> Tensor:
        weight = self.weights[f"decoder.{index}.weight"]
        bias = self.weights.get(f"decoder.{index}.bias")
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def remember(self, index: int, x: Tensor) -> Tensor:
        before = self.memory.get(index, torch.zeros_like(x))
        self.memory[index] = x
        h = self.conv(f"{index}.conv.0", torch.cat([x, before], dim=1)).relu()
        h = self.conv(f"{index}.conv.2", h).relu()
        return (self.conv(f"{index}.conv.4", h) + x).relu()

    def level(self, index: int, x: Tensor, levels: int) -> list[Tensor]:
        if levels == 0:
            return [self.conv(index + 1, x.relu())]
        for offset in range(self.blocks):
            x = self.remember(index + offset, x)
        index += self.blocks
        x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
        grown = self.conv(f"{index + 1}.conv", x)
        frames: list[Tensor] = []
        for frame in grown.split(x.shape[1], dim=1):
            frames += self.level(index + 3, self.conv(index + 2, frame), levels - 1)
        return frames

    def __call__(self, latents: Tensor) -> Tensor:
        frames: list[Tensor] = []
        for latent in latents.unbind(1):
            frames += self.level(3, self.conv(1, 3 * torch.tanh(latent / 3)).relu(), 3)
        return torch.stack(frames[3:], dim=1)


@pytest.fixture(scope="module")
def small() -> TinyDecoder:
    torch.manual_seed(0)
    decoder = TinyDecoder(SMALL).double().requires_grad_(False)
    for parameter in decoder.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return decoder


def test_the_decoder_half_of_a_published_file_loads_strictly():
    published = {key: torch.zeros(shape) for key, shape in published_shapes().items()}
    published["encoder.0.weight"] = torch.zeros(64, 3, 3, 3)
    decoder = TinyDecoder("wan")
    decoder.load_state_dict(published_weights(published, decoder))
    assert {k: tuple(v.shape) for k, v in decoder.state_dict().items()} == published_shapes()


def test_a_published_layer_that_grows_too_much_keeps_its_last_frames(small):
    published = small.state_dict()
    weight = published["decoder.6.conv.weight"]
    published["decoder.6.conv.weight"] = torch.cat([weight + 1, weight])
    assert torch.equal(published_weights(published, small)["decoder.6.conv.weight"], weight)


def test_a_published_file_without_a_layer_is_refused(small):
    published = small.state_dict()
    del published["decoder.6.conv.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        small.load_state_dict(published_weights(published, small))


@settings(max_examples=15, deadline=None)
@given(chunks=st.lists(st.integers(1, 4), min_size=1, max_size=4), batch=st.integers(1, 3))
def test_decoding_in_any_chunks_equals_the_definition(small, chunks, batch):
    latents = 2 * torch.randn(batch, sum(chunks), 4, 2, 1, dtype=torch.float64)
    expected = LiteralDecoder(small.state_dict(), SMALL)(latents)
    assert expected.shape[1] == frames_of(sum(chunks))
    stream = small.open_stream()
    parts = [stream.decode_raw(part) for part in latents.split(chunks, dim=1)]
    assert [part.shape[1] for part in parts] == [4 * n - 3 * (i == 0) for i, n in enumerate(chunks)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, **EXACT)
    whole = small.decode_raw(latents, latents_at_once=None)
    torch.testing.assert_close(whole, expected, **EXACT)


def test_streams_side_by_side_do_not_disturb_each_other(small):
    latents = torch.randn(2, 4, 4, 2, 2, dtype=torch.float64)
    one, two = small.open_stream(), small.open_stream()
    parts = [(one.decode_raw(x[:1]), two.decode_raw(x[1:])) for x in latents.split([1, 2, 1], 1)]
    side_by_side = torch.cat([torch.cat(pair) for pair in parts], dim=1)
    torch.testing.assert_close(side_by_side, small.decode_raw(latents), **EXACT)


def test_the_state_never_changes_shape_and_is_not_written_into(small):
    latents = torch.randn(1, 3, 4, 2, 2, dtype=torch.float64)
    _, first = small.decode_step(latents[:, :1], TinyDecoderState())
    kept = [slot.clone() for slot in first.slots]
    _, second = small.decode_step(latents[:, 1:], first)
    assert len(first.slots) == 3 * SMALL.blocks
    assert [slot.shape for slot in first.slots] == [slot.shape for slot in second.slots]
    assert all(map(torch.equal, kept, first.slots))


def test_a_later_latent_never_changes_an_earlier_frame(small):
    latents = torch.randn(1, 4, 4, 2, 2, dtype=torch.float64)
    changed = latents.clone()
    changed[:, 2] += 1
    before, after = (small.decode_raw(x, latents_at_once=None) for x in (latents, changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).flatten(2).any(-1).all()


def test_it_takes_the_place_of_the_vae_decoder():
    config = VAEConfig(2, 4, latent_mean=(0.0,) * 4, latent_std=(1.0,) * 4)
    vae, tiny = WanVAE(config).requires_grad_(False), TinyDecoder(SMALL).requires_grad_(False)
    latents = torch.randn(2, 4, 4, 2, 1)
    for ours, theirs in ((tiny.open_stream(), vae.open_stream()), (tiny, vae)):
        for part in latents.split([1, 3], dim=1):
            ours_frames, frames = ours.decode(part), theirs.decode(part)
            assert ours_frames.shape == frames.shape
            assert ours_frames.dtype == frames.dtype == torch.float32
            assert 0 <= ours_frames.min() <= ours_frames.max() <= 1


def test_the_module_computes_in_the_type_of_its_weights():
    decoder = TinyDecoder(SMALL).to(torch.bfloat16).requires_grad_(False)
    assert decoder.decode_raw(torch.randn(1, 2, 4, 2, 2)).dtype == torch.bfloat16
    assert decoder.decode(torch.randn(1, 2, 4, 2, 2)).dtype == torch.float32


def test_channels_last_weights_change_nothing(small):
    latents = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    other = TinyDecoder(SMALL).double().requires_grad_(False)
    other.load_state_dict(small.state_dict())
    use_channels_last(other)
    torch.testing.assert_close(other.decode_raw(latents), small.decode_raw(latents), **EXACT)


def test_a_few_training_steps_lower_the_loss_and_reach_every_parameter():
    decoder = TinyDecoder(SMALL, learning_rate=5e-3, warmup_steps=1)
    latents = torch.randn(2, 3, 4, 2, 2)
    frames = torch.rand(2, 1, 3, 1, 1).expand(2, 9, 3, 16, 16).contiguous()
    optimizer = decoder.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(15):
        loss = decoder.distillation_loss(latents, frames)
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in decoder.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_what_is_around_an_object_weighs_more():
    decoder = TinyDecoder(SMALL, mse_weight=0.0, objects_weight=10.0)
    latents, frames = torch.zeros(1, 1, 4, 4, 4), torch.full((1, 1, 3, 32, 32), 0.5)
    # Untrained it paints gray, and a square of four pixels is all that is wrong: 36 are around it.
    frames[..., 10:12, 10:12] = 1.0
    with torch.no_grad():
        for layer in decoder.decoder:
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.zero_()
        decoder.decoder[-1].bias.fill_(0.6)
        loss = decoder.distillation_loss(latents, frames)
    background, around = (32**2 - 36) * 0.1, 32 * 0.1 + 4 * 0.4
    expected = (background + around + 10 * around) / 32**2
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_the_trainer_fits_it_and_logs_the_distance_to_the_frames(tmp_path):
    decoder = TinyDecoder(SMALL, max_steps=2)
    pairs = [(torch.randn(2, 4, 2, 2), torch.rand(5, 3, 16, 16)) for _ in range(2)]
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
    trainer.fit(decoder, DataLoader(pairs, batch_size=1), DataLoader(pairs, batch_size=1))
    assert trainer.global_step == 2
    assert 0 < trainer.callback_metrics["val/psnr_db"] < 60


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.decode(torch.zeros(1, 1, 3, 2, 2)), "latents must have the shape"),
        (lambda d: d.decode(torch.zeros(1, 0, 4, 2, 2)), "latents must have the shape"),
        (
            lambda d: d.distillation_loss(torch.zeros(1, 2, 4, 1, 1), torch.zeros(1, 8, 3, 8, 8)),
            "pair each clip with its own latents",
        ),
        (lambda d: TinyDecoder("huge"), "choose from wan, tiny"),
        (lambda d: TinyDecoderConfig(widths=(4, 4)), "widths needs 4 entries"),
    ],
)
def test_input_that_cannot_work_is_refused_in_one_line(small, call, message):
    with pytest.raises(UserError, match=message) as error:
        call(small)
    assert "\n" not in str(error.value)
