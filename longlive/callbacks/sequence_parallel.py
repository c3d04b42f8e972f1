"""One video on several devices: each computes a part of every pass of the transformer.

Every process runs the whole rollout with the same noise and the same prompts, and its denoiser
returns the same velocity in all of them; see :mod:`longlive.callbacks.token_exchange` for what is
shared. The first process alone decodes and shows: its part of the passes may be made smaller by as
much, or it rests while a block is decoded. A KV cache holds the heads of its process only, or all
where the first one rests.

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
        denoiser: Of one process; its cache has the heads that this process keeps.
        exchange: Who has what.
        first_rests: Whether passes beside the decoder are those of the others.
        others: Who has what of these; None if there is one other.
    """

    def __init__(
        self,
        denoiser: CausalDenoiser,
        exchange: Exchange,
        first_rests: bool = False,
        others: Exchange | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.exchange = exchange
        self.first_rests = first_rests
        self.others = others

    def __call__(self, x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
        if not (self.first_rests and inputs.is_beside_decoding):
            return self._share(x_BFCHW, inputs, self.exchange)
        velocity_BFCHW = None
        if self.others is not None:
            velocity_BFCHW = self._share(x_BFCHW, inputs, self.others)
        elif self.exchange.rank > 0:
            velocity_BFCHW = self.denoiser(x_BFCHW, inputs)
        if inputs.keys_only:
            self.exchange.keys_to_first(self.denoiser.cache, inputs.write_slots_F)
            return None
        # The keys of a noisy block need not go there: a later pass writes them again.
        return self.exchange.velocity_to_first(velocity_BFCHW, x_BFCHW)

    def _share(self, x_BFCHW: Tensor, inputs: StepInputs, exchange: Exchange) -> Tensor | None:
        attend = ExchangedAttention(self.denoiser.attend_for(inputs), exchange)
        velocity_BFCHW = self.denoiser.run(exchange.band(x_BFCHW), inputs, attend)
        return None if velocity_BFCHW is None else exchange.join(velocity_BFCHW)


class SequenceParallel(RolloutCallback):
    """Shares every pass of one video among the processes of a group.

    Numerics: exact up to rounding; matrices of other shapes are multiplied by other kernels.

    Args:
        shares: How much of a pass each process does, one number for each, in any unit: rows and
            heads are divided by them. Equal ones by default; the first process also decodes.
        first_rests: Whether the first process leaves context updates and recaches to the others,
            which come while it decodes, and is sent the keys. The others keep those of all heads.
        rested_steps: First denoising steps of a block that it leaves to them as well, if it rests;
            fewer than a block has.
    """

    wrap_order = WrapOrder.KERNELS

    def __init__(
        self,
        shares: Sequence[int] | None = None,
        first_rests: bool = False,
        rested_steps: int = 0,
    ) -> None:
        if shares is not None and (not shares or min(shares) < 1):
            raise UserError(f"shares must be positive numbers, got {list(shares)}")
        if rested_steps < 0 or (rested_steps and not first_rests):
            raise UserError(
                f"rested_steps are steps that the first process rests in, got {rested_steps}: set "
                "first_rests to true, or leave them out"
            )
        self.shares = None if shares is None else tuple(shares)
        self.first_rests = first_rests
        self.rested_steps = rested_steps
        self._exchange: Exchange | None = None
        self._others: Exchange | None = None
        self._group_of_others: dist.ProcessGroup | None = None
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
        rank, rows, columns = group.rank(), spec.geometry.grid_height, spec.geometry.grid_width
        self._exchange = Exchange(
            rank=rank,
            rows=apportion(rows, shares, "rows of tokens"),
            columns=columns,
            heads=apportion(config.heads, shares, "attention heads"),
            keeps_all=tuple(self.first_rests and process > 0 for process in range(len(shares))),
            group=group.group_name,
        )
        self._others = None
        if self.first_rests and rank > 0 and len(shares) > 2:
            if self._group_of_others is None:
                ranks = dist.get_process_group_ranks(group)[1:]
                self._group_of_others = dist.new_group(ranks, use_local_synchronization=True)
            self._others = Exchange(
                rank=rank - 1,
                rows=apportion(rows, shares[1:], "rows of tokens"),
                columns=columns,
                heads=apportion(config.heads, shares[1:], "attention heads"),
                keeps_all=(True,) * (len(shares) - 1),
                group=self._group_of_others.group_name,
            )
        steps = len(spec.schedule.sigmas)
        if self.rested_steps >= steps:
            raise UserError(
                f"a block has {steps} denoising steps, and the first process cannot rest in "
                f"{self.rested_steps}: set rested_steps to at most {steps - 1}"
            )
        return replace(spec, is_shown=group.rank() == 0, steps_beside_decoding=self.rested_steps)

    def configure_caches(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, make: MakeCaches
    ) -> MakeCaches:
        if self._exchange is None:
            return make
        dit, kept = _dit_of(pl_module), self._exchange.kept(self._exchange.rank)
        heads = kept.stop - kept.start
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
        return SharedDenoiser(denoiser, self._exchange, self.first_rests, self._others)

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
