"""What was asked for, where a rollout stands, and what one call of the denoiser is told."""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns, S slots read.

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from longlive.attention.cross_cache import CrossCache
from longlive.attention.kv_cache import KVCache, Slots
from longlive.attention.rope import MAX_ABSOLUTE_LATENT_FRAMES, RopeKind
from longlive.attention.window import SlotWindow, WindowPlan, check_recache, check_window
from longlive.errors import UserError
from longlive.geometry import Geometry
from longlive.models.sizes import DiTConfig
from longlive.rollout.transitions import Blend, Mixture
from longlive.schedule import DenoisingSchedule, timestep_of

SamplerName = Literal["renoise", "euler"]
"""``renoise``: few steps of a distilled student. ``euler``: many steps of an undistilled model."""


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """What was asked for; fixed before the first buffer is allocated.

    Attributes:
        geometry: Size of the video and of a block.
        schedule: Noise levels a block visits.
        latent_frames: Length, in whole blocks; None goes on until stopped.
        window_latent_frames: Latent frames a query can see, sink and own block included; None for
            all.
        sink_latent_frames: First latent frames that are never evicted.
        positions: ``relative`` lifts the length limit of ``absolute``.
        keeps_sink: Whether the sink keeps the keys of the first prompt at a prompt switch. While
            the window is not yet full it is rebuilt all the same, as in the reference.
        sampler: How a block goes from one noise level to the next.
        guidance: Classifier-free guidance (arXiv:2207.12598); 1 switches it off.
        context_sigma: Noise level the network is told in the context update and the recache.
        batch: Videos denoised side by side.
        cached_latent_frames: Room in the KV cache, if more than the window: training keeps the
            frames of a whole chunk, so that a backward pass finds what its forward pass saw.
        computes_unread: Whether keys that nothing reads are computed all the same, as the reference
            does: in a recache those of frames that a protected sink drops, and in a context update
            those that the recache of a prompt that is known by then replaces. Leaving them out
            changes no number.
        recached_latent_frames: Latent frames that a recache runs, if not those of the window: the
            reference's training runs a whole chunk; fewer than the window rebuild its newest
            alone, which is an approximation.
        first_schedule: Noise levels of the first block, if not those of the others. It has no
            history to lean on, and a student of few steps may give it more.
        updates_context: Whether a block's clean keys are stored by a pass of their own. A student
            that was distilled without it keeps the keys of its last denoising step.
        recaches: Whether a prompt switch rebuilds the window; without it the old prompt stays in
            the stored keys and fades out with them.
        rehearses: Whether every kind of pass is run before the first block, so that none is slow
            the first time it is needed.
        preempts: Whether a prompt that is asked for while a block is denoised begins with that
            block, which is then begun again, and not with the next.
        steps_beside_decoding: First denoising steps of a block that are thought to run while the
            block before it is decoded: a hint for who divides the work of both.
        first_frame_alone: Whether the first latent frame of a video is denoised, and shown, before
            the rest of its block. It then knows nothing of them; a model that was not trained for
            it makes another video.
        is_shown: Whether blocks are decoded; of several processes that make one video, in one.
    """

    geometry: Geometry
    schedule: DenoisingSchedule
    latent_frames: int | None
    window_latent_frames: int | None = 12
    sink_latent_frames: int = 3
    positions: RopeKind = "absolute"
    keeps_sink: bool = True
    sampler: SamplerName = "renoise"
    guidance: float = 1.0
    context_sigma: float = 0.0
    batch: int = 1
    cached_latent_frames: int | None = None
    computes_unread: bool = False
    recached_latent_frames: int | None = None
    first_schedule: DenoisingSchedule | None = None
    updates_context: bool = True
    recaches: bool = True
    rehearses: bool = False
    preempts: bool = False
    steps_beside_decoding: int = 0
    first_frame_alone: bool = False
    is_shown: bool = True

    @property
    def blocks(self) -> int | None:
        """Blocks of the rollout; None goes on until stopped."""
        if self.latent_frames is None:
            return None
        return self.latent_frames // self.geometry.block_latent_frames

    def parts_of(self, block_index: int) -> tuple[int, ...]:
        """Latent frames of each part of a block; those of a part are denoised together."""
        block = self.geometry.block_latent_frames
        is_divided = self.first_frame_alone and block_index == 0 and block > 1
        return (1, block - 1) if is_divided else (block,)

    @property
    def slots(self) -> int:
        """Latent frames the KV cache has room for."""
        slots = self.cached_latent_frames or self.window_latent_frames or self.latent_frames
        assert slots is not None, "check() was not called"
        return slots

    @property
    def network_batch(self) -> int:
        """Batch of a network call: guidance runs a second one without the prompt."""
        return self.batch * (2 if self.guidance != 1 else 1)

    def rehearsed(self) -> "RolloutSpec":
        """The same, with every kind of pass run before the first block."""
        return replace(self, rehearses=True)

    def check(self) -> "RolloutSpec":
        """Return the spec if it can work.

        Raises:
            UserError: Naming the setting to change.
        """
        block = self.geometry.block_latent_frames
        frames, window, cached = (
            self.latent_frames,
            self.window_latent_frames,
            self.cached_latent_frames,
        )
        if cached is not None and (window is None or cached < window):
            raise UserError(
                f"a cache of {cached} latent frames is smaller than the window: set "
                "cached_latent_frames to at least window_latent_frames, or leave it out"
            )
        check_window(self.window_latent_frames, self.sink_latent_frames, block)
        check_recache(self.recached_latent_frames, cached or window, block)
        if frames is None and self.window_latent_frames is None:
            raise UserError("a rollout without an end needs a window: set window_latent_frames")
        if frames is not None and (frames < 1 or frames % block):
            raise UserError(
                f"{frames} latent frames are not whole blocks of {block}: set latent_frames to "
                f"{max(block, -(-frames // block) * block)}"
            )
        too_long = frames is None or frames > MAX_ABSOLUTE_LATENT_FRAMES
        if self.positions == "absolute" and too_long:
            length = "a rollout without an end" if frames is None else f"{frames} latent frames"
            raise UserError(
                f"absolute positions end at {MAX_ABSOLUTE_LATENT_FRAMES} latent frames and "
                f"{length} was asked for: set positions to relative"
            )
        return self


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What one denoiser call needs besides the latents; the prompt is in the cross-attention cache.

    Whatever changes from block to block is a tensor on the device: a compiled call specializes on
    Python numbers and would be rebuilt, and a captured graph would replay the old ones. The numbers
    that are left (how many slots are read, which rows are dropped) change only while the window
    fills and at a recache.

    Attributes:
        timestep_BF: 1000 sigma, float32 ``[1, 1]``: all latent frames share it.
        positions_F: Temporal rotary position of each latent frame of the call.
        write_slots_F: Slot of each stored latent frame.
        read: Slots the queries see.
        dropped: Leading latent frames that are not stored.
        keys_only: Only the keys and values it stores are wanted.
        is_beside_decoding: Whether the block before is thought to be decoded meanwhile.
    """

    timestep_BF: Tensor
    positions_F: Tensor
    write_slots_F: Tensor
    read: Slots
    dropped: int
    keys_only: bool
    is_beside_decoding: bool = False


class Caches(NamedTuple):
    """The large buffers of a rollout.

    Attributes:
        video: Keys and values of the video.
        text: Keys and values of the active prompt.
    """

    video: KVCache
    text: CrossCache


def allocate_caches(
    spec: RolloutSpec,
    config: DiTConfig,
    dtype: torch.dtype,
    device: torch.device,
    video_heads: int | None = None,
) -> Caches:
    """Allocate the caches of a rollout.

    Args:
        spec: What was asked for.
        config: Of the transformer.
        dtype: Type of keys and values.
        device: Where they are.
        video_heads: Heads whose keys of the video are kept here; all by default.
    """
    batch, heads, head_dim = spec.network_batch, config.heads, config.head_dim
    return Caches(
        video=KVCache(
            layers=config.layers,
            batch=batch,
            slots=spec.slots,
            tokens_per_slot=spec.geometry.tokens_per_latent_frame,
            heads=video_heads or heads,
            head_dim=head_dim,
            dtype=dtype,
            device=device,
        ),
        text=CrossCache.allocate(
            (batch, config.text_len, heads, head_dim),
            layers=config.layers,
            dtype=dtype,
            device=device,
        ),
    )


def window_of(spec: RolloutSpec) -> SlotWindow:
    """The bookkeeping of a rollout's slots, at its start."""
    return SlotWindow(
        spec.slots,
        spec.window_latent_frames or spec.slots,
        spec.sink_latent_frames,
        evicts=spec.window_latent_frames is not None,
        reads_unwritten=not spec.first_frame_alone,
    )


@dataclass(slots=True)
class RolloutState:
    """Where a rollout stands. Counters are Python integers, so nothing waits for the device.

    Attributes:
        spec: What was asked for.
        window: Bookkeeping of the slots.
        cache: Keys and values of the video.
        cross_cache: Keys and values of the active prompt.
        device: Where the rollout runs.
        prompt: The active prompt.
        mixture: What ``cross_cache`` holds: the active prompt, or others with it while one blends
            into the next.
        blend: The blend under way, if any.
        recent: Clean latents of the window, block by block, which a recache replays.
        block_index: The block at hand.
        part_index: The part of it at hand; most blocks are one.
        step_index: The denoising step at hand.
        unstored: Clean latents of the block at hand, once it is over and if its clean keys are not
            stored, since a prompt is expected to replace them.
    """

    spec: RolloutSpec
    window: SlotWindow
    cache: KVCache
    cross_cache: CrossCache
    device: torch.device
    prompt: str = ""
    mixture: Mixture = ()
    blend: Blend | None = None
    recent: deque[Tensor] = field(default_factory=deque)
    block_index: int = 0
    part_index: int = 0
    step_index: int = 0
    unstored: Tensor | None = None
    _slot_ids: Tensor | None = None

    @classmethod
    def allocate(
        cls, spec: RolloutSpec, config: DiTConfig, dtype: torch.dtype, device: torch.device
    ) -> "RolloutState":
        """Allocate every buffer of a rollout."""
        return cls.start(spec, allocate_caches(spec, config, dtype, device), device)

    @classmethod
    def start(cls, spec: RolloutSpec, caches: Caches, device: torch.device) -> "RolloutState":
        """Begin a rollout in caches that no other one is using."""
        block = spec.geometry.block_latent_frames
        return cls(
            spec=spec,
            window=window_of(spec),
            cache=caches.video,
            cross_cache=caches.text,
            device=device,
            recent=deque(maxlen=-(-spec.slots // block)),
        )

    @property
    def block_start(self) -> int:
        """Absolute index of the block's first latent frame."""
        return self.block_index * self.spec.geometry.block_latent_frames

    @property
    def part(self) -> slice:
        """Which latent frames of the block at hand are denoised now."""
        sizes = self.spec.parts_of(self.block_index)
        start = sum(sizes[: self.part_index])
        return slice(start, start + sizes[self.part_index])

    @property
    def schedule(self) -> DenoisingSchedule:
        """Noise levels of the block at hand."""
        first = self.spec.first_schedule
        return self.spec.schedule if first is None or self.block_index else first

    @property
    def is_last_border(self) -> bool:
        """Whether the step at hand is the last but one; after it a block is kept."""
        return self.step_index == len(self.schedule.sigmas) - 2

    def plan_block(self) -> WindowPlan:
        """Place what is denoised now in the cache."""
        part = self.part
        # A sink that is wider than the first part gets clean keys from the second.
        return self.window.plan(
            self.block_start + part.start,
            part.stop - part.start,
            protects_sink=not self.spec.first_frame_alone,
        )

    def place_sink(self, plan: WindowPlan) -> None:
        """Have the sink where window-relative positions want it in a call that is about to come."""
        sink = self.spec.sink_latent_frames
        if self.spec.positions == "absolute" or not sink:
            return
        if any(slot < sink for slot in plan.write_slots):
            self.cache.note_sink(plan.sink_position)
        else:
            self.cache.turn_sink(sink, plan.sink_position)

    def step_inputs(self, plan: WindowPlan, sigma: float, *, keys_only: bool = False) -> StepInputs:
        """Put one call's numbers on the device, without waiting for it."""
        prefix = plan.read_prefix
        return StepInputs(
            timestep_BF=torch.full((1, 1), timestep_of(sigma), device=self.device),
            positions_F=torch.arange(plan.start, plan.start + plan.frames, device=self.device),
            write_slots_F=self.slots_on_device(plan.write_slots),
            read=self.slots_on_device(plan.read_slots) if prefix is None else prefix,
            dropped=plan.dropped,
            keys_only=keys_only,
            is_beside_decoding=keys_only or self._is_beside_decoding,
        )

    @property
    def _is_beside_decoding(self) -> bool:
        return self.block_index > 0 and self.step_index < self.spec.steps_beside_decoding

    def slots_on_device(self, slots: tuple[int, ...]) -> Tensor:
        """Slots as an int64 tensor, cut from a table on the device instead of copied to it."""
        if self._slot_ids is None:
            self._slot_ids = torch.arange(self.spec.slots, device=self.device)
        if not slots:
            return self._slot_ids[:0]
        breaks = [i for i, (a, b) in enumerate(pairwise(slots), 1) if b != a + 1]
        runs = [
            self._slot_ids[slots[start] : slots[end - 1] + 1]
            for start, end in pairwise((0, *breaks, len(slots)))
        ]
        return runs[0] if len(runs) == 1 else torch.cat(runs)


def without_dropped(plan: WindowPlan) -> WindowPlan:
    """The same plan for the stored latent frames alone."""
    return replace(
        plan,
        start=plan.start + plan.dropped,
        frames=plan.frames - plan.dropped,
        dropped=0,
    )
