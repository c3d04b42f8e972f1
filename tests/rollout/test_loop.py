"""The denoising loop: what a rollout equals, and what its hooks are told."""

import gc
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from nano import CONFIG, GEOMETRY, Rollout, embed, nano_dit, noise_of, spec, text_of
from reference_dit import ReferenceDiT, ReferenceRollout
from torch import Tensor

from longlive.models.dit import stack_text
from longlive.rollout.denoiser import Denoiser, GuidedDenoiser
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.state import RolloutSpec, RolloutState, StepInputs
from longlive.schedule import DenoisingSchedule, x0_from_velocity

EXACT = {"rtol": 0, "atol": 1e-11}
"""float64, where only the order of sums differs."""
BLOCK = GEOMETRY.block_latent_frames


def switch_at(*latent_frames: int) -> PromptTimeline:
    return PromptTimeline.switching("abcd"[: len(latent_frames) + 1], latent_frames)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_a_long_rollout_starts_with_the_short_one(positions):
    dit = nano_dit()
    short = Rollout(dit, spec(latent_frames=8, positions=positions), switch_at(4)).latents()
    long = Rollout(dit, spec(latent_frames=16, positions=positions), switch_at(4)).latents()
    assert short.shape == (1, 8, *GEOMETRY.block_shape(1)[2:])
    assert torch.equal(long[:, :8], short)


def test_the_same_rollout_twice_is_the_same_and_another_seed_is_another():
    dit, asked = nano_dit(), spec(latent_frames=8)
    first = Rollout(dit, asked).latents()
    assert torch.equal(Rollout(dit, asked).latents(), first)
    other = Rollout(dit, asked, noise=noise_of(asked, seed=1)).latents()
    assert (other - first).abs().amin((2, 3, 4)).max() > 0


def test_a_window_as_long_as_the_video_equals_global_attention():
    dit = nano_dit()
    everything = Rollout(dit, spec(window_latent_frames=None), switch_at(6)).latents()
    window = Rollout(dit, spec(window_latent_frames=16), switch_at(6)).latents()
    assert torch.equal(window, everything)
    shorter = Rollout(dit, spec(window_latent_frames=14), switch_at(6)).latents()
    assert torch.equal(shorter[:, :14], everything[:, :14])
    assert not torch.equal(shorter[:, 14:], everything[:, 14:])


def test_room_for_more_than_the_window_changes_nothing():
    dit, switch = nano_dit(), switch_at(10)
    roomy = Rollout(dit, spec(cached_latent_frames=14), switch).latents()
    torch.testing.assert_close(roomy, Rollout(dit, spec(), switch).latents(), **EXACT)


def test_absolute_equals_relative_until_the_first_eviction():
    dit = nano_dit()
    absolute = Rollout(dit, spec(positions="absolute"), switch_at(4)).latents()
    relative = Rollout(dit, spec(positions="relative"), switch_at(4)).latents()
    torch.testing.assert_close(relative[:, :6], absolute[:, :6], **EXACT)
    assert (relative[:, 6:8] - absolute[:, 6:8]).abs().max() > 1e-3


def slow_latents(asked: RolloutSpec, prompts: dict[int, str]) -> Tensor:
    dit, noise = nano_dit(), noise_of(asked)
    reference = ReferenceRollout(
        ReferenceDiT(dit.state_dict(), CONFIG),
        asked,
        lambda block, step: noise.draw(block, step)[0],
        lambda prompt: embed(prompt)[0],
    )
    return reference.run(prompts).unsqueeze(0)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"sink_latent_frames": 0}, {"sink_latent_frames": 1, "window_latent_frames": 5}],
    ids=["window 6 sink 2", "no sink", "window of no whole blocks"],
)
def test_the_ring_cache_equals_attention_over_the_visible_latent_frames(changes, positions):
    asked = spec(positions=positions, **changes)
    expected = slow_latents(asked, {0: "a"})
    torch.testing.assert_close(Rollout(nano_dit(), asked).latents(), expected, **EXACT)


def test_global_attention_equals_attention_over_all_latent_frames():
    asked = spec(window_latent_frames=None, latent_frames=8)
    latents = Rollout(nano_dit(), asked, switch_at(4)).latents()
    torch.testing.assert_close(latents, slow_latents(asked, {0: "a", 4: "b"}), **EXACT)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("keeps_sink", [True, False])
@pytest.mark.parametrize("switches", [(4,), (6,), (8,), (4, 10, 12)])
def test_a_recache_equals_one_unmasked_pass_over_the_window(switches, keeps_sink, positions):
    asked = spec(positions=positions, keeps_sink=keeps_sink)
    prompts = {0: "a", **dict(zip(switches, "bcd", strict=False))}
    latents = Rollout(nano_dit(), asked, switch_at(*switches)).latents()
    torch.testing.assert_close(latents, slow_latents(asked, prompts), **EXACT)


@pytest.mark.parametrize("keeps_sink", [True, False])
@pytest.mark.parametrize("switch", [4, 6, 8])
def test_a_recache_of_a_window_of_no_whole_blocks_starts_inside_a_block(switch, keeps_sink):
    asked = spec(sink_latent_frames=1, window_latent_frames=5, keeps_sink=keeps_sink)
    latents = Rollout(nano_dit(), asked, switch_at(switch)).latents()
    torch.testing.assert_close(latents, slow_latents(asked, {0: "a", switch: "b"}), **EXACT)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("keeps_sink", [True, False])
@pytest.mark.parametrize(("window", "recached"), [(6, 2), (6, 4), (7, 6), (None, 4)])
@pytest.mark.parametrize("switches", [(4,), (8,), (4, 10, 12)])
def test_a_recache_of_a_part_is_one_pass_over_the_newest_that_sees_the_rest_as_it_was(
    switches, window, recached, keeps_sink, positions
):
    asked = spec(
        window_latent_frames=window,
        recached_latent_frames=recached,
        keeps_sink=keeps_sink,
        positions=positions,
    )
    prompts = {0: "a", **dict(zip(switches, "bcd", strict=False))}
    latents = Rollout(nano_dit(), asked, switch_at(*switches)).latents()
    torch.testing.assert_close(latents, slow_latents(asked, prompts), **EXACT)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_a_recache_of_a_part_leaves_the_keys_of_the_old_prompt_elsewhere(positions):
    rollout = Rollout(
        nano_dit(), spec(recached_latent_frames=2, positions=positions), switch_at(10)
    )
    kept: list[Tensor] = []

    class Keeps:
        def call(self, hook: str, state: RolloutState, *args: Any) -> None:
            if state.prompt == "b" and hook in ("on_prompt_switch", "on_recache_end"):
                kept.append(state.cache.k.clone())

    rollout.hooks = Keeps()
    rollout.latents(6)
    before, after = kept
    changed = (before != after).flatten(3).any(-1).any(0)[0]
    # The sink, then a ring of four whose head is at its start again after two evictions.
    assert changed.tolist() == [False, False, False, False, True, True]


def test_a_recache_of_as_much_as_the_window_is_the_recache_of_the_window():
    whole = Rollout(nano_dit(), spec(), switch_at(4, 10)).latents()
    told = Rollout(nano_dit(), spec(recached_latent_frames=6), switch_at(4, 10)).latents()
    assert torch.equal(told, whole)
    part = Rollout(nano_dit(), spec(recached_latent_frames=2), switch_at(4, 10)).latents()
    assert torch.equal(part[:, :4], whole[:, :4])
    assert not torch.equal(part[:, 4:6], whole[:, 4:6])


def test_without_a_recache_a_switch_changes_the_text_and_no_stored_key():
    asked = spec(recaches=False)
    kept, rebuilt = (Rollout(nano_dit(), some, switch_at(8)).latents() for some in (asked, spec()))
    assert torch.equal(kept[:, :8], rebuilt[:, :8])
    assert not torch.equal(kept[:, 8:], rebuilt[:, 8:])
    # The same prompt once more is then no switch at all; a recache sees the window both ways.
    again = PromptTimeline.switching(["a", "a"], [8])
    assert torch.equal(
        Rollout(nano_dit(), asked, again).latents(), Rollout(nano_dit(), asked).latents()
    )


def test_the_level_that_the_context_update_is_told_is_told_to_the_recache_too():
    asked = spec(context_sigma=0.125)
    latents = Rollout(nano_dit(), asked, switch_at(8)).latents()
    torch.testing.assert_close(latents, slow_latents(asked, {0: "a", 8: "b"}), **EXACT)
    assert not torch.equal(latents, Rollout(nano_dit(), spec(), switch_at(8)).latents())


def test_keeping_the_sink_matters_only_once_the_window_is_full():
    def latents(switch: int, *, keeps_sink: bool) -> Tensor:
        return Rollout(nano_dit(), spec(keeps_sink=keeps_sink), switch_at(switch)).latents()

    assert torch.equal(latents(6, keeps_sink=True), latents(6, keeps_sink=False))
    assert not torch.equal(latents(8, keeps_sink=True), latents(8, keeps_sink=False))


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("switch", [4, 8, 12])
def test_recaching_what_nobody_reads_changes_nothing(switch, positions):
    dit, frames = nano_dit(), []

    def counted(denoiser: Denoiser) -> Denoiser:
        def call(x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
            frames.append(x_BFCHW.shape[1])
            return denoiser(x_BFCHW, inputs)

        return call

    results = []
    for computes_unread in (False, True):
        frames.clear()
        asked = spec(positions=positions, computes_unread=computes_unread)
        results.append(Rollout(dit, asked, switch_at(switch), wrap=counted).latents())
        is_dropped = switch > 6 and not computes_unread
        assert max(frames) == min(switch, 6) - (2 if is_dropped else 0)
    torch.testing.assert_close(results[0], results[1], **EXACT)


def test_a_prompt_asked_for_before_the_first_block_equals_starting_with_it():
    dit, asked = nano_dit(), spec(latent_frames=8)
    cursor = PromptTimeline.single("a").start()
    cursor.request("b")
    assert torch.equal(Rollout(dit, asked, cursor).latents(), Rollout(dit, asked, "b").latents())


def test_a_prompt_switch_changes_only_later_blocks():
    dit = nano_dit()
    plain = Rollout(dit, spec(), "a").latents()
    switched = Rollout(dit, spec(), switch_at(7)).latents()
    assert torch.equal(switched[:, :8], plain[:, :8])
    assert ((switched[:, 8:] - plain[:, 8:]).abs().amax((2, 3, 4)) > 1e-3).all()


def test_a_prompt_asked_for_while_the_rollout_runs_acts_at_the_next_block():
    dit = nano_dit()
    rollout = Rollout(dit, spec())
    blocks = []
    with torch.no_grad():
        for index, block in enumerate(rollout.stream()):
            if index == 3:
                rollout.cursor.request("b")
            blocks.append(block)
    assert torch.equal(torch.cat(blocks, 1), Rollout(dit, spec(), switch_at(8)).latents())


def test_switching_there_and_back_finds_the_first_prompt_unspoiled():
    dit = nano_dit()
    kept = {prompt: text_of(dit)(prompt) for prompt in "ab"}
    timeline = PromptTimeline.switching("aba", [2, 4])
    remembered = Rollout(dit, spec(), timeline, text=kept.__getitem__).latents()
    assert torch.equal(remembered, Rollout(dit, spec(), timeline).latents())


class Diary:
    """What happens in a rollout, in order; hooks, network calls and yields."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def call(self, hook: str, state: RolloutState, *args: Any) -> None:
        if hook == "on_prompt_switch":
            hook += f" {state.prompt}"
        elif hook == "on_denoise_step_start":
            hook += f" {state.step_index} at {args[0]:.3f}"
        self.lines.append(hook)

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        def call(x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
            name = "keys" if inputs.keys_only else "velocity"
            self.lines.append(f"{name} of {x_BFCHW.shape[1]}")
            return denoiser(x_BFCHW, inputs)

        return call


DENOISED = [
    "on_block_start",
    "on_denoise_step_start 0 at 1.000",
    "velocity of 2",
    "on_denoise_step_end",
    "on_denoise_step_start 1 at 0.833",
    "velocity of 2",
    "on_denoise_step_end",
    "on_latents_ready",
    "yield",
]
STORED = ["on_context_update_start", "keys of 2", "on_context_update_end", "on_block_end"]


def test_hooks_fire_in_the_documented_order():
    diary = Diary()
    asked = spec(latent_frames=6)
    rollout = Rollout(nano_dit(), asked, switch_at(4), hooks=diary, wrap=diary.wrap)
    with torch.no_grad():
        for _ in rollout.stream():
            diary.lines.append("yield")
    assert diary.lines == [
        "on_rollout_start",
        "on_text_encoding_start",
        "on_prompt_switch a",
        *DENOISED,
        *STORED,
        *DENOISED,
        # No context update: the recache writes what it would have.
        "on_block_end",
        "on_text_encoding_start",
        "on_prompt_switch b",
        "on_recache_start",
        "keys of 4",
        "on_recache_end",
        *DENOISED,
        *STORED,
        "on_rollout_end",
    ]


def test_a_block_is_yielded_before_its_context_update():
    diary = Diary()
    rollout = Rollout(nano_dit(), spec(), hooks=diary, wrap=diary.wrap)
    with torch.no_grad():
        stream = rollout.stream()
        next(stream)
        assert diary.lines[-1] == "on_latents_ready"
        next(stream)
        assert diary.lines.count("keys of 2") == 1


def test_a_rollout_that_is_stopped_early_still_ends():
    diary = Diary()
    rollout = Rollout(nano_dit(), spec(), hooks=diary, wrap=diary.wrap)
    with torch.no_grad():
        stream = rollout.stream()
        next(stream)
        stream.close()
    assert diary.lines[-2:] == ["on_latents_ready", "on_rollout_end"]


def test_a_rollout_that_fails_still_ends():
    diary = Diary()

    def broken(denoiser: Denoiser) -> Denoiser:
        def call(x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
            raise RuntimeError("out of memory")

        return call

    rollout = Rollout(nano_dit(), spec(), hooks=diary, wrap=broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        rollout.latents()
    assert diary.lines[-1] == "on_rollout_end"


def test_hooks_see_the_estimate_of_each_step_and_the_block_that_is_yielded():
    class Seen:
        estimates: list[Tensor] = []
        ready: list[Tensor] = []

        def call(self, hook: str, state: RolloutState, *args: Any) -> None:
            if hook == "on_denoise_step_end":
                self.estimates.append(args[0])
            if hook == "on_latents_ready":
                self.ready.append(args[0])

    latents = Rollout(nano_dit(), spec(latent_frames=4), hooks=Seen()).latents()
    assert torch.equal(torch.cat(Seen.ready, 1), latents)
    assert torch.equal(Seen.estimates[1], latents[:, :BLOCK])
    assert not torch.equal(Seen.estimates[0], Seen.estimates[1])


def unprompted(dit, scale: float) -> tuple[Callable, Callable]:
    """How a guided rollout wraps its denoiser and encodes its prompts."""
    text = text_of(dit)
    return (
        lambda denoiser: GuidedDenoiser(denoiser, scale),
        lambda prompt: stack_text([text(prompt), text("without")]),
    )


@pytest.mark.parametrize("scale", [3.0, 0.5, -1.0])
def test_guidance_goes_from_the_unprompted_velocity_past_the_prompted_one(scale):
    dit = nano_dit()
    once = DenoisingSchedule((1.0,))
    wrap, text = unprompted(dit, scale)
    guided = Rollout(dit, spec(schedule=once, guidance=scale), wrap=wrap, text=text).latents(1)
    asked = spec(schedule=once)
    noise = noise_of(asked).draw(0, 0)
    prompted, without = (noise - Rollout(dit, asked, name).latents(1) for name in ("a", "without"))
    expected = x0_from_velocity(noise, without + scale * (prompted - without), 1.0)
    torch.testing.assert_close(guided, expected, **EXACT)


def test_guidance_of_one_is_no_guidance():
    dit = nano_dit()
    wrap, text = unprompted(dit, 1.0)
    # Any other guidance doubles the batch; at scale 1 its second half cancels out.
    doubled = Rollout(dit, spec(guidance=2.0), switch_at(8), wrap=wrap, text=text)
    assert doubled.state.cache.k.shape[1] == 2
    plain = Rollout(dit, spec(guidance=1.0), switch_at(8))
    assert plain.state.cache.k.shape[1] == 1
    torch.testing.assert_close(doubled.latents(), plain.latents(), **EXACT)


def test_videos_of_a_batch_do_not_see_each_other():
    dit, asked = nano_dit(), spec(batch=2, latent_frames=10)
    noise = noise_of(asked)
    text = text_of(dit)

    class One:
        def __init__(self, video: int) -> None:
            self.video = video

        def draw(self, block_index: int, step_index: int) -> Tensor:
            return noise.draw(block_index, step_index)[self.video : self.video + 1]

    both = Rollout(
        dit, asked, "a", noise=noise, text=lambda prompt: stack_text([text("a"), text("b")])
    ).latents()
    for video, prompt in enumerate("ab"):
        alone = Rollout(dit, replace(asked, batch=1), prompt, noise=One(video)).latents()
        torch.testing.assert_close(both[video : video + 1], alone, **EXACT)


class LinearField:
    """Velocity towards a fixed clean latent, ``(x - target) / sigma``: straight lines."""

    def __init__(self, target: Tensor) -> None:
        self.target = target

    def __call__(self, x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
        sigma = inputs.timestep_BF.double() / 1000
        return None if inputs.keys_only else (x_BFCHW - self.target) / sigma


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_every_sampler_follows_straight_lines_to_their_end(sampler):
    target = torch.full(GEOMETRY.block_shape(1), 0.7, dtype=torch.float64)
    asked = spec(
        sampler=sampler, schedule=DenoisingSchedule.uniform(50, shift=3.0), latent_frames=4
    )
    latents = Rollout(nano_dit(), asked, wrap=lambda _: LinearField(target)).latents()
    torch.testing.assert_close(latents, target.repeat(1, 2, 1, 1, 1), rtol=0, atol=1e-6)


def decay(steps: int) -> Tensor:
    """Integrate dx / dsigma = x from sigma 1 to 0 by Euler steps."""
    asked = spec(
        sampler="euler", schedule=DenoisingSchedule.uniform(steps, shift=1.0), latent_frames=2
    )
    rollout = Rollout(nano_dit(), asked, wrap=lambda denoiser: lambda x_BFCHW, inputs: x_BFCHW)
    return rollout.latents() / noise_of(asked).draw(0, 0)


def test_euler_steps_on_a_linear_field_are_powers_and_tend_to_the_exponential():
    torch.testing.assert_close(decay(4), torch.full_like(decay(4), 0.75**4), rtol=1e-6, atol=0)
    exact = torch.tensor(-1.0, dtype=torch.float64).exp()
    errors = [(decay(steps) - exact).abs().max().item() for steps in (50, 100)]
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.03)


def test_the_renoising_sampler_draws_once_per_step_and_the_euler_sampler_once_per_block():
    drawn: list[tuple[int, int]] = []
    asked = spec(latent_frames=4)
    noise = noise_of(asked)

    class Counted:
        def draw(self, block_index: int, step_index: int) -> Tensor:
            drawn.append((block_index, step_index))
            return noise.draw(block_index, step_index)

    Rollout(nano_dit(), asked, noise=Counted()).latents()
    assert drawn == [(0, 0), (0, 1), (1, 0), (1, 1)]
    drawn.clear()
    Rollout(nano_dit(), replace(asked, sampler="euler"), noise=Counted()).latents()
    assert drawn == [(0, 0), (1, 0)]


def test_a_rollout_without_an_end_keeps_no_more_the_longer_it_runs():
    asked = spec(latent_frames=None, positions="relative", schedule=DenoisingSchedule((1.0,)))
    rollout = Rollout(nano_dit(torch.float32), asked)

    def tensors() -> tuple[int, int]:
        gc.collect()
        # By type: asking some objects of torch for their class warns.
        alive = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
        return len(alive), sum(x.numel() for x in alive)

    with torch.no_grad():
        stream = rollout.stream()
        for _ in islice(stream, 20):
            pass
        early = tensors()
        for _ in islice(stream, 180):
            pass
        assert tensors() == early
    assert rollout.state.block_index == 199
    assert len(rollout.state.recent) == 3
    assert rollout.state.window.end == 400
    assert torch.cat(list(rollout.state.recent)).isfinite().all()
