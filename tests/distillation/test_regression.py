"""Causal initialization: ODE pairs and consistency."""

from dataclasses import replace

import pytest
import torch
from nano import CPU, GEOMETRY, SPEC, embed, nano_dit, noise_of, seeded

from longlive.attention.backends import sdpa_attention
from longlive.distillation.ode_pairs import bidirectional_pairs, causal_pairs, kept_indices
from longlive.distillation.parts import PartClock
from longlive.distillation.regression import (
    CausalPass,
    Consistency,
    ConsistencyOptions,
    pair_loss,
)
from longlive.distillation.scores import Score
from longlive.errors import UserError
from longlive.schedule import DenoisingSchedule

TEXT, NEGATIVE = embed("a"), embed("nothing")
FRAMES = 6
SHAPE = (1, FRAMES, 3, 4, 6)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states(count: int = 3) -> torch.Tensor:
    return torch.stack([seeded(f"state {i}", *SHAPE) for i in range(count)], 1)


@pytest.mark.parametrize("context", ["clean", "noisy"])
def test_a_student_that_returns_the_end_of_the_ode_has_no_loss(context):
    dit = nano_dit()
    clean = states()[:, -1]
    # A velocity of zero leaves the state as it is; so make all states the clean one.
    torch.nn.init.zeros_(dit.head.head.weight)
    torch.nn.init.zeros_(dit.head.head.bias)
    same = clean.unsqueeze(1).repeat(1, 3, 1, 1, 1, 1)
    causal = CausalPass(2, 4, 2 if context == "clean" else 0, context)
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    assert pair_loss(dit, causal, same, sigmas, TEXT, generator()) == 0
    assert pair_loss(dit, causal, states(), sigmas, TEXT, generator()) > 0


def test_blocks_draw_their_own_state_and_clean_ones_do_not_count():
    seen = []

    class Seen(CausalPass):
        def x0(self, dit, noisy, clean, sigma, text):
            seen.append((noisy, sigma))
            return clean + (sigma > 0)[..., None, None, None] * 1.0

    sigmas, some = torch.tensor([1.0, 0.5, 0.0]), states()
    for seed in range(20):
        loss = pair_loss(nano_dit(), Seen(2, 4, 0, "noisy"), some, sigmas, TEXT, generator(seed))
        noisy, sigma = seen[-1]
        # Off by one wherever it counts, so the mean over what counts is one.
        assert torch.isnan(loss) if (sigma == 0).all() else loss == 1
        assert (sigma[:, 0::2] == sigma[:, 1::2]).all()
        for frame in range(FRAMES):
            index = sigmas.tolist().index(float(sigma[0, frame]))
            assert torch.equal(noisy[0, frame], some[0, index, frame])
    assert len({tuple(sigma.flatten().tolist()) for _, sigma in seen}) > 5


def test_with_clean_context_no_clean_state_is_drawn():
    class Seen(CausalPass):
        def x0(self, dit, noisy, clean, sigma, text):
            assert (sigma > 0).all()
            return clean

    sigmas = torch.tensor([1.0, 0.5, 0.0])
    for seed in range(20):
        pair_loss(nano_dit(), Seen(2, 4, 2, "clean"), states(), sigmas, TEXT, generator(seed))


def test_in_a_pass_with_clean_context_a_block_does_not_see_earlier_noise():
    dit, text = nano_dit(), nano_dit().text_keys_values(TEXT)
    noisy, clean = seeded("n", *SHAPE), seeded("c", *SHAPE)
    sigma = torch.full((1, FRAMES), 0.7)
    changed = noisy.clone()
    changed[:, :2] += 1
    for context, is_seen in (("clean", False), ("noisy", True)):
        causal = CausalPass(2, None, 0, context)
        a, b = (causal.x0(dit, x, clean, sigma, text)[:, 2:] for x in (noisy, changed))
        assert torch.allclose(a, b) != is_seen


def consistency(dit, average, teacher_kind="causal", steps=4) -> Consistency:
    return Consistency(
        student=dit,
        average=average,
        teacher=Score(nano_dit(), teacher_kind, block=2, window=4, sink=2, attention="sdpa"),
        causal=CausalPass(2, 4, 2, "clean"),
        schedule=DenoisingSchedule.uniform(steps, shift=3.0),
        options=ConsistencyOptions(steps=steps, guidance=2.0),
        clock=PartClock(CPU),
    )


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_consistency_trains_the_student_and_neither_average_nor_teacher(kind):
    dit, average = nano_dit(), nano_dit()
    some = consistency(dit, average, kind)
    some.loss(seeded("clean", *SHAPE), TEXT, NEGATIVE, generator()).backward()
    assert dit.head.head.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in [*average.parameters(), *some.teacher.dit.parameters()])


def test_the_last_step_of_the_ode_is_learned_from_its_end_and_not_from_the_average():
    dit, average = nano_dit(), nano_dit()
    # One step only: every target is where the teacher's step ends.
    some = consistency(dit, average, steps=1)
    before = some.loss(seeded("clean", *SHAPE), TEXT, NEGATIVE, generator())
    with torch.no_grad():
        for weight in average.parameters():
            weight.mul_(2)
    assert torch.equal(some.loss(seeded("clean", *SHAPE), TEXT, NEGATIVE, generator()), before)


def test_states_are_kept_where_the_student_will_step():
    assert kept_indices(48, [1000, 750, 500, 250]) == [0, 12, 24, 36]
    with pytest.raises(UserError, match="do not stop at 937"):
        kept_indices(48, [1000, 937])


def test_causal_pairs_start_in_noise_end_in_the_teachers_video_and_lie_on_its_ode():
    from nano import Rollout

    schedule = DenoisingSchedule.uniform(4, shift=3.0)
    spec = replace(SPEC, schedule=schedule, latent_frames=FRAMES, guidance=2.0)
    dit = nano_dit()
    text, negative = (some.repeat(2, 1, 1) for some in (TEXT, NEGATIVE))
    batch = replace(spec, batch=2)
    found = causal_pairs(
        Score(dit, "causal"), spec, text, negative, noise_of(batch), [0, 2], sdpa_attention
    )
    assert found.shape == (2, 3, *SHAPE[1:])
    noise = noise_of(batch)
    start = torch.cat([noise.draw(block, 0) for block in range(3)], 1)
    assert torch.equal(found[:, 0], start)
    # The end is what the plain rollout makes; and from the middle state on, nothing is left out.
    from longlive.models.dit import stack_text
    from longlive.rollout.denoiser import GuidedDenoiser

    keys = stack_text([dit.text_keys_values(some) for some in (text, negative)])
    plain = Rollout(
        dit,
        replace(batch, sampler="euler"),
        noise=noise_of(batch),
        wrap=lambda denoiser: GuidedDenoiser(denoiser, 2.0),
        text=lambda _: keys,
    ).latents()
    assert torch.allclose(found[:, -1], plain)
    assert not torch.allclose(found[:, 1], found[:, 0])


def test_bidirectional_pairs_follow_the_guided_velocity():
    schedule = DenoisingSchedule.uniform(2, shift=3.0)
    spec = replace(SPEC, schedule=schedule, guidance=2.0)
    score = Score(nano_dit(), attention="sdpa")
    noise = seeded("start", *SHAPE)
    found = bidirectional_pairs(score, spec, TEXT, NEGATIVE, noise, [0, 1])
    x, sigmas = noise, [*schedule.sigmas, 0.0]
    with torch.no_grad():
        for index in range(2):
            assert torch.allclose(found[:, index], x)
            timestep = torch.tensor([1000 * sigmas[index]])
            a, b = (
                score.dit.bidirectional(x, timestep, score.text(some), "sdpa")
                for some in (TEXT, NEGATIVE)
            )
            x = x + (sigmas[index + 1] - sigmas[index]) * (b + 2 * (a - b))
    assert torch.allclose(found[:, 2], x, atol=1e-6)
    assert CPU.type == "cpu"
    assert GEOMETRY.block_latent_frames == 2
