"""Data of pretraining: whole clips, and openings beside them."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from longlive.data.shapes_data import ShapesClips, draw_clip, encode_clips, shapes_tokenizer
from longlive.data.shapes_pretraining import ShapesPretraining
from longlive.errors import UserError
from longlive.models.vae import WanVAE
from longlive.models.vae_networks import VAEConfig

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "train" / "tiny_dit.yaml"
PROGRAM = ROOT / "train" / "embedded.py"


def nano_vae() -> WanVAE:
    config = VAEConfig(base_width=2, latent_mean=(0.0,) * 16, latent_std=(1.0,) * 16)
    return WanVAE(config).eval()


def pretraining(rank: int = 0, processes: int = 1, **options: int) -> ShapesPretraining:
    some = {"clips": 4, "openings": 12, "batch_size": 2, "openings_batch_size": 3}
    data = ShapesPretraining(**{**some, "latent_frames": 6, "seed": 50, **options})
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        strategy=SimpleNamespace(root_device=CPU), global_rank=rank, world_size=processes
    )
    return data


def test_pretraining_pairs_clips_with_openings_that_are_clips_of_their_own(monkeypatch):
    vae = nano_vae()
    monkeypatch.setattr("longlive.data.shapes_pretraining.load_vae", lambda folder: vae)
    data = pretraining()
    data.setup("fit")
    step = data.on_after_batch_transfer((torch.tensor([3, 1]), torch.tensor([0, 2, 1])), 0)
    clips = [draw_clip(number, 6, 0.25) for number in (53, 51)]
    openings = [draw_clip(number, 3, 0.25) for number in (54, 56, 55)]
    for found, expected, frames in ((step.clips, clips, 6), (step.openings, openings, 3)):
        texts = [clip.prompt.text for clip in expected]
        assert torch.equal(found.ids, shapes_tokenizer()(texts).ids)
        latents = encode_clips(vae, expected, frames, 96, CPU)
        torch.testing.assert_close(found.latents, latents, rtol=0, atol=2e-2)


def test_processes_train_on_clips_of_their_own(monkeypatch):
    monkeypatch.setattr("longlive.data.shapes_pretraining.load_vae", lambda folder: nano_vae())
    drawn: list[list[int]] = []
    monkeypatch.setattr(
        "longlive.data.shapes_pretraining.clip_batch",
        lambda vae, clips, *rest: drawn.append([clip.seed for clip in clips]),
    )
    for rank in range(2):
        pretraining(rank, processes=2).setup("fit")
    assert [len(numbers) for numbers in drawn] == [2, 6, 2, 6]
    assert len({number for numbers in drawn for number in numbers}) == 16
    loaders = []
    for rank in range(2):
        vae_data = ShapesClips(batch_size=2)
        vae_data.trainer = SimpleNamespace(global_rank=rank)  # type: ignore[assignment]
        loaders.append(next(iter(vae_data.train_dataloader())).tolist())
    assert not set(loaders[0]) & set(loaders[1])


def test_pretraining_goes_through_both_tables_over_and_over():
    batches = iter(pretraining().train_dataloader())
    steps = [next(batches) for _ in range(4)]
    assert sorted(torch.cat([openings for _, openings in steps]).tolist()) == list(range(12))
    for first in (0, 2):
        clips = torch.cat([clips for clips, _ in steps[first : first + 2]])
        assert sorted(clips.tolist()) == list(range(4))


def test_a_share_that_fills_no_batch_is_refused():
    with pytest.raises(UserError, match="do not fill a batch of 3"):
        pretraining(processes=8, openings=16, clips=32).train_dataloader()


def test_the_smallest_data_that_the_program_asks_for_fill_the_batches_of_the_configuration():
    data_of = runpy.run_path(str(PROGRAM))["data_of"]
    init_args = yaml.safe_load(CONFIG.read_text())["data"]["init_args"]
    for devices in (1, 4):
        asked = dict(word.removeprefix("--data.").split("=") for word in data_of(64, devices))
        data = pretraining(
            processes=devices, **{**init_args, **{k: int(v) for k, v in asked.items()}}
        )
        assert next(iter(data.train_dataloader()))[1].shape == (256,)
