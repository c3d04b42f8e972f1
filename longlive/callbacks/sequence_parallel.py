"""One video on several devices: each computes a part of every pass of the transformer.

Every process runs the whole rollout with the same noise and the same prompts, and its denoiser
returns the same velocity in all of them; see :mod:`longlive.callbacks.token_exchange` for what is
shared. The first process alone decodes and shows: its part of the passes may be made smaller by as
much. A KV cache holds the heads of its process only.

The processes are those of the strategy's dimension ``tensor_parallel``
(:class:`lightning.pytorch.strategies.ModelParallelStrategy`), or all of them without a trainer. Its
other dimension makes several videos at a time.
"""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns.

from collections.abc import Sequence
from dataclasses import replace

import lightning.pytorch as pl
import torch.distributed as dist
from torch import Tensor

from longlive.callbacks.optimization import device_of, parts_of
from longlive.callbacks.shared_prompts import SharedPrompts, control_group
from longlive.callbacks.token_exchange import Exchange, ExchangedAttention, apportion
from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.rollout.denoiser import CausalDenoiser, Denoiser
from longlive.rollout.hooks import MakeCaches, RolloutCallback, WrapOrder
from longlive.rollout.prompts import Prompts
from longlive.rollout.state import RolloutSpec, StepInputs, allocate_caches


class SharedDenoiser:
    """Computes a band of rows, and returns the rows of all processes.

    Args:
        denoiser: Of one process; its cache of the video has this process's heads.
        exchange: Who has what.
    """

    def __init__(self, denoiser: CausalDenoiser, exchange: Exchange) -> None:
        self.denoiser = denoiser
        self.exchange = exchange

    def __call__(self, x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
        attend = ExchangedAttention(self.denoiser.attend_for(inputs), self.exchange)
        band_BFCHW = self.exchange.band(x_BFCHW)
        velocity_BFCHW = self.denoiser.run(band_BFCHW, inputs, attend)
        return None if velocity_BFCHW is None else self.exchange.join(velocity_BFCHW)


class SequenceParallel(RolloutCallback):
    """Shares every pass of one video among the processes of a group.

    Numerics: exact up to rounding; matrices of other shapes are multiplied by other kernels.

    Args:
        shares: How much of a pass each process does, one number for each, in any unit: rows and
            heads are divided by them. Equal ones by default; the first process also decodes.
    """

    wrap_order = WrapOrder.KERNELS

    def __init__(self, shares: Sequence[int] | None = None) -> None:
        if shares is not None and (not shares or min(shares) < 1):
            raise UserError(f"shares must be positive numbers, got {list(shares)}")
        self.shares = None if shares is None else tuple(shares)
        self._exchange: Exchange | None = None
        self._control: dist.ProcessGroup | None = None

    def configure_rollout(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, spec: RolloutSpec
    ) -> RolloutSpec:
        group = group_of(trainer)
        if group is None:
            self._exchange = None
            return spec
        config = _dit_of(pl_module).config
        shares = self.shares or (1,) * group.size()
        if len(shares) != group.size():
            raise UserError(
                f"{len(shares)} shares do not fit {group.size()} processes: give one for each"
            )
        self._exchange = Exchange(
            rank=group.rank(),
            rows=apportion(spec.geometry.grid_height, shares, "rows of tokens"),
            columns=spec.geometry.grid_width,
            heads=apportion(config.heads, shares, "attention heads"),
            group=group.group_name,
        )
        return replace(spec, is_shown=group.rank() == 0)

    def configure_caches(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, make: MakeCaches
    ) -> MakeCaches:
        if self._exchange is None:
            return make
        dit, heads = _dit_of(pl_module), self._exchange.heads[self._exchange.rank]
        dtype, device = dit.dtype_of_weights, device_of(dit)
        return lambda spec: allocate_caches(spec, dit.config, dtype, device, video_heads=heads)

    def configure_denoiser(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, denoiser: Denoiser
    ) -> Denoiser:
        if self._exchange is None:
            return denoiser
        if not isinstance(denoiser, CausalDenoiser):
            raise UserError(
                f"{type(denoiser).__name__} cannot be shared by processes: leave out the callback "
                "that brings it"
            )
        return SharedDenoiser(denoiser, self._exchange)

    def configure_prompts(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, prompts: Prompts
    ) -> Prompts:
        if self._exchange is None:
            return prompts
        if self._control is None:
            self._control = control_group(trainer)
        return SharedPrompts(prompts, self._control)


def group_of(trainer: pl.Trainer | None) -> dist.ProcessGroup | None:
    """Return the processes that make one video; None if that is one.

    Raises:
        UserError: If the strategy makes a video in each process.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    if trainer is None:
        return dist.group.WORLD
    if not isinstance(trainer.strategy, pl.strategies.ModelParallelStrategy):
        raise UserError(
            f"{type(trainer.strategy).__name__} makes a video in each process: to share one, set "
            "trainer.strategy to lightning.pytorch.strategies.ModelParallelStrategy, as "
            "configs/parallel/sequence.yaml does; or leave SequenceParallel out"
        )
    group = trainer.strategy.device_mesh["tensor_parallel"].get_group()
    return group if group.size() > 1 else None


def _dit_of(pl_module: pl.LightningModule) -> DiT:
    return next(parts_of(pl_module, DiT))
