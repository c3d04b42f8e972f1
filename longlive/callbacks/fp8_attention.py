"""FP8 attention over an FP8 KV cache.

Keys and values are rounded once, when a block is stored, and read as they are by every later pass;
queries are rounded as they are read. The cache takes half the memory. Scales are found from the
first block of a video and kept, see :mod:`longlive.kernels.fp8_write`. Training has caches of its
own and is not changed.
"""

import lightning.pytorch as pl
import torch

from longlive.attention.fp8_cache import Fp8Cache
from longlive.callbacks.optimization import Optimization, parts_of
from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.rollout.hooks import MakeCaches, WrapOrder
from longlive.rollout.state import Caches, RolloutSpec

_CAPABILITY = (8, 9)
# Tiles of the products, whose sides are powers of two.
_HEAD_DIMS = (64, 128)


class Fp8Attention(Optimization):
    """Keeps keys and values of the video in FP8 (e4m3), and attends to them in FP8.

    Numerics: different. Eight bits have an error of some percent in what each query gathers. The
    attention backend that was chosen is left to the prompt's keys.

    Args:
        emulates: Compute with the rounded numbers in float32, on any device: the quality of FP8, at
            less than the speed of the plain attention and with more memory.
        required: Whether it is an error if the device cannot multiply such numbers.
    """

    # After whoever gives each process its own heads, before graphs hold addresses.
    wrap_order = WrapOrder.COMPILE

    def __init__(self, emulates: bool = False, required: bool = True) -> None:
        super().__init__(required)
        self.emulates = emulates
        self._head_dims: set[int] = set()

    def missing(self, device: torch.device) -> str | None:
        if self.emulates:
            return None
        anywhere = "(emulates: true computes the same anywhere, for quality and not for speed)"
        if not _multiplies_fp8(device):
            least = ".".join(map(str, _CAPABILITY))
            return f"Triton and a GPU of compute capability {least} or more {anywhere}"
        if not self._head_dims.issubset(_HEAD_DIMS):
            given = " and ".join(map(str, sorted(self._head_dims)))
            return f"heads of {_HEAD_DIMS[0]} or {_HEAD_DIMS[1]} numbers, not {given} {anywhere}"
        return None

    def is_usable(self, pl_module: pl.LightningModule) -> bool:
        self._head_dims = {dit.config.head_dim for dit in parts_of(pl_module, DiT)}
        return super().is_usable(pl_module)

    def configure_rollout(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, spec: RolloutSpec
    ) -> RolloutSpec:
        if not self.is_usable(pl_module):
            return spec
        if spec.cached_latent_frames is not None:
            raise UserError(
                "an FP8 KV cache has room for the window and no more: leave cached_latent_frames "
                "or Fp8Attention out"
            )
        return spec

    def configure_caches(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, make: MakeCaches
    ) -> MakeCaches:
        if not self.is_usable(pl_module):
            return make

        def made(spec: RolloutSpec) -> Caches:
            video, text = make(spec)
            shape, device = tuple(video.k.shape), video.k.device
            # The plain one goes first: both at once may not fit.
            del video
            return Caches(Fp8Cache(shape, device, emulates=self.emulates), text)

        return made


def _multiplies_fp8(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    from torch.utils._triton import has_triton

    return torch.cuda.get_device_capability(device) >= _CAPABILITY and has_triton()
