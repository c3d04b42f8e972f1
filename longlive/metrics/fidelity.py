"""How far a rollout is from a reference rollout with the same noise.

What a change of precision, kernel or window does to a video shows first here, and sooner than in
any judgment of quality: the reference is the same model, prompt and noise. It says how *different*
the video is, not how much *worse*: two rollouts that drift apart can be equally good.

Shape suffixes: ``B`` videos, ``F`` latent frames, ``T`` frames, ``C`` channels, ``H`` ``W`` rows
and columns, ``K`` blocks.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from longlive.errors import UserError
from longlive.metrics.similarity import ms_ssim, ssim
from longlive.video.frames import evenly

_CHUNK_PIXELS = 1 << 19
_LARGEST_8BIT = 255.0


class LatentFidelity(Metric):
    """Relative L2 distance of the latents, block by block, and how it grows.

    The error of a block is ``|x - reference| / |reference|`` over all its values; videos count the
    same. ``growth`` is the slope of a line through the errors, per block: what one more block adds.

    When it misleads: a rollout is chaotic, so an error that begins in the last bit may grow until
    both videos show the same thing in another place (two unrelated videos are about 1.4 apart).
    From there on the slope falls again and says nothing. The first blocks tell a kernel's error,
    the later ones what the model makes of it.

    Args:
        block_latent_frames: Latent frames of a block.
        blocks: How many blocks are told apart; later ones are left out.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    error_K: Tensor
    videos_K: Tensor

    def __init__(self, block_latent_frames: int = 3, blocks: int = 512, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_latent_frames = block_latent_frames
        zeros = torch.zeros(blocks, dtype=torch.float64)
        self.add_state("error_K", default=zeros, dist_reduce_fx="sum")
        self.add_state("videos_K", default=zeros.clone(), dist_reduce_fx="sum")

    def update(self, latents_BFCHW: Tensor, reference_BFCHW: Tensor) -> None:
        """Add videos.

        Args:
            latents_BFCHW: Clean latents in whole blocks.
            reference_BFCHW: Of the reference rollouts, the same shape.

        Raises:
            UserError: If the shapes differ.
        """
        _check_same(latents_BFCHW, reference_BFCHW, "latents")
        size = self.block_latent_frames
        for index in range(min(latents_BFCHW.shape[1] // size, len(self.error_K))):
            part = slice(index * size, (index + 1) * size)
            reference = reference_BFCHW[:, part].double().flatten(1)
            off = latents_BFCHW[:, part].double().flatten(1) - reference
            error_B = off.norm(dim=1) / reference.norm(dim=1).clamp(min=1e-300)
            self.error_K[index] += error_B.sum().to(self.device)
            self.videos_K[index] += len(error_B)

    def compute(self) -> dict[str, Tensor]:
        """``latent_error`` over all blocks, ``latent_error_by_block`` ``[K]`` and ``growth``."""
        seen = self.videos_K > 0
        error_K = self.error_K[seen] / self.videos_K[seen]
        growth = error_K.new_full((), torch.nan)
        if len(error_K) > 1:
            index_K = torch.arange(len(error_K), dtype=torch.float64, device=error_K.device)
            index_K -= index_K.mean()
            growth = (index_K * error_K).sum() / index_K.square().sum()
        return {
            "latent_error": error_K.mean(),
            "latent_error_growth": growth,
            "latent_error_by_block": error_K,
        }


class FrameFidelity(Metric):
    """PSNR, SSIM and MS-SSIM of frames against a reference, over all frames of all videos.

    PSNR is ``10 log10(1 / mse)`` of the pooled squared error, infinite for equal frames; SSIM and
    MS-SSIM are means over frames (:mod:`longlive.metrics.similarity`).

    When it misleads: an object one pixel further on costs as much PSNR as a wrong color; fixed
    noise in the background (snow, sand) sets a floor that has nothing to do with the object; flat
    backgrounds lift SSIM. Frames below 161 pixels a side have fewer scales in MS-SSIM.

    Args:
        similarity_frames: SSIM and MS-SSIM take at most so many frames of a video, evenly spaced;
            all by default. They cost some thirty times what PSNR does.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    squared_error: Tensor
    values: Tensor
    ssim: Tensor
    ms_ssim: Tensor
    frames: Tensor

    def __init__(self, similarity_frames: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.similarity_frames = similarity_frames
        zero = torch.zeros((), dtype=torch.float64)
        for name in ("squared_error", "values", "ssim", "ms_ssim", "frames"):
            self.add_state(name, default=zero.clone(), dist_reduce_fx="sum")

    def update(self, frames_BTCHW: Tensor, reference_BTCHW: Tensor) -> None:
        """Add videos.

        Args:
            frames_BTCHW: Float in [0, 1], or ``uint8``; a batch is optional.
            reference_BTCHW: The same shape.

        Raises:
            UserError: If the shapes differ, or a window of SSIM does not fit into a frame.
        """
        _check_same(frames_BTCHW, reference_BTCHW, "frames")
        x_NCHW, y_NCHW = frames_BTCHW.flatten(0, -4), reference_BTCHW.flatten(0, -4)
        chunk = max(1, _CHUNK_PIXELS // (x_NCHW.shape[-1] * x_NCHW.shape[-2]))
        for x, y in zip(x_NCHW.split(chunk), y_NCHW.split(chunk), strict=True):
            self.squared_error += (_unit(x) - _unit(y)).square().sum().to(self.device)
            self.values += x.numel()
        chosen = evenly(frames_BTCHW.shape[-4], self.similarity_frames)
        x_NCHW, y_NCHW = (
            frames[..., chosen, :, :, :].flatten(0, -4)
            for frames in (frames_BTCHW, reference_BTCHW)
        )
        for x, y in zip(x_NCHW.split(chunk), y_NCHW.split(chunk), strict=True):
            x, y = _unit(x), _unit(y)
            self.ssim += ssim(x, y).sum().to(self.device)
            self.ms_ssim += ms_ssim(x, y).sum().to(self.device)
            self.frames += len(x)

    def compute(self) -> dict[str, Tensor]:
        """``frame_mse``, ``psnr_db``, ``ssim`` and ``ms_ssim``."""
        mse = self.squared_error / self.values
        return {
            "frame_mse": mse,
            "psnr_db": -10 * torch.log10(mse),
            "ssim": self.ssim / self.frames,
            "ms_ssim": self.ms_ssim / self.frames,
        }


def _unit(frames: Tensor) -> Tensor:
    """Frames as float64 in [0, 1]."""
    return frames.double() / (_LARGEST_8BIT if frames.dtype == torch.uint8 else 1.0)


def _check_same(x: Tensor, reference: Tensor, what: str) -> None:
    if x.shape != reference.shape:
        raise UserError(
            f"{what} of {list(x.shape)} cannot be compared with a reference of "
            f"{list(reference.shape)}: make both with the same size and length"
        )
