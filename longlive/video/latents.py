"""The clean latents of a video, in one safetensors file."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from longlive.errors import UserError
from longlive.video.atomic import write_bytes

# Shape suffixes: B batch, F latent frames, C channels, H rows, W columns.

LATENTS_KEY = "latents_BFCHW"


class LatentWriter:
    """Collects latents on the host and writes them when the video is complete.

    A block of the 480x832 model is 600 KiB in bfloat16, so an hour of video stays below 3 GiB.

    Args:
        path: Ends in ``.safetensors``. Missing folders are made.
        metadata: Stored in the file's header.

    Raises:
        UserError: If ``path`` has another suffix.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        if path.suffix != ".safetensors":
            raise UserError(f"a file of latents must end in .safetensors, got {path}")
        self.path = path
        self._metadata = dict(metadata or {})
        self._blocks: list[Tensor] = []

    @property
    def latent_frames(self) -> int:
        return sum(block.shape[1] for block in self._blocks)

    def append(self, x0_BFCHW: Tensor) -> None:
        """Keep a copy of one block's latents, ``[B, F, C, H, W]``, in their own precision.

        Raises:
            ValueError: If anything but the number of latent frames differs from earlier blocks.
        """
        if x0_BFCHW.ndim != 5:
            raise ValueError(f"latents must be [B, F, C, H, W], got {list(x0_BFCHW.shape)}")
        if self._blocks and _frame_kind(x0_BFCHW) != _frame_kind(self._blocks[0]):
            raise ValueError(
                f"latents of {list(x0_BFCHW.shape)} {x0_BFCHW.dtype} do not continue "
                f"{list(self._blocks[0].shape)} {self._blocks[0].dtype}"
            )
        self._blocks.append(x0_BFCHW.detach().to("cpu", copy=True))

    def close(self) -> Path:
        """Write everything under the key ``latents_BFCHW``; return the file.

        Raises:
            UserError: If there was no block, the disk is full, or the folder is not writable. A
                previous file stays.
        """
        from safetensors.torch import save

        if not self._blocks:
            raise UserError(f"no latents were made for {self.path}; ask for a longer video")
        latents_BFCHW = torch.cat(self._blocks, dim=1)
        write_bytes(self.path, save({LATENTS_KEY: latents_BFCHW}, metadata=self._metadata))
        return self.path


def read_latents(path: Path) -> tuple[Tensor, dict[str, str]]:
    """Load what ``LatentWriter`` wrote.

    Returns:
        The latents ``[B, F, C, H, W]`` and the metadata.

    Raises:
        UserError: If the file is missing or is no file of latents.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"there is no file of latents at {path}; check the name")
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(LATENTS_KEY), dict(file.metadata() or {})
    except SafetensorError as error:
        raise UserError(f"{path} holds no latents ({error}); write it with LatentWriter") from error


def _frame_kind(x_BFCHW: Tensor) -> tuple[int, torch.Size, torch.dtype]:
    return x_BFCHW.shape[0], x_BFCHW.shape[2:], x_BFCHW.dtype
