"""Latents beside the frames to make of them."""

from types import SimpleNamespace

import pytest
import torch
from nano_model import VAE

from longlive.data.shapes_data import draw_hard_clip, encode_clips
from longlive.data.shapes_pairs import ShapesPairs
from longlive.errors import UserError
from longlive.geometry import frames_of
from longlive.models.vae import WanVAE
from longlive.weights.synthetic import fill_synthetic

CPU = torch.device("cpu")
OPTIONS = {"clips": 3, "batch_size": 2, "latent_frames": 2, "seed": 7, "validation_clips": 2}


def nano_vae() -> WanVAE:
    vae = WanVAE(VAE)
    fill_synthetic(vae)
    return vae


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setattr("longlive.data.shapes_pairs.load_vae", lambda folder: nano_vae())

    def make(*, training: bool, **options) -> ShapesPairs:
        data = ShapesPairs(**{**OPTIONS, **options})
        strategy = SimpleNamespace(root_device=CPU)
        data.trainer = SimpleNamespace(training=training, global_rank=0, strategy=strategy)  # type: ignore[assignment]
        data.setup("fit")
        return data

    return make


def test_frames_are_those_of_the_clip_that_the_latents_encode(data):
    made = data(training=True, latent_noise=0.0)
    latents, frames = made.on_after_batch_transfer(torch.tensor([2, 0]), 0)
    clips = [draw_hard_clip(number, 2, made.hard_share) for number in (9, 7)]
    torch.testing.assert_close(latents, encode_clips(nano_vae(), clips, 2, 96, CPU))
    assert frames.shape == (2, frames_of(2), 3, 96, 96)
    assert frames.min() >= 0
    assert frames.max() <= 1
    is_flat = frames == frames.flatten(-2).median(-1).values[..., None, None]
    assert is_flat.float().mean() > 0.75, "no texture"
    assert not torch.equal(*frames), "a clip is repeated"


def test_only_training_latents_are_noised_and_not_those_that_are_kept(data):
    made = data(training=True, latent_noise=0.5)
    batch = torch.tensor([0, 1])
    first, second = (made.on_after_batch_transfer(batch, 0)[0] for _ in range(2))
    # The difference of two draws.
    assert (first - second).std().item() == pytest.approx(0.5 * 2**0.5, rel=0.1)
    held_out = data(training=False, latent_noise=0.5)
    first, second = (held_out.on_after_batch_transfer(batch, 0)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_batches_are_whole_and_too_few_clips_are_refused():
    made = ShapesPairs(**OPTIONS)
    assert [len(batch) for batch in made.train_dataloader()] == [2]
    assert [batch.tolist() for batch in made.val_dataloader()] == [[0, 1]]
    with pytest.raises(UserError, match="3 clips do not fill a batch of 4: draw more"):
        ShapesPairs(clips=3, batch_size=4)


def test_nothing_is_encoded_where_nothing_is_trained():
    made = ShapesPairs(**OPTIONS)
    made.setup("predict")
    assert made._pairs == {}
