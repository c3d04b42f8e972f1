"""Kernels that compiled code calls as one operation."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from longlive.attention.backends import sdpa_attention
from longlive.attention.backends.opaque import opaque


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def qkv(**options: bool) -> list[Tensor]:
    return [torch.randn(2, tokens, 3, 8, **options) for tokens in (5, 7, 7)]


def operations(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def traced(gradients: bool) -> tuple[list[str], Tensor, Tensor]:
    """The operations of compiled attention, its result and the eager one."""
    seen: list[str] = []

    def backend(graph, inputs):
        seen.extend(operations(graph))
        return graph.forward

    inputs = qkv(requires_grad=gradients)
    with torch.set_grad_enabled(gradients):
        compiled = torch.compile(sdpa_attention, backend=backend, fullgraph=True)(*inputs)
        return seen, compiled, sdpa_attention(*inputs)


def test_without_gradients_compiled_code_does_not_look_into_the_kernel():
    seen, compiled, eager = traced(gradients=False)
    assert [name.removesuffix(".default") for name in seen] == ["longlive.attention"]
    assert torch.equal(compiled, eager)


def test_with_gradients_compiled_code_traces_the_kernel():
    seen, compiled, eager = traced(gradients=True)
    assert not any("longlive" in name for name in seen)
    assert compiled.requires_grad
    torch.testing.assert_close(compiled, eager)


def test_a_kernel_in_another_language_does_not_cut_compiled_code():
    def foreign(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.from_numpy(q.numpy() + k.numpy().sum())

    kernel = opaque("foreign", foreign)
    inputs = qkv()
    with torch.no_grad():
        compiled = torch.compile(lambda *x: kernel(*x) * 2, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(*inputs), foreign(*inputs) * 2)


def test_the_same_name_is_the_same_function_with_the_newest_kernel():
    first = opaque("twice", lambda q, k, v: q)
    assert opaque("twice", lambda q, k, v: q + 1) is first
    assert torch.equal(first(*[torch.zeros(1, 1, 1, 1)] * 3), torch.ones(1, 1, 1, 1))


def test_the_operation_is_registered_as_torch_asks():
    with torch.no_grad():
        torch.library.opcheck(torch.ops.longlive.attention.default, (*qkv(), "sdpa"))
