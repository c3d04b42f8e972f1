"""The transformer against its formulas, and training against inference."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nano import CONFIG, CPU, GEOMETRY, Rollout, embed, nano_dit, seeded, spec, text_of
from reference_dit import ReferenceDiT
from torch import Tensor

from longlive.attention.backends import sdpa_attention
from longlive.attention.core import FullAttention, LayerWindow, MaskedAttention
from longlive.attention.masks import BlockCausal, mask_for
from longlive.errors import UserError
from longlive.models.dit import DiT, TeacherForcingOptions, stack_text
from longlive.models.layers import timestep_features
from longlive.models.sizes import SIZES, DiTConfig, dit_config
from longlive.rollout.state import RolloutState

EXACT = {"rtol": 0, "atol": 1e-12}
"""float64, where only the order of sums differs."""
BLOCK = GEOMETRY.block_latent_frames
GRID = (GEOMETRY.grid_height, GEOMETRY.grid_width)


def clip(name: str, frames: int, batch: int = 1) -> Tensor:
    return seeded(name, batch, frames, *GEOMETRY.block_shape(1)[2:])


def reference(dit: DiT) -> ReferenceDiT:
    return ReferenceDiT(dit.state_dict(), dit.config)


@pytest.mark.parametrize(
    ("size", "file", "parameters", "tensors"),
    [
        ("wan-1.3b", "Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors", 1_418_996_800, 825),
        ("wan-14b", "Wan2.1-T2V-14B/diffusion_pytorch_model-*.safetensors", 14_288_491_584, 1095),
    ],
)
def test_names_and_shapes_are_those_of_the_published_checkpoint(
    size, file, parameters, tensors, golden_dir: Path
):
    manifest = json.loads((golden_dir / "checkpoint-manifest.json").read_text())["files"][file]
    with torch.device("meta"):
        dit = DiT(size)
    ours = {name: list(weight.shape) for name, weight in dit.state_dict().items()}
    assert ours == {name: shape for name, (shape, _) in manifest["tensors"].items()}
    assert len(ours) == tensors
    assert sum(weight.numel() for weight in dit.parameters()) == parameters
    assert DiTConfig.from_official(manifest["config"]) == SIZES[size] == dit.config


def test_an_official_configuration_without_defaults_is_completed():
    config = {"dim": 64, "ffn_dim": 128, "num_heads": 2, "num_layers": 3, "in_dim": 4, "eps": 1e-5}
    expected = DiTConfig(64, 128, 2, 3, 4096, 512, latent_channels=4, eps=1e-5)
    assert DiTConfig.from_official(config) == expected
    assert DiTConfig.from_official(config, text_len=7).text_len == 7
    assert DiTConfig.from_official({**config, "patch_size": [1, 1, 1]}).patch == 1


def test_an_unknown_size_is_a_user_error_that_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown model size 'huge'.*wan-1\.3b"):
        DiT("huge")
    assert dit_config("tiny").heads == 4


@pytest.mark.parametrize("heads", [5, 32])
def test_heads_that_do_not_fit_the_width_are_a_user_error(heads):
    with pytest.raises(UserError, match="even head widths"):
        replace(CONFIG, heads=heads)


# Latent frames each block of two sees through a window of six with a sink of two.
SEEN = [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 1, 4, 5, 6, 7], [0, 1, 6, 7, 8, 9]]


@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_cached_blocks_equal_the_formulas_over_the_attended_frames(positions):
    dit = nano_dit()
    slow, x = reference(dit), clip("x", 10)
    rollout = Rollout(dit, spec(positions=positions))
    rollout.state.cross_cache.store(rollout.text("a"))
    for index, seen in enumerate(SEEN):
        rollout.state.block_index = index
        frames = list(range(index * BLOCK, (index + 1) * BLOCK))
        place = {f: f if positions == "absolute" else i for i, f in enumerate(seen)}
        # Twice, as a denoising step and a second one that overwrites the first one's keys.
        for sigma, scale in ((0.75, 1.0), (0.5, 0.9)):
            plan = rollout.state.plan_block()
            rollout.state.place_sink(plan)
            inputs = rollout.state.step_inputs(plan, sigma)
            with torch.no_grad():
                velocity = rollout.denoiser(scale * x[:, frames], inputs)
            rollout.state.window.commit(plan)
            expected = slow(
                scale * x[0, frames],
                [1000 * sigma] * BLOCK,
                embed("a")[0],
                frames=frames,
                seen=seen,
                stored=frames,
                position=place,
            )
            torch.testing.assert_close(velocity[0], expected, **EXACT)


def test_the_bidirectional_pass_equals_the_formulas_with_all_frames_seen():
    dit, x, timesteps = nano_dit(), clip("x", 3, 2), torch.tensor([937.5, 20.0])
    text = stack_text([text_of(dit)("a"), text_of(dit)("b")])
    with torch.no_grad():
        velocity = dit.bidirectional(x, timesteps, text)
    frames = range(3)
    for video, prompt in enumerate("ab"):
        expected = reference(dit)(
            x[video],
            [timesteps[video].item()] * 3,
            embed(prompt)[0],
            frames=frames,
            seen=frames,
            stored=frames,
            position={frame: frame for frame in frames},
        )
        torch.testing.assert_close(velocity[video], expected, **EXACT)


def full_attention(dit: DiT, frames: int) -> FullAttention:
    return FullAttention(dit.rotation(torch.arange(frames), *GRID), sdpa_attention)


@torch.no_grad()
def test_each_latent_frame_is_modulated_by_its_own_timestep():
    dit, x, timesteps = nano_dit(), clip("x", 3), [1000.0, 625.0, 0.0]
    velocity = dit(x, torch.tensor([timesteps]), text_of(dit)("a"), full_attention(dit, 3))
    frames = range(3)
    expected = reference(dit)(
        x[0],
        timesteps,
        embed("a")[0],
        frames=frames,
        seen=frames,
        stored=frames,
        position={frame: frame for frame in frames},
    )
    torch.testing.assert_close(velocity[0], expected, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 3)])
def test_a_shared_timestep_equals_the_same_timestep_for_every_frame(shape):
    dit, x = nano_dit(), clip("x", 3, 2)
    text = stack_text([text_of(dit)("a"), text_of(dit)("b")])
    attend = full_attention(dit, 3)
    every = dit(x, torch.full((2, 3), 625.0), text, attend)
    torch.testing.assert_close(dit(x, torch.full(shape, 625.0), text, attend), every, **EXACT)


@torch.no_grad()
def test_text_is_padded_with_zeros_and_the_padding_is_attended():
    dit, text = nano_dit(), embed("a")
    padded = torch.cat([text, torch.zeros(1, 2, CONFIG.text_width, dtype=text.dtype)], 1)
    for (k, v), (k_padded, v_padded) in zip(
        dit.text_keys_values(text), dit.text_keys_values(padded), strict=True
    ):
        assert k.shape == (1, CONFIG.text_len, CONFIG.heads, CONFIG.head_dim)
        assert torch.equal(k, k_padded)
        assert torch.equal(v, v_padded)
        assert v[:, 3:].count_nonzero() > 0


@torch.no_grad()
@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_a_pass_for_the_keys_alone_leaves_the_cache_of_a_full_pass(positions):
    dit, x = nano_dit(), clip("x", 10)
    caches = []
    for keys_only in (False, True):
        rollout = Rollout(dit, spec(positions=positions))
        rollout.state.cross_cache.store(rollout.text("a"))
        for index in range(5):
            rollout.state.block_index = index
            plan = rollout.state.plan_block()
            inputs = rollout.state.step_inputs(plan, 0.0, keys_only=keys_only)
            block = x[:, index * BLOCK : (index + 1) * BLOCK]
            assert (rollout.denoiser(block, inputs) is None) == keys_only
            rollout.state.window.commit(plan)
        caches.append(rollout.state.cache)
    assert caches[0].k.count_nonzero() == caches[0].k.numel()
    assert torch.equal(caches[0].k, caches[1].k)
    assert torch.equal(caches[0].v, caches[1].v)


def test_a_pass_for_the_keys_alone_skips_the_last_layer_s_attention_and_the_head(monkeypatch):
    dit, called = nano_dit(), []
    rollout = Rollout(dit, spec())
    rollout.state.cross_cache.store(rollout.text("a"))
    attend = LayerWindow.__call__
    layer_of = {cache.k.data_ptr(): layer for layer, cache in enumerate(rollout.state.cache)}

    def record(self, *args):
        called.append(layer_of[self.cache.k.data_ptr()])
        return attend(self, *args)

    monkeypatch.setattr(LayerWindow, "__call__", record)
    dit.head.register_forward_hook(lambda *args: called.append("head"))
    inputs = rollout.state.step_inputs(rollout.state.plan_block(), 0.0, keys_only=True)
    rollout.denoiser(clip("x", BLOCK), inputs)
    assert called == list(range(CONFIG.layers - 1))


def cached_velocities(
    dit: DiT, history: Tensor, noisy: Tensor, sigma_BF: Tensor, text: Any, window: int | None
) -> Tensor:
    """Velocity of each noisy block after the cache has seen the history before it."""
    clips, frames = noisy.shape[:2]
    rollout_spec = spec(latent_frames=frames, window_latent_frames=window, batch=clips)
    rollout = Rollout(dit, rollout_spec)
    state = rollout.state
    state.cross_cache.store(text)
    velocities = []
    for index in range(frames // BLOCK):
        state.block_index = index
        block = slice(index * BLOCK, (index + 1) * BLOCK)
        for x, sigma in ((noisy, sigma_BF), (history, torch.zeros_like(sigma_BF))):
            plan = state.plan_block()
            inputs = replace(state.step_inputs(plan, 0.0), timestep_BF=1000 * sigma[:, block])
            velocities.append(rollout.denoiser(x[:, block], inputs))
            state.window.commit(plan)
    return torch.cat(velocities[::2], 1)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 6, 4])
def test_teacher_forcing_equals_denoising_block_by_block_after_that_history(window):
    dit, frames = nano_dit(), 12
    history, noisy = clip("history", frames, 2), clip("noisy", frames, 2)
    sigma = torch.rand(2, frames // BLOCK).repeat_interleave(BLOCK, 1)
    text = stack_text([text_of(dit)("a"), text_of(dit)("b")])
    rule = BlockCausal(frames, BLOCK, window, 2, teacher_forcing=True)
    positions = torch.arange(frames).repeat(2)
    attend = MaskedAttention(dit.rotation(positions, *GRID), mask_for(rule, math.prod(GRID), CPU))
    timesteps = 1000 * torch.cat([torch.zeros_like(sigma), sigma], 1)
    at_once = dit(torch.cat([history, noisy], 1), timesteps, text, attend)[:, frames:]
    expected = cached_velocities(dit, history, noisy, sigma, text, window)
    torch.testing.assert_close(at_once, expected, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize(("window", "history_noise"), [(6, 0.0), (None, 0.1)])
def test_the_training_loss_is_the_error_of_the_rollout_that_it_stands_for(window, history_noise):
    options = TeacherForcingOptions(BLOCK, window, 2, shift=3.0, history_noise=history_noise)
    dit, frames = nano_dit(teacher_forcing=options), 10
    latents, starts = clip("clean", frames, 2), torch.tensor([4, 0])
    text = stack_text([text_of(dit)("a"), text_of(dit)("b")])
    passes = []
    dit.register_forward_pre_hook(lambda module, args: passes.append(args))
    loss = dit.flow_matching_loss(latents, text, starts)
    x, timesteps, *_ = passes.pop()
    history, noisy = x.chunk(2, 1)
    assert torch.equal(history, latents) == (history_noise == 0)
    told_history, told = timesteps.chunk(2, 1)
    assert told_history.count_nonzero() == 0
    sigma = told / 1000
    assert torch.equal(sigma[:, ::BLOCK], sigma[:, 1::BLOCK])
    assert len(sigma.unique()) == 2 * frames // BLOCK
    velocity = cached_velocities(dit, history, noisy, sigma, text, window)
    wide = sigma[:, :, None, None, None]
    noise = (noisy - (1 - wide) * latents) / wide
    error = (velocity - (noise - latents)).square().mean((2, 3, 4))
    expected = torch.cat([error[0, 4:], error[1]]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


@torch.no_grad()
def test_the_loss_of_a_clip_of_one_block_is_that_of_a_first_block():
    dit = nano_dit(teacher_forcing=TeacherForcingOptions(BLOCK, 6, 2, shift=3.0))
    latents = clip("clean", BLOCK, 2)
    text = stack_text([text_of(dit)("a"), text_of(dit)("b")])
    passes = []
    dit.register_forward_pre_hook(lambda module, args: passes.append(args))
    loss = dit.flow_matching_loss(latents, text, torch.tensor([0, 0]))
    noisy, timesteps, *_ = passes.pop()
    assert noisy.shape == latents.shape, "no history beside it"
    sigma = (timesteps / 1000).expand(2, BLOCK)
    velocity = cached_velocities(dit, latents, noisy, sigma, text, window=6)
    wide = sigma[:, :, None, None, None]
    noise = (noisy - (1 - wide) * latents) / wide
    expected = (velocity - (noise - latents)).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_what_is_before_the_start_is_seen_but_not_learned():
    dit, frames, start = nano_dit(teacher_forcing=TeacherForcingOptions(BLOCK, 6, 2)), 6, 4
    text, latents = text_of(dit)("a"), clip("clean", frames).requires_grad_()

    def loss(start: int) -> Tensor:
        torch.manual_seed(0)
        return dit.flow_matching_loss(latents, text, torch.tensor([start]))

    (gradient,) = torch.autograd.grad(loss(start), latents)
    assert (gradient[0].abs().amax((1, 2, 3)) > 0).all()

    before = [loss(start).item(), loss(0).item()]

    def spoil(module, args, velocity):
        velocity[:, frames : frames + start] += 1
        return velocity

    dit.register_forward_hook(spoil)
    with torch.no_grad():
        assert loss(start).item() == before[0]
        assert loss(0).item() != before[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_timestep_features_are_rounded_once_whatever_the_weights(dtype):
    dit, seen = nano_dit(dtype), []
    dit.time_embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    timestep = torch.tensor([[833.3333129882812]])  # 832 in bfloat16
    with torch.no_grad():
        dit.embed_timestep(timestep, dtype)
    exact = timestep_features(timestep.double(), CONFIG.frequency_width)
    assert torch.equal(seen[0], exact.to(dtype))
    assert (seen[0].double() - exact).abs().max() < 2**-8


@torch.no_grad()
def test_a_bfloat16_transformer_stays_near_the_float64_one():
    x = clip("x", 3)
    exact = nano_dit().bidirectional(x, torch.tensor([500.0]), text_of(nano_dit())("a"))
    half = nano_dit(torch.bfloat16)
    velocity = half.bidirectional(x, torch.tensor([500.0]), text_of(half)("a"))
    assert velocity.dtype == torch.bfloat16
    assert (velocity - exact).norm() / exact.norm() < 0.03


def test_every_parameter_is_learned():
    dit = nano_dit(teacher_forcing=TeacherForcingOptions(BLOCK, 6, 2))
    text = dit.text_keys_values(embed("a"))
    dit.flow_matching_loss(clip("x", 6), text, torch.tensor([0])).backward()
    silent = [
        name
        for name, weight in dit.named_parameters()
        if weight.grad is None or weight.grad.count_nonzero() == 0
    ]
    assert silent == []


def test_from_scratch_the_first_prediction_is_zero():
    dit = DiT(CONFIG)
    dit.reset_parameters()
    assert dit.head.head.weight.count_nonzero() == 0
    dit = dit.double()
    velocity = dit.bidirectional(clip("x", 3), torch.tensor([500.0]), text_of(dit)("a"))
    assert velocity.count_nonzero() == 0
    assert dit.patch_embedding.weight.std().item() == pytest.approx((2 / (12 + 32)) ** 0.5, rel=0.2)


def test_training_on_one_batch_lowers_its_loss():
    dit = DiT(CONFIG, TeacherForcingOptions(BLOCK, 6, 2))
    dit.reset_parameters()
    clips, starts = clip("clean", 6, 2).float(), torch.tensor([0, 2])
    text_BME = torch.cat([embed("a"), embed("b")]).float()
    optimizer = torch.optim.AdamW(dit.parameters(), lr=3e-3)

    def loss() -> torch.Tensor:
        torch.manual_seed(7)
        return dit.flow_matching_loss(clips, dit.text_keys_values(text_BME), starts)

    before = loss().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.9 * before


def test_the_layers_are_the_blocks_of_the_checkpoint():
    dit = nano_dit()
    assert list(dit.layers) == list(dit.blocks)


def test_a_rollout_allocates_what_the_configuration_says():
    state = RolloutState.allocate(spec(batch=3), CONFIG, torch.bfloat16, CPU)
    tokens = GEOMETRY.tokens_per_latent_frame
    assert state.cache.k.shape == (CONFIG.layers, 3, 6, tokens, CONFIG.heads, CONFIG.head_dim)
