"""Norms, rotation and the write into the cache as one operation."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from in_interpreter import needs_triton, run_interpreted
from torch import Tensor

from longlive.attention.kv_cache import LayerCache
from longlive.attention.rope import Rotation, rotate, rotation
from longlive.kernels.rope_write import (
    norm_rotate,
    norm_rotate_write,
    plain_norm_rotate,
    plain_norm_rotate_write,
)
from longlive.models.layers import RMSNorm

EPS = 1e-6
# Of the sum of squares and the rotation in float32.
FLOAT32 = 1e-6


class Case(NamedTuple):
    """What the operation is told; ``slots`` are fewer than the latent frames if some are dropped.

    Three latent frames, six slots.
    """

    qkv: list[Tensor]
    weights: list[Tensor]
    rotation: Rotation
    k_cache: Tensor
    v_cache: Tensor
    slots: Tensor

    def to(self, device: str, dtype: torch.dtype) -> "Case":
        """A copy; the rotation is float32 at least."""
        wide = torch.promote_types(dtype, torch.float32)
        return Case(
            [x.to(device, dtype) for x in self.qkv],
            [x.to(device, dtype) for x in self.weights],
            Rotation(*(x.to(device, wide) for x in self.rotation)),
            self.k_cache.to(device, dtype, copy=True),
            self.v_cache.to(device, dtype, copy=True),
            self.slots.to(device),
        )

    def stacked(self) -> "Case":
        """The same with queries, keys and values as views of one tensor."""
        return self._replace(qkv=list(torch.cat(self.qkv, -1).chunk(3, -1)))

    def head_major(self) -> "Case":
        """The same with the tokens of a head beside each other in the caches."""
        caches = (
            cache.permute(0, 3, 1, 2, 4).contiguous().permute(0, 2, 3, 1, 4)
            for cache in (self.k_cache, self.v_cache)
        )
        k_cache, v_cache = caches
        return self._replace(k_cache=k_cache, v_cache=v_cache)

    def run(self, operation: Callable[..., Tensor]) -> list[Tensor]:
        """Queries and both caches after the call."""
        caches = self.k_cache, self.v_cache
        given = self.qkv, self.weights, list(self.rotation), *caches, self.slots
        return [operation(*given, EPS), *caches]


def case(
    slots: tuple[int, ...] = (4, 0, 2),
    batch: int = 2,
    grid: tuple[int, int] = (2, 3),
    heads: int = 3,
    head_dim: int = 8,
) -> Case:
    """Numbers that any type can hold, in float64."""
    width, tokens = heads * head_dim, grid[0] * grid[1]
    shape = (batch, 6, tokens, heads, head_dim)
    made = Case(
        # Uneven rows, so that a norm over the wrong ones is seen.
        [torch.randn(batch, 3 * tokens, width) * torch.rand(3 * tokens, 1) for _ in range(3)],
        [1 + torch.randn(width) / 2 for _ in range(2)],
        rotation(torch.tensor([5, 6, 7]), *grid, head_dim, torch.float64),
        torch.randn(shape),
        torch.randn(shape),
        torch.tensor(slots, dtype=torch.int64),
    )
    return made.to("cpu", torch.bfloat16).to("cpu", torch.float64)._replace(rotation=made.rotation)


def by_the_model(given: Case) -> list[Tensor]:
    """What the parts of the model make of it, one after the other."""
    heads, tokens = given.k_cache.shape[3], given.k_cache.shape[2]
    normed = []
    for x, weight in zip(given.qkv[:2], given.weights, strict=True):
        norm = RMSNorm(len(weight), EPS).to(x)
        norm.weight.data = weight
        normed.append(norm(x).unflatten(-1, (heads, -1)).detach())
    q, k = (rotate(x, given.rotation) for x in normed)
    first = (3 - len(given.slots)) * tokens
    v = given.qkv[2].unflatten(-1, (heads, -1))
    LayerCache(given.k_cache, given.v_cache).update(k[:, first:], v[:, first:], given.slots, 6)
    return [q, given.k_cache, given.v_cache]


cases = pytest.mark.parametrize(
    "changes",
    [{}, {"slots": (5, 1)}, {"slots": ()}, {"batch": 1}],
    ids=str,
)
# What is turned by float64 angles is plain operations everywhere.
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@cases
@dtypes
@pytest.mark.parametrize("operation", [plain_norm_rotate_write, norm_rotate_write])
def test_it_is_what_the_parts_of_the_model_do_one_after_the_other(operation, changes, dtype):
    given = case(**changes)
    expected = by_the_model(given.to("cpu", dtype))
    for made in (given.to("cpu", dtype), given.to("cpu", dtype).stacked()):
        for got, wanted in zip(made.run(operation), expected, strict=True):
            # The model multiplies complex numbers, which may round a sum once instead of twice.
            rounding = 1e-6 if dtype == torch.float32 else 2.0**-7
            torch.testing.assert_close(got, wanted, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("operation", [plain_norm_rotate, norm_rotate])
@pytest.mark.parametrize("stored", [18, 6, 0])
def test_without_a_cache_the_last_keys_are_returned(operation, stored):
    given = case().to("cpu", torch.float32)
    expected = by_the_model(given.to("cpu", torch.float32))
    of_call = given.qkv[:2], given.weights, list(given.rotation), 3, stored, EPS
    q, k = operation(*of_call)
    torch.testing.assert_close(q, expected[0])
    written = expected[1][:, list(given.slots)].flatten(1, 2)
    torch.testing.assert_close(k, written[:, 18 - stored :])


def test_slots_that_are_not_named_keep_what_they_hold():
    given = case(slots=(5, 1))
    before = given.to("cpu", torch.float64)
    given.run(norm_rotate_write)
    for cache, old in ((given.k_cache, before.k_cache), (given.v_cache, before.v_cache)):
        changed = (cache != old).flatten(2).any(-1).any(0)
        assert changed.nonzero().flatten().tolist() == [1, 5]


def test_the_operation_is_registered_as_torch_asks():
    given = case().to("cpu", torch.float32).stacked()
    inputs = given.qkv, given.weights, list(given.rotation), given.k_cache, given.v_cache
    torch.library.opcheck(torch.ops.longlive.norm_rotate_write.default, (*inputs, given.slots, EPS))
    apart = given.qkv[:2], given.weights, list(given.rotation), 3, 6, EPS
    torch.library.opcheck(torch.ops.longlive.norm_rotate.default, apart)


# The kernel, by Triton's interpreter; a process of its own, since Triton is told when it is loaded.


def check_interpreted() -> None:
    """Run in that process."""
    from longlive.kernels.rope_write_triton import triton_norm_rotate, triton_norm_rotate_write

    # The interpreter rounds half floats as a GPU does, and has no bfloat16 of its own.
    for dtype, bound in ((torch.float32, FLOAT32), (torch.float16, 2e-4)):
        for changes in ({}, {"slots": (5, 1)}, {"slots": ()}):
            given = case(grid=(1, 2), **changes)
            expected = given.to("cpu", dtype).run(plain_norm_rotate_write)
            ways = (given.to("cpu", dtype) for _ in range(3))
            for made in (next(ways), next(ways).stacked(), next(ways).stacked().head_major()):
                got = made.run(triton_norm_rotate_write)
                pairs = zip(got, expected, strict=True)
                assert all(distance(*pair) < bound for pair in pairs)
                assert torch.equal(got[2], expected[2])
        for stored in (6, 2, 0):
            made = case(grid=(1, 2)).to("cpu", dtype).stacked()
            of_call = made.qkv[:2], made.weights, list(made.rotation), 3, stored, EPS
            pairs = zip(triton_norm_rotate(*of_call), plain_norm_rotate(*of_call), strict=True)
            assert all(x.shape == y.shape and distance(x, y) < bound for x, y in pairs)


def distance(got: Tensor, expected: Tensor) -> float:
    norm = float(expected.double().norm())
    return float((got.double() - expected.double()).norm()) / (norm or 1)


@needs_triton
def test_the_kernel_computes_what_the_plain_operations_do():
    run_interpreted("test_rope_write")


# On a GPU.


@pytest.mark.gpu
@cases
@dtypes
@pytest.mark.parametrize("way", ["apart", "stacked", "head-major"])
def test_on_a_gpu_it_is_as_near_to_float64_as_the_plain_operations(changes, dtype, way):
    given = case(**{"grid": (30, 52), "heads": 12, "head_dim": 128, "batch": 1, **changes})
    exact = given.to("cuda", torch.float64).run(plain_norm_rotate_write)
    plain = given.to("cuda", dtype).run(plain_norm_rotate_write)
    made = given.to("cuda", dtype)
    made = made if way == "apart" else made.stacked()
    got = (made.head_major() if way == "head-major" else made).run(norm_rotate_write)
    for mine, theirs, wanted in zip(got, plain, exact, strict=True):
        assert mine.shape == theirs.shape
        assert distance(mine, wanted) <= 1.02 * distance(theirs, wanted) + FLOAT32
    assert torch.equal(got[2], plain[2])


@pytest.mark.gpu
def test_on_a_gpu_it_makes_nobody_wait_and_can_be_captured():
    given = case(grid=(30, 52), heads=12, head_dim=128, batch=1).to("cuda", torch.bfloat16)
    expected = given.to("cuda", torch.bfloat16).run(norm_rotate_write)
    captured = given.to("cuda", torch.bfloat16)
    captured.run(norm_rotate_write)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        q_BLND, k_cache, v_cache = captured.run(norm_rotate_write)
    k_cache.copy_(given.k_cache)
    v_cache.copy_(given.v_cache)
    graph.replay()
    for got, wanted in zip((q_BLND, k_cache, v_cache), expected, strict=True):
        assert torch.equal(got, wanted)
