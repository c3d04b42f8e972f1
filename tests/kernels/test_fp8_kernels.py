"""Keys and values that are rounded to FP8 as they are stored, and attention over them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fp8_cases import Cache, cache_of, distance, exact, filled, numbers, slots
from in_interpreter import needs_triton, run_interpreted
from torch import Tensor

from longlive.kernels.fp8_attention import fp8_attention, plain_fp8_attention
from longlive.kernels.fp8_write import fp8_write, plain_fp8_write, value_places

# e4m3 has 3 bits behind the first: half a step is 2**-4 of a number.
HALF_STEP = 2.0**-4
# Of attention over random normal numbers, as measured, and a fifth more.
NORMAL_ERROR = 0.066
# Products of rounded numbers in another order of sums. A weight that lies between two numbers of
# e4m3 may then be rounded to the other one.
ORDER = 1e-3


# What is stored.


def test_a_number_is_stored_within_half_a_step_once_its_channels_mean_is_taken_off():
    cache, new = filled()
    for got, wanted, scale in zip(cache.restored(100), new, cache.scale, strict=True):
        shifted = (wanted - wanted.mean(1, keepdim=True)).abs()
        # A step of the smallest normal number is one for all that are smaller.
        least = scale[:, None, :, None].double() * 2.0**-6
        allowed = HALF_STEP * torch.maximum(shifted.double(), least) + 1e-5
        assert ((got - wanted).abs() <= allowed).all()


def test_keys_lie_token_by_token_and_values_channel_by_channel():
    cache, new = filled()
    k, v = cache.restored(100)
    key = cache.k[0, 1, 37].double() * cache.scale[0, 0, 1] + cache.shift[0, 0, 1]
    assert torch.equal(k[0, 37, 1], key)
    # Token 37 is number 5 of its sixteen, the second of pair 2, which lies fifth.
    value = cache.v[0, 1, :, 32 + 9].double() * cache.scale[1, 0, 1] + cache.shift[1, 0, 1]
    assert torch.equal(v[0, 37, 1], value)
    assert distance(k, new[0]) < HALF_STEP
    assert distance(v, new[1]) < HALF_STEP


def test_values_of_sixteen_tokens_lie_pair_by_pair_in_the_order_of_the_tensor_cores():
    order = value_places(torch.arange(48))
    assert sorted(order.tolist()) == list(range(48))
    assert order[:16].tolist() == [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15]
    assert torch.equal(order[16:32], order[:16] + 16)


def test_slots_are_written_where_they_lie_and_the_others_keep_what_they_hold():
    cache, new = filled()
    before = cache.restored(100)
    later = numbers(40)
    plain_fp8_write(later, *cache, slots(4, 1), 5)
    for got, old, given in zip(cache.restored(100), before, later, strict=True):
        frames, olds = got.split(20, 1), old.split(20, 1)
        for slot in (0, 2, 3):
            assert torch.equal(frames[slot], olds[slot])
        first, second = given.split(20, 1)
        assert distance(frames[4], first) < 2 * HALF_STEP
        assert distance(frames[1], second) < 2 * HALF_STEP


@pytest.mark.parametrize(("seen", "is_found"), [(2, True), (5, False)])
def test_shift_and_scale_are_found_by_a_call_that_sees_only_what_it_stores(seen, is_found):
    cache, _ = filled()
    before = cache.shift.clone(), cache.scale.clone()
    new = [9 * x for x in numbers(40)]
    plain_fp8_write(new, *cache, slots(0, 1), seen)
    assert torch.equal(cache.shift, before[0]) != is_found
    assert torch.equal(cache.scale, before[1]) != is_found
    if is_found:
        torch.testing.assert_close(cache.shift[0], new[0].mean(1))


def test_a_call_that_stores_nothing_changes_nothing():
    cache, _ = filled()
    before = [part.clone() for part in cache]
    plain_fp8_write(numbers(0), *cache, slots(), 5)
    plain_fp8_write(numbers(0), *cache, slots(), 0)
    assert all(
        torch.equal(mine.view(torch.uint8), old.view(torch.uint8))
        for mine, old in zip(cache, before, strict=True)
    )


def test_what_grows_beyond_the_range_is_stored_as_the_largest_and_stays_a_number():
    cache, _ = filled()
    plain_fp8_write([1000 * x for x in numbers(20)], *cache, slots(2), 5)
    assert cache.k.float().isfinite().all()
    assert cache.k.float().abs().max() == 448


def test_zeros_are_found_a_scale_for_and_stay_zeros():
    cache = cache_of()
    zeros = [torch.zeros_like(x) for x in numbers(20)]
    plain_fp8_write(zeros, *cache, slots(0), 1)
    assert (cache.scale > 0).all()
    assert all((part == 0).all() for part in cache.restored(20))
    out = plain_fp8_attention(torch.zeros(2, 5, 3, 32), *cache, 20)
    assert (out == 0).all()


# What is gathered.


@pytest.mark.parametrize("length", [100, 60, 7])
def test_attention_is_that_over_the_stored_numbers_but_for_queries_and_weights(length):
    cache, _ = filled()
    q = torch.randn(2, 70, 3, 32)
    expected = exact(q, *cache.restored(length))
    assert distance(plain_fp8_attention(q, *cache, length), expected) < 0.03


def test_the_error_over_random_numbers_is_that_of_three_roundings():
    new, cache = [torch.randn(1, 1024, 4, 128) for _ in range(2)], cache_of(1024, 1, 4, 128)
    plain_fp8_write(new, *cache, slots(0), 1)
    q = torch.randn(1, 256, 4, 128)
    error = distance(plain_fp8_attention(q, *cache, 1024), exact(q, *new))
    assert NORMAL_ERROR / 3 < error < NORMAL_ERROR


def test_a_mean_of_keys_or_values_costs_nothing():
    q = torch.randn(2, 70, 3, 32)
    errors = []
    for size in (0, 20):
        torch.manual_seed(0)
        new, cache = [torch.randn(2, 100, 3, 32) for _ in range(2)], cache_of()
        new = [x + size * torch.randn(2, 1, 3, 32) for x in new]
        plain_fp8_write(new, *cache, slots(*range(5)), 5)
        errors.append(plain_fp8_attention(q, *cache, 100).double() - exact(q, *new))
    assert errors[1].norm() < 1.2 * errors[0].norm()


def test_shifting_all_keys_alike_changes_nothing():
    k, v = numbers(100)
    q, outs = torch.randn(2, 70, 3, 32), []
    # A power of two moves no number of either to another place.
    for shift in (0.0, 64.0):
        cache = cache_of()
        plain_fp8_write([k.double() + shift, v], *cache, slots(*range(5)), 5)
        outs.append(plain_fp8_attention(q, *cache, 100))
    assert distance(outs[1], outs[0]) < ORDER


@pytest.mark.parametrize("size", [1e-20, 1e-4, 1e4])
def test_the_size_of_one_query_is_no_matter_to_the_others(size):
    cache, _ = filled()
    q = torch.randn(2, 70, 3, 32)
    q[:, 1] *= size
    out = plain_fp8_attention(q, *cache, 100)
    assert distance(out[:, 2:], plain_fp8_attention(q[:, 2:], *cache, 100)) < ORDER
    assert out[:, 1].isfinite().all()
    if size < 1:
        assert distance(out[:, 1], exact(q, *cache.restored(100))[:, 1]) < 0.03


def test_the_type_of_the_queries_is_that_of_the_result():
    cache, _ = filled()
    for dtype in (torch.float32, torch.bfloat16):
        q = torch.randn(2, 5, 3, 32, dtype=dtype)
        out = fp8_attention(q, *cache, 100, False)
        assert (out.dtype, out.shape) == (dtype, q.shape)
        assert torch.equal(out, fp8_attention(q, *cache, 100, True))


def test_the_operations_are_registered_as_torch_asks():
    cache, _ = filled()
    # The other checks of torch ask e4m3 for sums and products, which it does not have.
    read = (torch.randn(2, 5, 3, 32), *cache, 100, False)
    written = (numbers(20), *cache, slots(1), 5, False)
    for operation, given in (("fp8_attention", read), ("fp8_write", written)):
        checked = getattr(torch.ops.longlive, operation).default
        torch.library.opcheck(checked, given, test_utils="test_faketensor")


# The kernels, by Triton's interpreter; a process of its own, since Triton is told when it is
# loaded.


def check_interpreted() -> None:
    """Run in that process."""
    import interpreted  # noqa: F401 - it mends the interpreter.

    from longlive.kernels.fp8_attention_triton import Tile, division_of, triton_fp8_attention
    from longlive.kernels.fp8_write_triton import triton_fp8_write

    torch.manual_seed(0)
    first, later = numbers(60), numbers(40)
    caches = {plain_fp8_write: cache_of(), triton_fp8_write: cache_of()}
    for write, cache in caches.items():
        write(first, *cache, slots(0, 1, 2), 3)
    of_plain, of_made = caches.values()
    for name in ("shift", "scale"):
        # A mean is summed in another order.
        torch.testing.assert_close(getattr(of_made, name), getattr(of_plain, name))
        getattr(of_made, name).copy_(getattr(of_plain, name))
    for write, cache in caches.items():
        write(first, *cache, slots(0, 1, 2), 5)
        write([100 * x for x in later], *cache, slots(4, 1), 5)
        write([x[:, :0] for x in later], *cache, slots(), 5)
    plain, made = caches.values()
    for mine, theirs in zip(made, plain, strict=True):
        assert torch.equal(mine.float(), theirs.float())
    # Frames of more than a tile, which begin in the middle of sixteen tokens.
    new = [x[:, 1:] for x in numbers(3 * 200 + 1)]
    large = [cache_of(1024), cache_of(1024)]
    for write, cache in zip(caches, large, strict=True):
        write(new, *cache, slots(3, 0, 4), 5)
    for mine, theirs in zip(*large, strict=True):
        assert torch.equal(mine.float(), theirs.float())
    # A last wave without room for two parts, one that is full, one with room for two of up to four.
    assert division_of(250, 132, 4) == (250, 0, 1)
    assert division_of(264, 132, 4) == (264, 0, 1)
    assert division_of(888, 264, 4) == (792, 96, 2)
    # Strided, as the product of projections is.
    q = torch.randn(2, 70, 3, 96)[..., 32:64]
    tiles = Tile(64, 32, 4, 2), Tile(32, 64, 4, 2, wide_sums=False), Tile(32, 32, 4, 2, parts=3)
    for tile in tiles:
        for length in (128, 100, 64, 7):
            expected = plain_fp8_attention(q, *plain, length)
            # Of the last one 18 programs: a wave, and four of which each is in three parts, or in
            # fewer where there are not enough keys.
            got = triton_fp8_attention(q, *plain, length, tile, wave=14)
            assert distance(got, expected) < 1e-4, (tile, length)


@needs_triton
def test_the_kernels_compute_what_the_plain_operations_do():
    run_interpreted("test_fp8_kernels")


# On a GPU.


def on_a_gpu(frames: int = 9, tokens: int = 1560) -> tuple[Cache, list[Tensor], Tensor]:
    """A cache of the full size, what it should hold, and queries of a block."""
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs FP8")
    length = frames * tokens
    room = -(-length // 128) * 128
    shape = (1, length, 12, 128)
    new = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    cache = cache_of(room, 1, 12, 128, "cuda")
    q = torch.randn(1, 3 * tokens, 12, 128, device="cuda", dtype=torch.bfloat16)
    return cache, new, q


def in_heads(attention: Callable[..., Tensor], q: Tensor, *cache: Any) -> Tensor:
    """Attention head by head: all scores of the full size at once do not fit."""
    k, v, shift, scale, length = cache
    parts = []
    for head in range(q.shape[2]):
        own = slice(head, head + 1)
        of_head = k[:, own], v[:, own], shift[:, :, own], scale[:, :, own]
        parts.append(attention(q[:, :, own], *of_head, length))
    return torch.cat(parts, 2)


@pytest.mark.gpu
def test_on_a_gpu_keys_and_values_are_rounded_as_plainly():
    cache, new, _ = on_a_gpu()
    plain = Cache(*(part.clone() for part in cache))
    all_slots = torch.arange(9, device="cuda")
    fp8_write(new, *cache, all_slots, 9, False)
    fp8_write(new, *plain, all_slots, 9, True)
    part = [x[:, : 2 * 1560] for x in new[::-1]]
    for made, emulates in ((cache, False), (plain, True)):
        fp8_write(part, *made, all_slots[[7, 2]], 9, emulates)
    for name in ("shift", "scale"):
        # Sums of 14040 numbers of bfloat16, in another order.
        torch.testing.assert_close(getattr(cache, name), getattr(plain, name), rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(cache[:2], plain[:2], strict=True):
        differ = (mine.float() != theirs.float()).float().mean()
        # What is rounded otherwise may move a number by a step.
        assert differ < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("frames", [3, 9, 12])
def test_on_a_gpu_every_tile_gathers_what_the_plain_operation_does(frames):
    from longlive.kernels.fp8_attention_triton import TILES, triton_fp8_attention

    cache, new, q = on_a_gpu(frames)
    fp8_write(new, *cache, torch.arange(frames, device="cuda"), frames, False)
    length = frames * 1560
    expected = in_heads(plain_fp8_attention, q, *cache, length)
    stored = in_heads(lambda q, *c: exact(q, *Cache(*c[:4]).restored(c[4])), q, *cache, length)
    error = distance(expected, stored)
    for tile in TILES:
        got = triton_fp8_attention(q, *cache, length, tile)
        assert distance(got, stored) < 1.3 * error, tile
        # Sums of some 14 bits move scores, and with them weights to the next number of e4m3.
        assert distance(got, expected) < (0.02 if tile.wide_sums else 0.05), tile


@pytest.mark.gpu
def test_on_a_gpu_they_make_nobody_wait_and_can_be_captured():
    cache, new, q = on_a_gpu(3)
    all_slots = torch.arange(3, device="cuda")

    def call() -> Tensor:
        fp8_write(new, *cache, all_slots, 3, False)
        return fp8_attention(q, *cache, 3 * 1560, False)

    expected = call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    cache.k.view(torch.uint8).zero_()
    cache.v.view(torch.uint8).zero_()
    cache.scale.fill_(1)
    graph.replay()
    assert torch.equal(got, expected)
