"""Gradients through a rollout with a KV cache: cut or leaked, with and without recomputation."""

from dataclasses import replace

import pytest
import torch
from nano import CONFIG, CPU, GEOMETRY, SPEC, embed, nano_dit, noise_of
from torch import Tensor

from longlive.attention.backends import sdpa_attention
from longlive.distillation.checkpointing import recompute_layers
from longlive.distillation.decisions import Decisions
from longlive.distillation.self_forcing import StudentRollout
from longlive.models.dit import DiT
from longlive.rollout.state import RolloutSpec

CLIP = 8
BLOCKS = CLIP // GEOMETRY.block_latent_frames
# Window of six with a sink of two: the last block of a clip no longer sees all of it.
CLIP_SPEC = replace(SPEC, latent_frames=CLIP, cached_latent_frames=CLIP)
LONG_SPEC = replace(SPEC, latent_frames=40, cached_latent_frames=6 + CLIP)


class Noise:
    """The rollout's own noise, and the same again for context updates."""

    def __init__(self) -> None:
        self.source = noise_of(SPEC)

    def draw(self, block_index: int, step_index: int) -> Tensor:
        return self.source.draw(block_index, step_index)

    def draw_context(self, block_index: int) -> Tensor:
        return self.source.draw(block_index, 99)


def rollout_of(dit: DiT, decisions: Decisions, spec: RolloutSpec = CLIP_SPEC) -> StudentRollout:
    texts = {"a": embed("a"), "b": embed("b")}
    return StudentRollout(
        dit,
        spec,
        texts,
        decisions,
        attention=sdpa_attention,
        dtype=dit.dtype_of_weights,
        device=CPU,
    )


def roll(rollout: StudentRollout, exit_index: int = 1, trains: bool = True, **options) -> Tensor:
    return rollout.roll(BLOCKS, Noise(), [exit_index] * BLOCKS, {0: "a"}, trains=trains, **options)


def gradients_of(
    decisions: Decisions,
    *,
    recomputes: bool = False,
    spec: RolloutSpec = CLIP_SPEC,
    chunks: int = 1,
) -> dict[str, Tensor]:
    """Gradients of a random projection of the last chunk."""
    dit = nano_dit()
    if recomputes:
        recompute_layers(dit)
    rollout = rollout_of(dit, decisions, spec)
    for _ in range(chunks - 1):
        roll(rollout, trains=False)
    out = roll(rollout)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=out.dtype)
    (out * direction).sum().backward()
    return {name: p.grad for name, p in dit.named_parameters() if p.grad is not None}


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max() / b[name].abs().max()) for name in a)


@pytest.mark.parametrize("cache_gradients", ["cut", "leak"])
@pytest.mark.parametrize(("spec", "chunks"), [(CLIP_SPEC, 1), (LONG_SPEC, 1), (LONG_SPEC, 4)])
def test_recomputation_changes_no_gradient_also_after_the_window_has_rolled(
    cache_gradients, spec, chunks
):
    decisions = Decisions(cache_gradients=cache_gradients)
    plain = gradients_of(decisions, spec=spec, chunks=chunks)
    again = gradients_of(decisions, recomputes=True, spec=spec, chunks=chunks)
    assert furthest(again, plain) < 1e-12


def test_a_cache_without_room_for_the_chunk_is_caught_by_wrong_gradients():
    # What the room is for: in the window alone a replay meets newer keys.
    tight = replace(SPEC, latent_frames=40)
    decisions = Decisions()
    plain = gradients_of(decisions, spec=tight, chunks=2)
    again = gradients_of(decisions, recomputes=True, spec=tight, chunks=2)
    assert furthest(again, plain) > 1e-3
    assert furthest(plain, gradients_of(decisions, spec=LONG_SPEC, chunks=2)) < 1e-12


def test_a_backward_pass_with_recomputation_leaves_the_cache_as_it_was():
    dit = nano_dit()
    recompute_layers(dit)
    rollout = rollout_of(dit, Decisions(cache_gradients="leak"))
    out = roll(rollout)
    before = rollout.cache.k.clone(), rollout.cache.v.clone()
    out.sum().backward()
    assert torch.equal(rollout.cache.k, before[0])
    assert torch.equal(rollout.cache.v, before[1])


def test_training_rolls_out_what_inference_does():
    dit = nano_dit()
    trained = roll(rollout_of(dit, Decisions()))
    plain = roll(rollout_of(dit, Decisions()), trains=False)
    assert trained.requires_grad
    assert torch.equal(trained.detach(), plain)
    from nano import Rollout

    inference = Rollout(dit, replace(SPEC, latent_frames=CLIP)).latents()
    assert torch.allclose(plain, inference, atol=1e-12)


def test_cut_gradients_of_a_block_are_those_of_the_block_alone():
    """The loss of the last block reaches the weights through its own call and no other."""
    dit = nano_dit()
    rollout = rollout_of(dit, Decisions())
    out = roll(rollout)
    [first, last] = out[:, :2], out[:, -2:]
    gradient = torch.autograd.grad(last.sum(), dit.blocks[0].self_attn.k.weight, retain_graph=True)[
        0
    ]
    # Noise and history fixed, the last block does not depend on the first block's graph at all.
    assert torch.autograd.grad(last.sum(), first, allow_unused=True, retain_graph=True)[0] is None
    assert gradient.abs().sum() > 0


def test_leaked_gradients_reach_keys_of_earlier_blocks_and_change_no_value():
    cut = gradients_of(Decisions())
    leaked = gradients_of(Decisions(cache_gradients="leak"))
    name = "blocks.0.self_attn.k.weight"
    assert not torch.allclose(cut[name], leaked[name], rtol=1e-3)
    # Only keys and values of earlier calls are reached; the last layer's output is not.
    assert torch.allclose(cut["head.head.weight"], leaked["head.head.weight"])


def test_a_chunk_sends_no_gradient_into_the_chunk_before_it():
    dit = nano_dit()
    rollout = rollout_of(dit, Decisions(cache_gradients="leak"), LONG_SPEC)
    first = roll(rollout)
    second = roll(rollout)
    reached = torch.autograd.grad(second.sum(), first, allow_unused=True)[0]
    assert reached is None


@pytest.mark.parametrize("exit_index", [0, 1])
def test_only_the_exit_step_keeps_its_graph(exit_index):
    calls = []

    class Counted(DiT):
        def forward(self, *args, **options):
            calls.append(torch.is_grad_enabled())
            return super().forward(*args, **options)

    dit = Counted(CONFIG).double()
    dit.load_state_dict(nano_dit().state_dict())
    roll(rollout_of(dit, Decisions()), exit_index=exit_index)
    # Per block: the steps before the exit, the exit, the context update.
    assert calls == ([False] * exit_index + [True, False]) * BLOCKS


def test_without_text_gradients_the_text_learns_nothing():
    assert "text_embedding.0.weight" in gradients_of(Decisions())
    assert "text_embedding.0.weight" not in gradients_of(Decisions(text_gradients=False))


def test_context_noise_changes_what_later_blocks_see_and_not_the_first():
    dit = nano_dit()
    clean = roll(rollout_of(dit, Decisions()), trains=False)
    noisy = roll(rollout_of(dit, Decisions()), trains=False, context_noise_sigma=0.05)
    assert torch.equal(clean[:, :2], noisy[:, :2])
    assert not torch.allclose(clean[:, 2:], noisy[:, 2:])


def test_the_first_block_may_take_more_steps():
    from nano import Rollout

    from longlive.schedule import DenoisingSchedule

    more = DenoisingSchedule.from_steps([1000, 750, 250], shift=5.0)
    spec = replace(CLIP_SPEC, first_schedule=more)
    dit = nano_dit()
    exits = [2, *[1] * (BLOCKS - 1)]
    made = rollout_of(dit, Decisions(), spec).roll(BLOCKS, Noise(), exits, {0: "a"}, trains=False)
    plain = Rollout(dit, replace(SPEC, latent_frames=CLIP, first_schedule=more)).latents()
    assert torch.allclose(made, plain, atol=1e-12)
    assert not torch.allclose(made[:, :2], roll(rollout_of(dit, Decisions()), trains=False)[:, :2])


def test_without_a_context_update_the_last_steps_keys_are_kept_as_at_inference():
    from nano import Rollout

    spec = replace(CLIP_SPEC, updates_context=False)
    dit = nano_dit()
    made = roll(rollout_of(dit, Decisions(), spec), trains=False)
    inference = Rollout(dit, replace(SPEC, latent_frames=CLIP, updates_context=False)).latents()
    assert torch.allclose(made, inference, atol=1e-12)
    assert not torch.allclose(made, roll(rollout_of(dit, Decisions()), trains=False))


def test_without_a_context_update_an_early_exit_still_leaves_keys_of_the_last_noise_level():
    seen = []

    class Recorded(DiT):
        def forward(self, x, timestep, *args, **options):
            seen.append((float(timestep.flatten()[0]), options.get("keys_only", False)))
            return super().forward(x, timestep, *args, **options)

    dit = Recorded(CONFIG).double()
    dit.load_state_dict(nano_dit().state_dict())
    spec = replace(CLIP_SPEC, updates_context=False)
    roll(rollout_of(dit, Decisions(), spec), exit_index=0, trains=False)
    last = spec.schedule.timesteps[-1]
    assert seen == [(1000.0, False), (last, True)] * BLOCKS
