"""Videos of the student at fixed prompts, every so often while it is trained."""

# Shape suffixes: B batch, T frames, C channels, H W rows and columns.

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
from einops import rearrange
from torch import Tensor

from longlive.errors import UserError
from longlive.video.contact_sheet import save_contact_sheet
from longlive.video.frames import to_uint8
from longlive.video.mp4 import Mp4Writer
from longlive.video.naming import output_name


@runtime_checkable
class SamplesVideos(Protocol):
    """A module that can show what it has learned."""

    def sample(self, prompts: list[str], latent_frames: int, seed: int) -> Tensor:
        """Latents ``[B, F, C, H, W]``, one video per prompt."""
        ...

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        """Frames ``[B, T, 3, H, W]`` in [0, 1]."""
        ...


class ValidationVideos(pl.Callback):
    """Writes MP4 files and a contact sheet of the same prompts and seed after every few steps.

    Args:
        prompts: One video each; all are made side by side.
        folder: Where they go, in a folder per training step.
        every: Training steps between two rounds.
        latent_frames: Length of a video, whole blocks.
        seed: Of the noise, always the same.

    Raises:
        UserError: If there is no prompt, or the module cannot make videos.
    """

    def __init__(
        self,
        prompts: list[str],
        folder: Path,
        every: int = 250,
        latent_frames: int = 21,
        seed: int = 0,
    ) -> None:
        if not prompts or every < 1:
            raise UserError("validation videos need a prompt, and every of at least 1")
        self.prompts = prompts
        self.folder = Path(folder)
        self.every = every
        self.latent_frames = latent_frames
        self.seed = seed

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, SamplesVideos):
            raise UserError(f"{type(pl_module).__name__} makes no videos: drop ValidationVideos")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step % self.every == 0:
            self.write(trainer, pl_module)

    def write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make and write all videos; every process makes them, since weights may be spread."""
        assert isinstance(pl_module, SamplesVideos)
        latents = pl_module.sample(self.prompts, self.latent_frames, self.seed)
        if not trainer.is_global_zero:
            return
        folder = self.folder / f"step-{trainer.global_step:07d}"
        videos = []
        for index, prompt in enumerate(self.prompts):
            frames_BTCHW = to_uint8(pl_module.decode(latents[index : index + 1]))
            x_THWC = rearrange(frames_BTCHW[0], "T C H W -> T H W C").cpu().numpy()
            with Mp4Writer(
                folder / f"{output_name(index, prompt, self.seed)}.mp4", title=prompt
            ) as file:
                file.append(x_THWC)
            videos.append(x_THWC)
        save_contact_sheet(folder / "sheet.png", videos, captions=self.prompts)
