"""Callbacks of training: checkpoints, videos at fixed prompts, progress."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from longlive.callbacks.safe_checkpoint import DirectCheckpointIO, SafeCheckpoint
from longlive.callbacks.training_progress import TrainingProgress
from longlive.callbacks.validation_videos import ValidationVideos
from longlive.errors import UserError
from longlive.video.read import read_video

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")


class Toy(pl.LightningModule):
    """One number that falls; its videos are as bright as the number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        return self.weight.square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self) -> Any:
        return [torch.zeros(1)] * 20

    def sample(self, prompts: list[str], latent_frames: int, seed: int) -> Tensor:
        return self.weight.detach().expand(len(prompts), latent_frames, 1, 1, 1)

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        return latents_BFCHW.expand(-1, -1, 3, 16, 16)


def train(steps: int, *callbacks: pl.Callback, resume: Path | None = None) -> pl.Trainer:
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        # Lightning's own would be written into the current folder.
        enable_checkpointing=any(isinstance(some, SafeCheckpoint) for some in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(Toy(), ckpt_path=resume)
    return trainer


def test_the_newest_checkpoints_stay_and_the_last_one_has_a_name_of_its_own(tmp_path):
    train(7, SafeCheckpoint(tmp_path, every=2, keep=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last.ckpt",
        "step-0000006.ckpt",
        "step-0000007.ckpt",
    ]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 7


def test_a_shorter_run_in_the_same_folder_keeps_its_own_checkpoint(tmp_path):
    train(7, SafeCheckpoint(tmp_path, keep=1))
    train(3, SafeCheckpoint(tmp_path, keep=1))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_run_goes_on_from_the_last_checkpoint(tmp_path):
    whole = train(6, SafeCheckpoint(tmp_path / "a"))
    train(3, SafeCheckpoint(tmp_path / "b"))
    resumed = train(6, SafeCheckpoint(tmp_path / "b"), resume=tmp_path / "b" / "last.ckpt")
    assert torch.equal(whole.lightning_module.weight, resumed.lightning_module.weight)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("writing")])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before_it(tmp_path, monkeypatch, error):
    train(2, SafeCheckpoint(tmp_path))
    before = (tmp_path / "last.ckpt").read_bytes()

    def fail(checkpoint: Any, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr("longlive.callbacks.safe_checkpoint.torch.save", fail)
    with pytest.raises(UserError, match=r"step-0000004.ckpt.*step-0000002.ckpt is kept") as raised:
        train(4, SafeCheckpoint(tmp_path), resume=tmp_path / "last.ckpt")
    assert "\n" not in str(raised.value)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step-0000002.ckpt"]


def test_a_checkpoint_is_written_straight_into_its_file(tmp_path):
    DirectCheckpointIO().save_checkpoint({"a": torch.ones(2)}, tmp_path / "a.ckpt")
    assert torch.equal(torch.load(tmp_path / "a.ckpt", weights_only=True)["a"], torch.ones(2))


def test_settings_of_checkpoints_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="at least 1"):
        SafeCheckpoint(Path("x"), every=0)


def test_videos_of_fixed_prompts_are_written_every_few_steps(tmp_path):
    prompts = ["a red circle", "a blue square"]
    train(4, ValidationVideos(prompts, tmp_path, every=2, latent_frames=9))
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["step-0000002", "step-0000004"]
    for folder in folders:
        names = sorted(path.name for path in (tmp_path / folder).iterdir())
        assert names == ["0000-a-red-circle-s0.mp4", "0001-a-blue-square-s0.mp4", "sheet.png"]
    first, later = (read_video(tmp_path / f / "0000-a-red-circle-s0.mp4") for f in folders)
    assert len(first) == 9
    # They show what the module had learned by then.
    assert float(torch.as_tensor(first).float().mean()) > float(
        torch.as_tensor(later).float().mean()
    )


def test_videos_need_a_prompt_and_a_module_that_makes_them(tmp_path):
    with pytest.raises(UserError, match="need a prompt"):
        ValidationVideos([], tmp_path)
    with pytest.raises(UserError, match="makes no videos"):
        ValidationVideos(["a"], tmp_path).setup(None, pl.LightningModule(), "fit")


def test_progress_tells_the_time_left_from_the_share_that_is_done(monkeypatch):
    clock = iter([100.0, 130.0])
    monkeypatch.setattr("longlive.callbacks.training_progress.time.monotonic", lambda: next(clock))

    class Run:
        is_global_zero = True
        max_steps = 40
        global_step = 0
        callback_metrics: dict[str, float] = {}

    progress, run = TrainingProgress(), Run()
    progress.on_train_start(run, None)
    assert progress.left(run) == ""
    run.global_step = 10
    assert progress.left(run) == "90 s left"


def test_progress_believes_the_module_about_how_much_is_done(monkeypatch):
    clock = iter([0.0, 3600.0])
    monkeypatch.setattr("longlive.callbacks.training_progress.time.monotonic", lambda: next(clock))

    class Run:
        is_global_zero = True
        max_steps = 10**6
        global_step = 5
        callback_metrics: dict[str, float] = {"train/progress": 0.0}

    progress, run = TrainingProgress(), Run()
    progress.on_train_start(run, None)
    run.callback_metrics = {"train/progress": 0.25}
    assert progress.left(run) == "3:00 h left"


def test_a_signal_that_comes_after_the_look_at_it_is_obeyed_all_the_same(tmp_path, caplog):
    class Late(SafeCheckpoint):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
            super().on_train_batch_end(trainer, *args, **kwargs)
            trainer._signal_connector.received_sigterm = trainer.global_step == 3

    with caplog.at_level("INFO"), pytest.raises(SystemExit):
        train(20, Late(tmp_path, every=100))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    assert "told to stop: saved" in caplog.text
