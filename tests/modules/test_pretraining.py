"""Training text encoder and transformer together."""

import pytest
import torch
from nano import CONFIG

from longlive.data.shapes_data import ClipBatch
from longlive.data.shapes_pretraining import PretrainingBatch
from longlive.models.dit import TeacherForcingOptions
from longlive.models.sizes import DiTConfig
from longlive.models.tokenizer import EOS_ID, PAD_ID
from longlive.modules.pretraining import TextToVideoPretraining

SIZE = DiTConfig(
    width=32,
    ffn_width=48,
    heads=2,
    layers=1,
    text_width=64,
    text_len=16,
    patch=1,
    latent_channels=CONFIG.latent_channels,
    frequency_width=8,
)
FORCING = TeacherForcingOptions(block=2, window=4, sink=2, history_noise=0.0)


def batch() -> PretrainingBatch:
    return PretrainingBatch(clips_of(4, frames=4), clips_of(6, frames=2))


def clips_of(clips: int, frames: int) -> ClipBatch:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 30, (clips, 16), generator=generator)
    ids[:, 6:] = PAD_ID
    ids[:, 5] = EOS_ID
    return ClipBatch(
        latents=torch.randn(clips, frames, CONFIG.latent_channels, 4, 4, generator=generator),
        ids=ids,
        mask=(torch.arange(16) < 6).long().expand(clips, 16),
        starts=torch.zeros(clips, dtype=torch.int64),
    )


def module(**options: object) -> TextToVideoPretraining:
    model = TextToVideoPretraining(SIZE, "tiny", FORCING, **options)
    model.logged = {}
    model.log = lambda name, value, **kwargs: model.logged.update({name: value.item()})
    return model


def test_training_steps_on_one_batch_lower_the_loss():
    model = module(unprompted_share=0.0, openings_share=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        # The same noise each time, or its luck would hide what is learned.
        torch.manual_seed(1)
        loss = model.training_step(batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_text_encoder_is_trained_too():
    model = module(unprompted_share=0.0)
    # The head starts at zero, and lets nothing through in the first step.
    torch.nn.init.normal_(model.dit.head.head.weight, std=0.1)
    model.training_step(batch()).backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert without == []
    assert model.text_encoder.token_embedding.weight.grad.abs().sum() > 0


def test_prompts_are_left_out_as_often_as_asked():
    model = module(unprompted_share=0.25)
    some = clips_of(2000, frames=2)
    ids, mask = model._without_some_prompts(some.ids, some.mask)
    left_out = mask.sum(1) == 1
    assert 0.2 < left_out.float().mean() < 0.3
    assert (ids[left_out, 0] == EOS_ID).all()
    assert (ids[left_out, 1:] == PAD_ID).all()
    assert torch.equal(ids[~left_out], some.ids[~left_out])
    assert torch.equal(mask[~left_out], some.mask[~left_out])


def test_the_learning_rate_rises_and_then_falls_to_zero_at_the_last_step():
    model = module(max_steps=1000, learning_rate=1e-2)
    configured = model.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(1000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] < rates[100] < rates[190]
    assert max(rates) <= 1e-2
    assert rates[-1] < 1e-5


def test_first_blocks_alone_come_first_and_then_both():
    model = module(openings_share=0.25, max_steps=100)
    openings = model.training_step(batch())
    assert set(model.logged) == {"train/opening_loss"}
    assert openings.item() == model.logged["train/opening_loss"]
    model.clock.advance(25)
    both = model.training_step(batch())
    assert both.item() == pytest.approx(sum(model.logged.values()))
    assert set(model.logged) == {"train/opening_loss", "train/flow_loss"}


def test_a_training_without_an_end_learns_from_both():
    model = module()
    model.training_step(batch())
    assert set(model.logged) == {"train/opening_loss", "train/flow_loss"}
