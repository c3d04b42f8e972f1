"""Training data of the embedded model: which clips, and never a held-out prompt."""

from types import SimpleNamespace

import pytest
import torch

from longlive.data.shapes_data import (
    ShapesClips,
    ShapesLatents,
    draw_clip,
    draw_hard_clip,
    encode_clips,
    shapes_tokenizer,
)
from longlive.geometry import frames_of
from longlive.models.vae import WanVAE
from longlive.models.vae_networks import VAEConfig
from longlive.shapes import all_prompts, is_held_out, training_prompts

CPU = torch.device("cpu")


def nano_vae() -> WanVAE:
    config = VAEConfig(base_width=2, latent_mean=(0.0,) * 16, latent_std=(1.0,) * 16)
    return WanVAE(config).eval()


def test_no_clip_ever_shows_a_held_out_prompt():
    clips = [draw_clip(number, 21, 0.5) for number in range(3000)]
    assert not any(is_held_out(prompt.text) for clip in clips for _, prompt in clip.timeline)


def test_prompts_change_as_often_as_asked_and_only_where_a_block_starts():
    clips = [draw_clip(number, 21, 0.25) for number in range(4000)]
    switched = [clip for clip in clips if len(clip.timeline) == 2]
    assert 0.22 < len(switched) / len(clips) < 0.28
    for clip in switched:
        assert clip.start % 3 == 0
        assert 0 < clip.start < 21
        assert clip.timeline[1][0] == frames_of(clip.start)
    assert {clip.start for clip in switched} == {3, 6, 9, 12, 15, 18}
    assert all(clip.start == 0 for clip in clips if len(clip.timeline) == 1)


def test_a_clip_is_its_number():
    assert draw_clip(7, 21, 0.5) == draw_clip(7, 21, 0.5)
    assert len({draw_clip(number, 21, 0.0).prompt for number in range(200)}) > 150


def test_a_clip_of_one_block_has_no_room_for_a_change():
    assert all(len(draw_clip(number, 3, 1.0).timeline) == 1 for number in range(20))


def test_the_tokenizer_knows_every_prompt():
    tokenizer = shapes_tokenizer()
    prompts = [prompt.text for prompt in all_prompts()]
    ids = tokenizer(prompts).ids
    assert not (ids == 2).any(), "an unknown word"
    assert len({tuple(row) for row in ids.tolist()}) == len(prompts)


def test_every_other_batch_holds_more_and_shorter_clips():
    data = ShapesClips(batch_size=2, latent_frames=9)
    data.trainer = SimpleNamespace(training=True)  # type: ignore[assignment]
    long = data.on_after_batch_transfer(torch.tensor([0, 1]), 0)
    short = data.on_after_batch_transfer(torch.tensor([2, 3]), 0)
    assert long.frames.shape == long.target.shape == (2, frames_of(9), 3, 96, 96)
    assert short.frames.shape == short.target.shape == (8, frames_of(2), 3, 96, 96)
    assert len({clip.mean().item() for clip in short.frames}) == 8, "a clip is repeated"


def test_the_target_is_the_same_clip_without_noise_and_stars():
    data = ShapesClips(batch_size=8, latent_frames=1)
    data.trainer = SimpleNamespace(training=True)  # type: ignore[assignment]
    frames, target = data.on_after_batch_transfer(torch.arange(8), 0)
    is_flat = target == target.flatten(-2).median(-1).values[..., None, None]
    assert is_flat.float().mean() > 0.75, "all but the object"
    typical = (frames - target).abs().flatten(1).median(1).values
    assert typical.max() < 0.05, "the same object in the same place"
    assert (frames != target).any()


def test_validation_shows_held_out_prompts():
    data = ShapesClips(batch_size=2, latent_frames=2, validation_clips=2)
    data.trainer = SimpleNamespace(training=False)  # type: ignore[assignment]
    batches = list(data.val_dataloader())
    assert [batch.tolist() for batch in batches] == [[0, 1]]
    assert data.on_after_batch_transfer(batches[0], 0).frames.shape == (2, frames_of(2), 3, 96, 96)


def test_encoded_clips_are_what_the_vae_makes_of_them_whatever_the_batch():
    vae, clips = nano_vae(), [draw_clip(number, 2, 0.0) for number in range(3)]
    together = encode_clips(vae, clips, 2, 96, CPU, batch_size=3)
    apart = encode_clips(vae, clips, 2, 96, CPU, batch_size=2)
    assert together.shape == (3, 2, 16, 12, 12)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)


def test_batches_pair_latents_with_their_own_prompts(monkeypatch):
    monkeypatch.setattr("longlive.data.shapes_data.load_vae", lambda folder: nano_vae())
    data = ShapesLatents(clips=4, batch_size=2, latent_frames=6, switch_share=1.0, seed=50)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=CPU))  # type: ignore[assignment]
    data.setup("fit")
    batch = data.on_after_batch_transfer(torch.tensor([3, 1]), 0)
    clips = [draw_clip(53, 6, 1.0), draw_clip(51, 6, 1.0)]
    assert torch.equal(batch.ids, shapes_tokenizer()([clip.prompt.text for clip in clips]).ids)
    assert batch.starts.tolist() == [clip.start for clip in clips]
    encoded = encode_clips(nano_vae(), clips, 6, 96, CPU)
    assert batch.latents.shape == encoded.shape


def test_training_reads_every_clip_in_whole_batches():
    loader = ShapesLatents(clips=10, batch_size=4).train_dataloader()
    batches = list(loader)
    assert [len(batch) for batch in batches] == [4, 4]
    assert len({int(index) for batch in batches for index in batch}) == 8


@pytest.mark.parametrize("stage", ["predict", "validate"])
def test_nothing_is_encoded_where_nothing_is_trained(stage):
    data = ShapesLatents(clips=4)
    data.setup(stage)
    assert data.encoded is None


def test_hard_clips_are_small_stars_in_the_share_that_is_asked_for():
    clips = [draw_hard_clip(number, 21, 0.5) for number in range(400)]
    is_hard = [(clip.prompt.size, clip.prompt.shape) == ("small", "star") for clip in clips]
    assert 0.45 < sum(is_hard) / len(is_hard) < 0.65
    assert not any(is_held_out(clip.prompt.text) for clip in clips)
    assert draw_hard_clip(7, 21, 0.0) == draw_clip(7, 21, 0.1)
    places = {prompt: place for place, prompt in enumerate(training_prompts())}
    rest = [places[c.timeline[0][1]] for c, hard in zip(clips, is_hard, strict=True) if not hard]
    in_first_half = sum(place < len(places) / 2 for place in rest)
    assert 0.35 < in_first_half / len(rest) < 0.65, "the others are drawn from all prompts"
