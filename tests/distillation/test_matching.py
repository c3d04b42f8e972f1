"""One look of teacher and critic, and the noise levels at which they look."""

from dataclasses import replace

import pytest
import torch
from nano import CONFIG, embed, nano_dit, seeded

from longlive.distillation.decisions import Decisions, decisions_of
from longlive.distillation.discriminator import Discriminator, critic_features
from longlive.distillation.levels import ScoreLevels
from longlive.distillation.matching import Matcher, ScoreDraw
from longlive.distillation.scores import Score
from longlive.errors import UserError

CLIP = seeded("clip", 1, 6, 3, 4, 6)
NOISE = seeded("score noise", 1, 6, 3, 4, 6)
TEXT, NEGATIVE = embed("a"), embed("nothing")


def matcher(decisions: Decisions | None = None, kind: str = "bidirectional", **options) -> Matcher:
    decisions = decisions or Decisions()
    teacher, critic = nano_dit(), nano_dit()
    with torch.no_grad():
        for weight in critic.parameters():
            weight.mul_(1.1)
    return Matcher(
        teacher=Score(teacher, kind, block=2, window=4, sink=2, attention="sdpa"),
        critic=Score(critic, kind, block=2, window=4, sink=2, attention="sdpa"),
        levels=ScoreLevels(5.0, decisions),
        decisions=decisions,
        block=2,
        **options,
    )


def draw(*raw: int) -> ScoreDraw:
    return ScoreDraw(torch.tensor([raw]), NOISE)


def test_a_teacher_that_equals_the_critic_has_nothing_to_teach():
    some = matcher(guidance=1.0)
    some.critic.dit.load_state_dict(some.teacher.dit.state_dict())
    found = some.match(CLIP, TEXT, NEGATIVE, draw(500))
    assert found.unprompted is None
    assert (found.gradient == 0).all()


def test_guidance_three_of_the_reference_is_our_four():
    reference = matcher(Decisions(guidance_from="prompted"), guidance=3.0)
    ours = matcher(guidance=4.0)
    a = reference.match(CLIP, TEXT, NEGATIVE, draw(500)).gradient
    assert torch.allclose(a, ours.match(CLIP, TEXT, NEGATIVE, draw(500)).gradient)


def test_tables_of_another_shift_believe_in_other_noise_than_there_is():
    levels = ScoreLevels(5.0, Decisions(score_levels="tables"))
    timestep = torch.tensor([20.0])
    assert float(levels.noise_sigma(timestep)) == pytest.approx(0.0197, abs=1e-4)
    assert float(levels.score_sigma(timestep)) == pytest.approx(0.0235, abs=1e-4)
    exact = ScoreLevels(5.0, Decisions())
    assert float(exact.noise_sigma(timestep)) == pytest.approx(0.02)
    assert exact.noise_sigma(timestep) == exact.score_sigma(timestep)


def test_drawn_timesteps_are_shifted_as_the_students_and_kept_within_limits():
    levels = ScoreLevels(5.0, Decisions())
    found = levels.timestep(torch.tensor([0, 437, 999]))
    assert found.tolist() == pytest.approx([20.0, 795.1237, 980.0], rel=1e-6)
    raw = levels.draw(4000, 1, torch.Generator().manual_seed(0))
    assert 0 <= int(raw.min()) < 5
    assert 995 <= int(raw.max()) <= 999
    # What the shift does to a uniform draw: the reference's 9.2 % at the upper limit.
    at_limit = (levels.timestep(raw) == 980).float().mean()
    assert 0.08 < float(at_limit) < 0.105


def test_limits_that_do_not_rise_are_refused():
    with pytest.raises(UserError, match="must rise"):
        ScoreLevels(5.0, Decisions(), lowest=500, highest=20)


@pytest.mark.parametrize("target", ["velocity", "x0"])
def test_with_exact_levels_both_critic_targets_are_the_same(target):
    some = matcher(Decisions(critic_target=target))
    loss, clip, fake = some.critic_loss(CLIP, TEXT, draw(300))
    assert torch.allclose(loss, (fake.velocity - (NOISE - CLIP)).square().mean(), rtol=1e-6)


def test_in_bfloat16_the_round_trip_through_x0_enlarges_the_critics_error():
    def loss(target: str, rounds: bool) -> float:
        some = matcher(Decisions(critic_target=target, rounds_scores=rounds))
        for score in (some.teacher, some.critic):
            score.dit.float()
        clip, noise = CLIP.float(), NOISE.float()
        given = ScoreDraw(torch.tensor([[2]]), noise)
        with torch.autocast("cpu", torch.bfloat16):
            found, *_ = some.critic_loss(clip, TEXT.float(), given)
        return float(found.detach())

    exact = loss("velocity", rounds=False)
    assert abs(loss("x0", rounds=True) - exact) > 5 * abs(loss("x0", rounds=False) - exact)


def test_no_gradient_reaches_the_student_through_the_critics_loss():
    x = CLIP.clone().requires_grad_()
    loss, *_ = matcher().critic_loss(x, TEXT, draw(300))
    assert torch.autograd.grad(loss, x, allow_unused=True)[0] is None


def test_a_value_that_is_not_finite_stops_by_default_and_is_hidden_in_the_reference():
    broken = CLIP.clone()
    broken[0, 0, 0, 0, 0] = torch.nan
    assert not torch.isfinite(matcher().match(broken, TEXT, NEGATIVE, draw(500)).gradient).all()
    hidden = matcher(Decisions(hides_nan=True)).match(broken, TEXT, NEGATIVE, draw(500)).gradient
    assert torch.isfinite(hidden).all()


def test_a_causal_score_says_of_a_block_what_it_was_after_the_clean_blocks_before_it():
    score = matcher(kind="causal").teacher
    timestep = torch.full((1, 6), 600.0)
    noisy, clean = CLIP + NOISE, CLIP
    before = score.velocity(noisy, clean, timestep, score.text(TEXT))
    # A later clean block, and its own, are not seen; an earlier noisy one is not either.
    changed = clean.clone()
    changed[:, 2:] += 1
    assert torch.allclose(
        score.velocity(noisy, changed, timestep, score.text(TEXT))[:, :4], before[:, :4]
    )
    changed = noisy.clone()
    changed[:, :2] += 1
    after = score.velocity(changed, clean, timestep, score.text(TEXT))
    assert torch.allclose(after[:, 2:], before[:, 2:])
    changed = clean.clone()
    changed[:, :2] += 1
    after = score.velocity(noisy, changed, timestep, score.text(TEXT))
    assert not torch.allclose(after[:, 2:4], before[:, 2:4])


def test_a_causal_score_equals_a_step_of_a_rollout_with_that_history():
    from nano import Rollout, spec

    dit = nano_dit()
    rollout = Rollout(dit, spec(latent_frames=4, window_latent_frames=4))
    whole = rollout.latents()
    score = Score(dit, "causal", block=2, window=4, sink=2)
    noisy = torch.cat([seeded("other", 1, 2, 3, 4, 6), seeded("x", 1, 2, 3, 4, 6)], 1)
    found = score.velocity(noisy, whole, torch.full((1, 4), 700.0), score.text(TEXT))
    again = Rollout(dit, spec(latent_frames=4, window_latent_frames=4))
    again.latents(1)
    state = again.state
    with torch.no_grad():
        # The rollout stops before the first block's context update; make it.
        inputs = state.step_inputs(state.plan_block(), 0.0, keys_only=True)
        again.denoiser(whole[:, :2], inputs)
        state.block_index = 1
        inputs = state.step_inputs(state.plan_block(), 0.7)
        expected = again.denoiser(noisy[:, 2:], inputs)
    assert torch.allclose(found[:, 2:], expected, atol=1e-6)


def test_levels_per_block_differ_within_a_clip():
    some = matcher(kind="causal", per="block")
    drawn = some.draw(CLIP, torch.Generator().manual_seed(0))
    assert drawn.raw.shape == (1, 3)
    found = some.match(CLIP, TEXT, NEGATIVE, drawn)
    assert found.clip.timestep.shape == (1, 6)
    assert len(found.clip.timestep.unique()) == 3
    assert torch.isfinite(found.gradient).all()


@pytest.mark.parametrize("kind", ["bidirectional", "causal"])
def test_the_discriminator_sees_the_critics_features_and_the_student_can_learn_from_it(kind):
    some = matcher(kind=kind)
    judge = Discriminator(CONFIG.width).double()
    x = CLIP.clone().requires_grad_()
    clip = some.levels.add_noise(x, NOISE, torch.tensor([[300]]))
    features = critic_features(some.critic, clip, x.detach(), TEXT)
    assert features.shape == (1, 6 * 2 * 3, CONFIG.width)
    [gradient] = torch.autograd.grad(judge(features).mean(), x)
    assert gradient.abs().sum() > 0
    assert not some.critic.dit.blocks[1]._forward_hooks


def test_decisions_have_names_and_strange_ones_are_refused():
    assert decisions_of("default") == Decisions()
    assert decisions_of("reference").cache_gradients == "leak"
    own = replace(Decisions(), hides_nan=True)
    assert decisions_of(own) is own
    with pytest.raises(UserError, match="choose one of default, reference"):
        decisions_of("official")
