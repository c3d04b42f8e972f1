"""Slots that are written in place and read where they lie."""

import pytest
import torch
from nano import CONFIG, Rollout, nano_dit, noise_of, spec, text_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longlive.attention.backends import sdpa_attention
from longlive.attention.core import LayerWindow, WindowAttention
from longlive.attention.cross_cache import CrossCache
from longlive.attention.kv_cache import KVCache, KVLayout
from longlive.models.dit import DiT
from longlive.rollout.denoiser import CausalDenoiser
from longlive.rollout.state import RolloutState, StepInputs

P = 3
"""Tokens of a latent frame."""


def cache_of(
    slots: int = 4, batch: int = 2, layers: int = 2, layout: KVLayout = "token-major"
) -> KVCache:
    cache = KVCache(
        layers=layers,
        batch=batch,
        slots=slots,
        tokens_per_slot=P,
        heads=2,
        head_dim=4,
        dtype=torch.float64,
        device=torch.device("cpu"),
    )
    cache.lay_out(layout)
    return cache


layouts = pytest.mark.parametrize("layout", ["token-major", "head-major"])


def keys(frames: int, batch: int = 2, **options: bool) -> Tensor:
    return torch.randn(batch, frames * P, 2, 4, dtype=torch.float64, **options)


def slots(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


@layouts
@pytest.mark.parametrize("batch", [1, 2])
def test_reading_leading_slots_copies_nothing(batch, layout):
    cache = cache_of(batch=batch, layout=layout)
    k, v = cache[1].update(keys(2, batch), keys(2, batch), slots(1, 2), 3)
    assert k.shape == v.shape == (batch, 3 * P, 2, 4)
    assert k.data_ptr() == cache.k[1].data_ptr()
    assert v.data_ptr() == cache.v[1].data_ptr()


@layouts
def test_what_is_written_is_what_is_read_in_the_order_of_the_slots(layout):
    cache = cache_of(layout=layout)
    old, new, values = keys(1), keys(2), keys(2)
    cache[0].update(old, old, slots(1), 4)
    k, v = cache[0].update(new, values, slots(2, 0), 3)
    first, second = new.split(P, 1)
    assert torch.equal(k, torch.cat([second, old, first], 1))
    assert torch.equal(v[:, :P], values[:, P:])


@layouts
def test_a_layout_says_what_lies_together(layout):
    cache = cache_of(layout=layout)
    order = (0, 3, 1, 2, 4) if layout == "head-major" else (0, 1, 2, 3, 4)
    for buffer in (cache[0].k, cache[1].v):
        assert buffer.permute(order).is_contiguous()
        assert buffer.shape == (2, 4, P, 2, 4)
    assert cache.snapshot(2)[0].shape == (2, 2, 2, P, 2, 4)


def test_named_slots_are_read_in_their_order():
    cache = cache_of()
    k_new = keys(4)
    k, _ = cache[0].update(k_new, k_new, slots(0, 1, 2, 3), slots(3, 0))
    frames = k_new.split(P, 1)
    assert torch.equal(k, torch.cat([frames[3], frames[0]], 1))


def test_a_layer_does_not_touch_the_others():
    cache = cache_of()
    cache[1].update(keys(4), keys(4), slots(0, 1, 2, 3), 4)
    assert cache.k[0].count_nonzero() == cache.v[0].count_nonzero() == 0
    assert cache.k[1].count_nonzero() == cache.k[1].numel()


def test_writing_no_latent_frames_reads_all_the_same():
    cache = cache_of()
    k_old = keys(2)
    cache[0].update(k_old, k_old, slots(0, 1), 2)
    k, _ = cache[0].update(keys(0), keys(0), slots().long(), 2)
    assert torch.equal(k, k_old)


@pytest.mark.parametrize("read", [3, slots(2, 1)])
def test_gradients_reach_the_new_keys_and_the_stored_ones_are_plain_values(read):
    cache = cache_of()
    k_new, v_new = keys(2, requires_grad=True), keys(2, requires_grad=True)
    k, v = cache[0].update(k_new, v_new, slots(1, 2), read)
    assert k.data_ptr() != cache.k[0].data_ptr()
    (k.sum() + 2 * v.sum()).backward()
    assert torch.equal(k_new.grad, torch.ones_like(k_new))
    assert torch.equal(v_new.grad, torch.full_like(v_new, 2))
    assert not cache.k.requires_grad
    assert torch.equal(cache.k[0][:, 1:3].flatten(1, 2), k_new.detach())
    assert torch.equal(cache.v[0][:, 1:3].flatten(1, 2), v_new.detach())


def test_gradients_end_at_the_call_that_computed_the_keys():
    cache = cache_of()
    first, second = keys(1, requires_grad=True), keys(1, requires_grad=True)
    k_first, _ = cache[0].update(first, first, slots(0), 1)
    k_second, _ = cache[0].update(second, second, slots(1), 2)
    (k_first.square().sum() + k_second.square().sum()).backward()
    assert torch.equal(second.grad, 2 * second)
    assert torch.equal(first.grad, 2 * first)  # once, from its own call


def test_later_writes_do_not_spoil_what_an_earlier_call_saved_for_its_gradient():
    dit = nano_dit()
    rollout = Rollout(dit, spec(), text=text_of(dit))
    state, denoiser = rollout.state, rollout.denoiser
    state.cross_cache.store([(k.detach(), v.detach()) for k, v in rollout.text("a")])
    x = noise_of(state.spec).draw(0, 0)
    velocities = []
    for _ in range(3):
        plan = state.plan_block()
        velocities.append(denoiser(x, state.step_inputs(plan, 0.5)))
        state.window.commit(plan)
        state.block_index += 1
    velocities[0].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in dit.blocks[0].self_attn.parameters())


def test_a_pass_with_gradients_returns_what_a_pass_without_them_returns():
    dit = nano_dit()

    def velocity() -> Tensor:
        rollout = Rollout(dit, spec())
        state = rollout.state
        with torch.no_grad():
            state.cross_cache.store(rollout.text("a"))
        outputs = []
        for index in range(5):
            state.block_index = index
            plan = state.plan_block()
            inputs = state.step_inputs(plan, 0.5)
            outputs.append(rollout.denoiser(rollout.noise.draw(index, 0), inputs))
            state.window.commit(plan)
        return torch.cat(outputs, 1)

    with torch.no_grad():
        plain = velocity()
    assert velocity().requires_grad
    assert torch.equal(velocity(), plain)


class Recorder(TorchDispatchMode):
    """Every operation of a pass, with the tensors that it made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[Tensor]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((str(func), [x for x in tree_leaves(out) if isinstance(x, Tensor)]))
        return out


# Operations whose result the host has to wait for.
WAITS = ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "unique")


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_denoiser_pass_never_asks_the_device_for_a_value(positions, batch):
    # On the meta device there are no values: a pass that needed one would fail, and a tensor that
    # is made on the host and copied over would show up as one of another device.
    device = torch.device("meta")
    with device:
        dit = DiT(CONFIG).eval()
    rollout_spec = spec(positions=positions, batch=batch, latent_frames=40)
    state = RolloutState.allocate(rollout_spec, CONFIG, torch.float32, device)
    shape = rollout_spec.geometry.block_shape(batch)
    denoiser = CausalDenoiser(
        dit, state.cache, state.cross_cache, rollout_spec.geometry, sdpa_attention
    )
    with torch.no_grad(), Recorder() as recorder:
        text = torch.empty(batch, 3, CONFIG.text_width, device=device)
        state.cross_cache.store(dit.text_keys_values(text))
        for index in range(6):
            state.block_index = index
            for keys_only in (False, True):
                plan = state.plan_block()
                inputs = state.step_inputs(plan, 0.5, keys_only=keys_only)
                denoiser(torch.empty(shape, device=device), inputs)
                state.window.commit(plan)
        recache = state.window.plan(6, 6, protects_sink=True)
        latents = torch.empty(batch, 6, *shape[2:], device=device)
        denoiser(latents, state.step_inputs(recache, 0.0, keys_only=True))
    assert len(recorder.calls) > 1000
    waits = {name for name, _ in recorder.calls if name.split(".")[1] in WAITS}
    assert not waits
    assert {x.device.type for _, made in recorder.calls for x in made} == {"meta"}


def inputs_of_a_block(dit: DiT, positions: str) -> tuple[CausalDenoiser, StepInputs, Tensor]:
    rollout = Rollout(dit, spec(positions=positions), text=text_of(dit))
    state = rollout.state
    state.cross_cache.store(rollout.text("a"))
    inputs = state.step_inputs(state.plan_block(), 0.8333333134651184)
    assert isinstance(rollout.denoiser, CausalDenoiser)
    return rollout.denoiser, inputs, rollout.noise.draw(0, 0)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_rotations_and_timesteps_keep_their_precision_whatever_the_weights(
    dtype, wide, positions, monkeypatch
):
    seen: list[WindowAttention] = []
    attend = LayerWindow.__call__

    def record(self, *args):
        seen.append(self.call)
        return attend(self, *args)

    monkeypatch.setattr(LayerWindow, "__call__", record)
    denoiser, inputs, noise = inputs_of_a_block(nano_dit(dtype), positions)
    assert noise.dtype == dtype
    assert inputs.timestep_BF.dtype == torch.float32
    assert inputs.timestep_BF.tolist() == [[833.3333129882812]]
    with torch.no_grad():
        velocity = denoiser(noise, inputs)
    assert velocity.dtype == dtype
    assert denoiser.cache.k.dtype == denoiser.cross_cache[0][0].dtype == dtype
    assert {part.dtype for part in seen[0].rotation} == {wide}


def test_a_rotation_is_computed_in_float64_and_rounded_once():
    dit = nano_dit(torch.bfloat16)
    # At this position float32 angles are off by 1e-4.
    cos = dit.rotation(torch.tensor([1001]), 2, 3).cos
    exact = nano_dit(torch.float64).rotation(torch.tensor([1001]), 2, 3).cos
    assert torch.equal(cos, exact.float())


def test_the_text_cache_keeps_its_buffers_and_not_its_callers():
    cache = CrossCache()
    first = [(keys(1), keys(1)) for _ in range(2)]
    second = [(keys(1), keys(1)) for _ in range(2)]
    kept = [(k.clone(), v.clone()) for k, v in first]
    cache.store(first)
    assert len(cache) == 2
    addresses = [tensor.data_ptr() for layer in range(2) for tensor in cache[layer]]
    cache.store(second)
    assert addresses == [tensor.data_ptr() for layer in range(2) for tensor in cache[layer]]
    for layer in range(2):
        assert torch.equal(cache[layer][0], second[layer][0])
        assert torch.equal(cache[layer][1], second[layer][1])
        assert torch.equal(first[layer][0], kept[layer][0])


def test_the_text_cache_takes_a_prompt_of_another_batch():
    cache = CrossCache()
    cache.store([(keys(1, 1), keys(1, 1))])
    cache.store([(keys(1, 2), keys(1, 2))])
    assert cache[0][0].shape[0] == 2
