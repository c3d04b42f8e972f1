"""FLOPs and bytes against the networks themselves, and against a table of the published size."""

from dataclasses import replace

import pytest
import torch
from nano import CONFIG, GEOMETRY, Rollout, nano_dit, spec
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from longlive.errors import UserError
from longlive.geometry import Geometry
from longlive.metrics.cost import (
    PassShape,
    Product,
    Work,
    context_update_shape,
    kv_cache_bytes,
    pass_shapes,
    pass_work,
    recache_shape,
    steps_work,
    text_keys_work,
)
from longlive.models.sizes import SIZES
from longlive.rollout.prompts import PromptTimeline

WAN = SIZES["wan-1.3b"]
VIDEO = Geometry(480, 832)


def steady(window: int) -> PassShape:
    return pass_shapes(VIDEO, window, 3)[-1]


def first_of(block: int) -> PassShape:
    return pass_shapes(replace(VIDEO, block_latent_frames=block), 12, min(3, block))[0]


def whole(window: int, *, unread: bool) -> PassShape:
    """A recache whose last layer is computed in full, as the official code does it."""
    return replace(recache_shape(VIDEO, window, 3, unread=unread), keys_only=False)


def tera(work: Work, *kinds: str) -> float:
    return sum(work.kinds[kind].flops for kind in kinds or work.kinds) / 1e12


LINEARS = (
    *("qkv", "attention output", "cross-attention q and output", "feed-forward"),
    "embeddings and head",
)


@pytest.mark.parametrize(
    ("shape", "linear", "own", "cross", "total"),
    [
        # 16.148, which was once rounded twice, to 16.2.
        pytest.param(steady(12), "11.7", "16.1", "0.44", "28.3", id="window 12"),
        pytest.param(steady(9), "11.7", "12.1", "0.44", "24.3", id="window 9"),
        pytest.param(first_of(3), "11.7", "4.0", "0.44", "16.2", id="first block"),
        pytest.param(first_of(1), "3.9", "0.45", "0.15", "4.5", id="one-latent first block"),
        pytest.param(whole(12, unread=True), "46.8", "64.6", "1.8", "113", id="recache"),
        pytest.param(whole(12, unread=False), "35.1", "48.4", "1.3", "84.9", id="recache, read"),
        pytest.param(whole(9, unread=False), "23.4", "24.2", "0.9", "48.5", id="recache, 9"),
    ],
)
def test_a_pass_of_the_published_size_takes_the_tflop_of_the_table(
    shape, linear, own, cross, total
):
    work = pass_work(WAN, shape, 2)

    def printed(like: str, value: float) -> str:
        return f"{value:.{len(like.partition('.')[2])}f}"

    assert printed(linear, tera(work, *LINEARS)) == linear
    assert printed(own, tera(work, "self-attention")) == own
    assert printed(cross, tera(work, "cross-attention")) == cross
    assert printed(total, tera(work)) == total


def test_the_kv_cache_of_the_published_size_is_as_large_as_in_the_table():
    assert f"{kv_cache_bytes(WAN, VIDEO, 12, 2) / 1e9:.2f}" == "3.45"


def flops_of_calls(prompts: PromptTimeline, **changes: object) -> list[tuple[int, int]]:
    """FLOPs in linears and in attention of every call of a rollout, as torch counts them."""
    calls = []

    def counting(denoiser):
        def call(x_BFCHW, inputs):
            # Only the plain kernel has a formula on the CPU.
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                out = denoiser(x_BFCHW, inputs)
            counts = counter.get_flop_counts()["Global"]
            batched = counts.get(torch.ops.aten.bmm, 0)
            calls.append((counter.get_total_flops() - batched, batched))
            return out

        return call

    Rollout(nano_dit(torch.float32), spec(**changes), prompts, wrap=counting).latents()
    return calls


@pytest.mark.parametrize("window", [4, 6, 7])
@pytest.mark.parametrize("changes", [{}, {"keeps_sink": False}, {"computes_unread": True}])
def test_every_call_of_a_rollout_takes_what_its_shape_says(window, changes):
    prompts = PromptTimeline.switching(["a", "b"], [12])
    calls = flops_of_calls(prompts, window_latent_frames=window, **changes)
    recache = recache_shape(
        GEOMETRY,
        window,
        2,
        keeps_sink=changes.get("keeps_sink", True),
        unread=changes.get("computes_unread", False),
    )
    steps = pass_shapes(GEOMETRY, window, 2)
    steps += [steps[-1]] * (8 - len(steps))
    blocks = [[step, step, context_update_shape(step)] for step in steps]
    blocks[6].insert(0, recache)
    if not changes.get("computes_unread"):
        # The recache writes what the context update before it would have.
        blocks[5].pop()
    expected = []
    for shape in sum(blocks, []):
        work = pass_work(CONFIG, shape, 4)
        attention = work.kinds["self-attention"].flops + work.kinds["cross-attention"].flops
        expected.append((work.flops - attention, attention))
    assert calls == expected


def operands_of(layers: list[nn.Linear], run) -> int:
    """Numbers in the inputs, outputs and weights of some linears."""
    counted = 0

    def count(layer, inputs, output):
        nonlocal counted
        weights = sum(weight.numel() for weight in layer.parameters())
        counted += inputs[0].numel() + output.numel() + weights

    hooks = [layer.register_forward_hook(count) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    return counted


@pytest.mark.parametrize("keys_only", [False, True])
def test_linears_move_their_weights_inputs_and_outputs_once(keys_only):
    dit, latent_frames = nano_dit(torch.float32), 2
    x_BFCHW = torch.zeros(1, latent_frames, 3, 4, 6)
    text = dit.text_keys_values(torch.zeros(1, 3, 10))

    class Attend:
        def __getitem__(self, layer):
            return self

        def __call__(self, q, k, v):
            return q

        def store(self, k, v):
            pass

    layers = [layer for layer in dit.modules() if isinstance(layer, nn.Linear)]
    moved = operands_of(
        layers, lambda: dit(x_BFCHW, torch.zeros(1, 1), text, Attend(), keys_only=keys_only)
    )
    rows = latent_frames * 2 * 3
    # The patch embedding is a convolution in the checkpoint, and its weight is called directly.
    embedding = dit.patch_embedding
    moved += rows * (12 + 32) + embedding.weight.numel() + embedding.bias.numel()
    # Queries, keys and values are counted as one product, which reads its input once.
    shared = 2 + 1 if keys_only else 2 + 2
    moved -= shared * rows * 32
    work = pass_work(CONFIG, PassShape(rows, rows, keys_only), 4)
    assert sum(work.kinds[kind].bytes for kind in LINEARS) == 4 * moved


def test_attention_moves_queries_keys_values_and_output_once_in_every_layer():
    work = pass_work(CONFIG, PassShape(24, 72), 2)
    assert work.kinds["self-attention"].bytes == 2 * 2 * (2 * 24 + 2 * 72) * 32
    assert work.kinds["cross-attention"].bytes == 2 * 2 * (2 * 24 + 2 * 5) * 32


def test_keys_of_a_prompt_take_what_torch_counts():
    dit = nano_dit(torch.float32)
    with FlopCounterMode(display=False) as counter:
        dit.text_keys_values(torch.zeros(1, 3, 10))
    work = text_keys_work(CONFIG, 4)
    assert work.flops == counter.get_total_flops()
    layers = [layer for layer in dit.modules() if isinstance(layer, nn.Linear)]
    moved = operands_of(layers, lambda: dit.text_keys_values(torch.zeros(1, 3, 10)))
    assert work.bytes == 4 * (moved - CONFIG.layers * 5 * 32)


def test_a_block_is_its_steps_and_a_context_update():
    step = PassShape(24, 72)
    expected = 3 * pass_work(CONFIG, step, 2) + pass_work(CONFIG, PassShape(24, 72, True), 2)
    assert steps_work(CONFIG, step, 3, 2) == expected
    assert steps_work(CONFIG, step, 3, 2).flops < 4 * pass_work(CONFIG, step, 2).flops
    with pytest.raises(UserError, match="at least one denoising step, got 0"):
        steps_work(CONFIG, step, 0, 2)


def test_attention_pairs_are_queries_times_keys():
    assert steady(12).pairs == 4680 * 18720


def test_a_window_that_is_not_whole_blocks_fills_up_with_a_shorter_step():
    keys = [shape.keys // 1560 for shape in pass_shapes(VIDEO, 10, 3)]
    assert keys == [3, 6, 9, 10]


def test_a_window_without_room_is_refused():
    for shapes in (pass_shapes, recache_shape):
        with pytest.raises(UserError, match="no room for a sink of 3 and a block of 3"):
            shapes(VIDEO, 5, 3)


def test_work_of_different_units_is_never_added_up_under_one_kind():
    gemm, conv = (Work({"a": Product(unit, 1, 1)}) for unit in ("gemm", "conv"))
    with pytest.raises(ValueError, match="different rates"):
        gemm + conv


def test_work_adds_kind_by_kind():
    first = Work({"a": Product("gemm", 1, 10), "b": Product("conv", 2, 20)})
    total = first + 2 * Work({"b": Product("conv", 3, 30), "c": Product("attention", 4, 40)})
    assert total.kinds == {
        "a": Product("gemm", 1, 10),
        "b": Product("conv", 8, 80),
        "c": Product("attention", 8, 80),
    }
    assert (total.flops, total.bytes) == (17, 170)
    assert first.kinds["b"] == Product("conv", 2, 20)
