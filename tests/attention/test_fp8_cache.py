"""A KV cache in FP8, in the place of a plain one."""

import pytest
import torch
from nano import CONFIG, CPU, Rollout, nano_dit, spec
from torch import Tensor

from longlive.attention.fp8_cache import Fp8Cache
from longlive.attention.kv_cache import KVCache
from longlive.errors import UserError
from longlive.rollout.denoiser import CausalDenoiser
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.snapshot import RolloutSnapshot, restore_snapshot, take_snapshot
from longlive.rollout.state import RolloutSpec, RolloutState
from longlive.rollout.transitions import SWITCH

P = 6
"""Tokens of a latent frame of the nano rollout."""
# Of the rollouts below, as measured, and half as much again.
DISTANCE = 0.05


def cache_of(slots: int = 5, batch: int = 2, layers: int = 2) -> Fp8Cache:
    return Fp8Cache((layers, batch, slots, P, 2, 8), CPU)


def numbers(frames: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, frames * P, 2, 8)


def slots(*given: int) -> Tensor:
    return torch.tensor(given, dtype=torch.int64)


def parts(cache: Fp8Cache) -> list[Tensor]:
    return [cache.k.float(), cache.v.float(), cache.shift.clone(), cache.scale.clone()]


def same(mine: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(map(torch.equal, mine, theirs))


class Rewinds:
    """Goes back once: after a block, to before another. Its decoder remembers nothing."""

    def __init__(self, after: int, before: int) -> None:
        self.after, self.before = after, before
        self.kept: dict[int, RolloutSnapshot] = {}

    def call(self, hook: str, state: RolloutState, *args: object) -> None:
        if hook == "on_rollout_start":
            state.block_index = -1
            self.kept[0] = take_snapshot(state, self)
        elif hook == "on_block_end":
            done = state.block_index
            self.kept[done + 1] = take_snapshot(state, self)
            if done == self.after:
                self.after = -1
                restore_snapshot(state, self, self.kept[self.before])

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        return latents_BFCHW

    def snapshot(self) -> None:
        return None

    def restore(self, state: None) -> None:
        return None


class OnePrompt:
    """A prompt, whichever way the blocks come."""

    prompt = "a"
    transition = SWITCH

    def expects(self, start: int) -> None:
        return None

    def advance(self, start: int) -> str | None:
        return None if start else "a"


def rollout_of(rollout_spec: RolloutSpec, **options: object) -> Rollout:
    """A rollout with an FP8 cache."""
    rollout = Rollout(nano_dit(torch.float32), rollout_spec, **options)
    cache = Fp8Cache(tuple(rollout.state.cache.k.shape), CPU)
    assert isinstance(rollout.denoiser, CausalDenoiser)
    rollout.state.cache = rollout.denoiser.cache = cache
    return rollout


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def test_it_takes_half_the_memory_and_a_whole_tile_at_the_end():
    shape = (2, 1, 5, 52, 2, 128)
    cache = Fp8Cache(shape, CPU)
    plain = KVCache(
        layers=2,
        batch=1,
        slots=5,
        tokens_per_slot=52,
        heads=2,
        head_dim=128,
        dtype=torch.bfloat16,
        device=CPU,
    )
    assert (cache.slots, cache.tokens_per_slot) == (plain.slots, plain.tokens_per_slot) == (5, 52)
    assert cache[0].tokens_per_slot == 52
    assert cache.k.shape == (2, 1, 2, 384, 128)
    assert cache.v.shape == (2, 1, 2, 128, 384)
    padded = 384 / (5 * 52)
    assert cache.k.nbytes == cache.v.nbytes == plain.k.nbytes / 2 * padded


def test_a_layer_reads_where_it_writes_and_does_not_touch_the_others():
    cache = cache_of()
    k, v, shift, scale, length, emulates = cache[1].update(numbers(2), numbers(2), slots(2, 0), 3)
    assert (length, emulates) == (3 * P, False)
    assert k.data_ptr() == cache.k[1].data_ptr()
    assert v.data_ptr() == cache.v[1].data_ptr()
    assert (shift.shape, scale.shape) == ((2, 2, 2, 8), (2, 2, 2))
    assert cache.k[0].float().count_nonzero() == cache.v[0].float().count_nonzero() == 0
    written = cache.k[1].float().abs().sum((0, 1, 3))[: 5 * P].unflatten(0, (5, P)) > 0
    assert written.all(1).tolist() == [True, False, True, False, False]


def test_what_is_kept_of_it_is_put_back():
    cache = cache_of()
    for layer in range(2):
        cache[layer].update(numbers(5), numbers(5), slots(0, 1, 2, 3, 4), 5)
    before, kept, rows = parts(cache), cache.snapshot(3), cache.rows(slots(3, 4))
    for layer in range(2):
        # All slots, and with them shift and scale.
        cache[layer].update(9 * numbers(5), numbers(5), slots(4, 3, 2, 1, 0), 5)
    assert not same(parts(cache), before)
    cache.restore(kept)
    assert torch.equal(cache.k.float()[..., : 3 * P, :], before[0][..., : 3 * P, :])
    assert not same(parts(cache), before)
    cache.put_rows(slots(3, 4), rows)
    assert same(parts(cache), before)


def test_a_cleared_cache_is_a_new_one():
    cache = cache_of()
    cache[0].update(numbers(5), numbers(5), slots(0, 1, 2, 3, 4), 5)
    cache.clear()
    assert same(parts(cache), parts(cache_of()))


def test_it_is_head_major_and_says_so_to_whoever_wants_another_layout():
    cache = cache_of()
    address = cache.k.data_ptr()
    cache.lay_out("head-major")
    assert cache.k.data_ptr() == address
    with pytest.raises(UserError, match="cannot be token-major"):
        cache.lay_out("token-major")


def test_slots_that_are_not_the_leading_ones_are_refused():
    with pytest.raises(UserError, match="leave cached_latent_frames out"):
        cache_of()[0].update(numbers(1), numbers(1), slots(0), slots(1, 2))


@pytest.mark.parametrize("changes", [{}, {"keeps_sink": False}, {"window_latent_frames": None}])
def test_a_rollout_over_it_is_near_the_plain_one_past_the_ring_and_a_prompt_switch(changes):
    prompts = PromptTimeline.switching(("a", "b"), [8])
    expected = Rollout(nano_dit(torch.float32), spec(**changes), prompts).latents()
    got = rollout_of(spec(**changes), prompts=prompts).latents()
    blocks = zip(got.split(2, 1), expected.split(2, 1), strict=True)
    errors = [distance(mine, theirs) for mine, theirs in blocks]
    assert 1e-4 < max(errors) < DISTANCE
    # The first block's keys gave the scales; the last one's are stored with them.
    assert errors[-1] < 4 * errors[0] + 0.01


def test_the_first_blocks_last_pass_is_what_shift_and_scale_are_kept_from():
    rollout = rollout_of(spec())
    stream, cache = rollout.stream(), rollout.state.cache
    assert isinstance(cache, Fp8Cache)
    seen = []
    with torch.no_grad():
        for _ in range(4):
            next(stream)
            seen.append((cache.shift.clone(), cache.scale.clone()))
    # The keys of a block are stored clean when the next one is asked for.
    assert not torch.equal(seen[0][0], seen[1][0])
    for later in seen[2:]:
        assert same(list(later), list(seen[1]))


@pytest.mark.parametrize(("after", "before"), [(1, 1), (2, 0), (6, 2), (7, 5)])
def test_what_follows_a_restored_snapshot_is_what_followed_it_before(after, before):
    straight = rollout_of(spec()).latents().split(2, 1)
    hooks = Rewinds(after, before)
    rewound = rollout_of(spec(), prompts=OnePrompt(), hooks=hooks).latents().split(2, 1)
    order = [*range(after + 1), *range(before, 8)]
    for index, latents in zip(order, rewound, strict=True):
        assert torch.equal(latents, straight[index])
    assert hooks.kept[1].nbytes < hooks.kept[3].nbytes


def test_the_nano_sizes_are_what_the_tests_say():
    assert CONFIG.head_dim * CONFIG.heads == CONFIG.width
    assert spec().geometry.tokens_per_latent_frame == P
