"""A rollout frozen between two blocks, and put back in place.

Everything that the next block depends on is kept: the keys and values of video and prompt, the
clean latents that a recache replays, what the decoder remembers, and the block index, which is the
position in the noise. Buffers are restored where they lie, so compiled and captured calls go on.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from longlive.attention.kv_cache import Sink
from longlive.rollout.decode import StreamingDecoder
from longlive.rollout.state import RolloutState
from longlive.rollout.transitions import Blend, Mixture

BEFORE_THE_FIRST = -1
"""Block index of a snapshot from before block 0."""


@runtime_checkable
class RewindableDecoder(StreamingDecoder, Protocol):
    """A decoder whose memory can be kept and put back.

    ``restore`` must leave what it is given as it is: the same snapshot may be restored again.
    """

    def snapshot(self) -> Any:
        """What the decoder remembers; later calls of ``decode`` leave it as it is."""
        ...

    def restore(self, state: Any) -> None:
        """Go on from where ``snapshot`` was called."""
        ...


@dataclass(frozen=True, slots=True)
class RolloutSnapshot:
    """What a rollout knows after a block.

    Attributes:
        block_index: The block it was taken after.
        prompt: The active prompt.
        mixture: What the cross-attention sees.
        blend: The blend under way, if any.
        window: ``origin``, ``end``, ``filled`` and ``head`` of the slot window.
        recent: Clean latents of the window; shared, since nobody changes them.
        unstored: Those of the block, if its clean keys are not stored; shared.
        keys_values: Copies of the slots in use, and where the sink is.
        text: Copies of the prompt's keys and values.
        decoder: What the decoder remembers.
    """

    block_index: int
    prompt: str
    mixture: Mixture
    blend: Blend | None
    window: tuple[int, int, int, int]
    recent: tuple[Tensor, ...]
    unstored: Tensor | None
    keys_values: tuple[Any, ...]
    text: list[tuple[Tensor, Tensor]]
    decoder: Any

    @property
    def nbytes(self) -> int:
        """Memory that it alone holds; the latents are counted as if it alone did."""
        held = (self.keys_values, self.text, self.recent, self.decoder)
        return sum(tensor.nbytes for tensor in _tensors(held))


def take_snapshot(state: RolloutState, decoder: RewindableDecoder) -> RolloutSnapshot:
    """Freeze a rollout between two blocks: in ``on_block_end``, or before the first."""
    return RolloutSnapshot(
        block_index=state.block_index,
        prompt=state.prompt,
        mixture=state.mixture,
        blend=state.blend,
        window=state.window.mark,
        recent=tuple(state.recent),
        unstored=state.unstored,
        # A window that is not full fills a prefix of the slots.
        keys_values=state.cache.snapshot(state.window.filled),
        text=state.cross_cache.snapshot(),
        decoder=decoder.snapshot(),
    )


def restore_snapshot(
    state: RolloutState, decoder: RewindableDecoder, snapshot: RolloutSnapshot
) -> None:
    """Put a snapshot of the same rollout back, in ``on_block_end``."""
    state.block_index = snapshot.block_index
    state.prompt = snapshot.prompt
    state.mixture = snapshot.mixture
    state.blend = snapshot.blend
    state.window.go_to(snapshot.window)
    state.part_index = len(state.spec.parts_of(state.block_index)) - 1
    state.unstored = snapshot.unstored
    state.recent.clear()
    state.recent.extend(snapshot.recent)
    state.cache.restore(snapshot.keys_values)
    if snapshot.text:
        state.cross_cache.store(snapshot.text)
    decoder.restore(snapshot.decoder)


def _tensors(held: Any) -> list[Tensor]:
    if isinstance(held, Sink):
        # Its keys are of the cache, and of all snapshots.
        return []
    if isinstance(held, Tensor):
        return [held]
    if isinstance(held, (tuple, list)):
        return [tensor for part in held for tensor in _tensors(part)]
    return []
