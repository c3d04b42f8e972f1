"""The denoising loop: block after block, from noise to clean latents, and the prompt in between."""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns.

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from longlive.rollout.denoiser import Denoiser
from longlive.rollout.hooks import RolloutHooks
from longlive.rollout.noise import NoiseSource
from longlive.rollout.preemption import BlockBorder, Preempted
from longlive.rollout.prompts import Prompts
from longlive.rollout.state import RolloutState, without_dropped
from longlive.rollout.transitions import Blend, Mixture, Transition, only
from longlive.schedule import add_noise, euler_step, x0_from_velocity

TextKeysValuesOf = Callable[[str], list[tuple[Tensor, Tensor]]]
"""Keys and values of a prompt for every layer, in the network's batch."""
BlendedTextOf = Callable[[Mixture], list[tuple[Tensor, Tensor]]]
"""The same of a mixture of text embeddings."""


def _never() -> str | None:
    return None


def _unseen(x0_BFCHW: Tensor) -> None:
    """Nobody looks at a block before it is whole."""


def stream_blocks(
    state: RolloutState,
    denoiser: Denoiser,
    noise: NoiseSource,
    prompts: Prompts,
    text_of: TextKeysValuesOf,
    hooks: RolloutHooks,
    blended_text_of: BlendedTextOf | None = None,
    on_part: Callable[[Tensor], None] = _unseen,
) -> Generator[Tensor, None, None]:
    """Denoise block after block and yield each block's clean latents.

    A block is yielded before its context update, so that a viewer need not wait for it; the update
    runs when the next block is asked for, unless a prompt is known by then that replaces what it
    would store. A change of prompt takes effect at the next block start;
    if ``state.spec.preempts``, the block at hand is given up for it between two denoising steps and
    begun again, see :mod:`longlive.rollout.preemption`.

    A hook may put an earlier state back in ``on_block_end``, see :mod:`longlive.rollout.snapshot`;
    the block after the restored ``state.block_index`` is then the next.

    Args:
        state: A freshly allocated rollout; it is advanced in place.
        denoiser: The network call.
        noise: Noise per block and step.
        prompts: Which prompt becomes active when; may be asked for another one while this runs.
        text_of: Encodes a prompt.
        hooks: Who is told.
        blended_text_of: Encodes a mixture of prompts; only blends need it.
        on_part: Is given the clean latents of each part of a block but the last, at once.

    Yields:
        ``[B, F, C, H, W]``, F latent frames per block, in time order.
    """

    def begin(prompt: str | None) -> None:
        """Bring the block at hand under a prompt, or go on with the active one."""
        if prompt is not None:
            begin_transition(state, prompt, prompts.transition)
        if state.blend is not None:
            blend_prompt(state, prompt, blended_text_of or _no_blends, hooks)
        elif prompt is not None:
            switch_prompt(state, denoiser, prompt, text_of, hooks)

    try:
        hooks.call("on_rollout_start", state)
        blocks, frames = state.spec.blocks, state.spec.geometry.block_latent_frames
        block_index = 0
        while blocks is None or block_index < blocks:
            prompt = prompts.advance(block_index * frames)
            if block_index == 0:
                prompt = prompts.prompt
            settle_block(state, denoiser, prompt, prompts.transition, hooks)
            state.block_index, state.part_index = block_index, 0
            border = BlockBorder.of(state)
            begin(prompt)
            preempt = prompts.preempt if state.spec.preempts else _never
            try:
                x0_BFCHW = next_block(state, denoiser, noise, hooks, preempt, on_part)
            except Preempted as preempted:
                hooks.call("on_block_abandoned", state)
                border.restore(state)
                begin(preempted.prompt)
                x0_BFCHW = next_block(state, denoiser, noise, hooks, _never, on_part)
            yield x0_BFCHW
            finish_block(state, denoiser, x0_BFCHW, prompts, hooks)
            hooks.call("on_block_end", state)
            block_index = state.block_index + 1
    finally:
        hooks.call("on_rollout_end", state)


def next_block(
    state: RolloutState,
    denoiser: Denoiser,
    noise: NoiseSource,
    hooks: RolloutHooks,
    preempt: Callable[[], str | None] = _never,
    on_part: Callable[[Tensor], None] = _unseen,
) -> Tensor:
    """Denoise the block at hand and remember it; its clean keys are not stored yet.

    Of a block in parts each sees those before it, whose clean keys are stored at once. Only the
    very first block is one, and that is never given up.

    Args:
        state: Where the rollout stands.
        denoiser: The network call.
        noise: Noise per block and step.
        hooks: Who is told.
        preempt: Asked between two steps for a prompt to give the block up for.
        on_part: Is given the clean latents of each part but the last, at once.

    Raises:
        Preempted: If there is one.
    """
    hooks.call("on_block_start", state)
    parts: list[Tensor] = []
    for part_index in range(len(state.spec.parts_of(state.block_index))):
        if parts:
            hooks.call("on_part_ready", state, parts[-1])
            on_part(parts[-1])
            if state.spec.updates_context:
                update_context(state, denoiser, parts[-1], hooks)
        state.part_index = part_index
        parts.append(denoise_part(state, denoiser, noise, hooks, preempt))
    x0_BFCHW = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    # A recache replays values; in training the graph of a block ends here.
    state.recent.append(x0_BFCHW.detach())
    hooks.call("on_latents_ready", state, x0_BFCHW)
    return x0_BFCHW


def finish_block(
    state: RolloutState,
    denoiser: Denoiser,
    x0_BFCHW: Tensor,
    prompts: Prompts,
    hooks: RolloutHooks,
) -> None:
    """Store the clean keys of the block at hand, unless a prompt is expected to replace them."""
    if not state.spec.updates_context:
        return
    next_start = state.block_start + state.spec.geometry.block_latent_frames
    if not state.spec.computes_unread and replaces_keys(state, prompts.expects(next_start)):
        state.unstored = x0_BFCHW[:, state.part]
    else:
        update_context(state, denoiser, x0_BFCHW[:, state.part], hooks)


def settle_block(
    state: RolloutState,
    denoiser: Denoiser,
    prompt: str | None,
    transition: Transition,
    hooks: RolloutHooks,
) -> None:
    """Store what :func:`finish_block` has left, if the prompt that it expected was withdrawn."""
    x0_BFCHW, state.unstored = state.unstored, None
    is_replaced = prompt is not None and replaces_keys(state, transition)
    if x0_BFCHW is not None and not is_replaced:
        update_context(state, denoiser, x0_BFCHW, hooks)


def replaces_keys(state: RolloutState, transition: Transition | None) -> bool:
    """Whether a prompt that begins so leaves nobody the keys of the block before it.

    A cut forgets the window, and a recache writes the newest blocks again, even one of a part.
    """
    if transition is None:
        return False
    return transition.kind == "cut" or (transition.kind == "switch" and state.spec.recaches)


def update_context(
    state: RolloutState, denoiser: Denoiser, x0_BFCHW: Tensor, hooks: RolloutHooks
) -> None:
    """Store the clean keys of the block, or of the part of it, that was denoised last."""
    hooks.call("on_context_update_start", state)
    plan = state.plan_block()
    state.place_sink(plan)
    denoiser(x0_BFCHW, state.step_inputs(plan, state.spec.context_sigma, keys_only=True))
    hooks.call("on_context_update_end", state)


def denoise_part(
    state: RolloutState,
    denoiser: Denoiser,
    noise: NoiseSource,
    hooks: RolloutHooks,
    preempt: Callable[[], str | None],
) -> Tensor:
    """Take a block, or a part of one, from noise to clean latents, unless it is given up."""
    x_BFCHW = x0_BFCHW = noise.draw(state.block_index, 0)[:, state.part]
    for step_index, (sigma, next_sigma) in enumerate(state.schedule.transitions):
        state.step_index = step_index
        plan = state.plan_block()
        state.place_sink(plan)
        hooks.call("on_denoise_step_start", state, sigma)
        velocity_BFCHW = denoiser(x_BFCHW, state.step_inputs(plan, sigma))
        assert velocity_BFCHW is not None
        # The first call made room for the block; the later ones overwrite its slots.
        state.window.commit(plan)
        x0_BFCHW = x0_from_velocity(x_BFCHW, velocity_BFCHW, sigma)
        hooks.call("on_denoise_step_end", state, x0_BFCHW)
        if next_sigma == 0:
            break
        if (prompt := preempt()) is not None:
            raise Preempted(prompt)
        if state.spec.sampler == "renoise":
            fresh_BFCHW = noise.draw(state.block_index, step_index + 1)[:, state.part]
            x_BFCHW = add_noise(x0_BFCHW, fresh_BFCHW, next_sigma)
        else:
            x_BFCHW = euler_step(x_BFCHW, velocity_BFCHW, sigma, next_sigma)
    return x0_BFCHW


def begin_transition(state: RolloutState, prompt: str, transition: Transition) -> None:
    """Prepare the way to a prompt: forget the past for a cut, note the blend for a blend."""
    state.blend = None
    if state.block_index == 0:
        return
    if transition.kind == "blend":
        state.blend = Blend(state.mixture, prompt, transition.blocks)
    elif transition.kind == "cut":
        state.window.restart(state.block_start)
        state.recent.clear()


def blend_prompt(
    state: RolloutState, prompt: str | None, text_of: BlendedTextOf, hooks: RolloutHooks
) -> None:
    """Take a blend one block further; the window stays as it is.

    Args:
        state: Whose ``blend`` is advanced.
        prompt: The goal, in the blend's first block.
        text_of: Encodes a mixture of prompts.
        hooks: Who is told.
    """
    assert state.blend is not None
    blend = state.blend.advance()
    state.blend = None if blend.is_over else blend
    state.mixture = blend.mixture
    if prompt is not None:
        state.prompt = prompt
        hooks.call("on_text_encoding_start", state)
    state.cross_cache.store(text_of(state.mixture))
    if prompt is not None:
        hooks.call("on_prompt_switch", state)


def _no_blends(mixture: Mixture) -> list[tuple[Tensor, Tensor]]:
    raise ValueError("this rollout was not told how to encode a mixture of prompts")


def switch_prompt(
    state: RolloutState,
    denoiser: Denoiser,
    prompt: str,
    text_of: TextKeysValuesOf,
    hooks: RolloutHooks,
) -> None:
    """Make a prompt active, and rebuild the window under it if there is one and it is wanted."""
    state.prompt = prompt
    state.mixture = only(prompt)
    hooks.call("on_text_encoding_start", state)
    state.cross_cache.store(text_of(prompt))
    hooks.call("on_prompt_switch", state)
    if state.recent and state.spec.recaches:
        hooks.call("on_recache_start", state)
        recache(state, denoiser)
        hooks.call("on_recache_end", state)


def recache(state: RolloutState, denoiser: Denoiser) -> None:
    """Rebuild the window's keys and values under the active prompt.

    Without this the old prompt stays in the stored keys and the new one fades in over a whole
    window instead of switching (KV recache, arXiv:2509.22622). One denoiser call over all latent
    frames of the window, without a mask: they see each other in both directions, as in the
    reference, which builds a mask for this call and never uses it. No noise is drawn.

    A protected sink drops the first frames of the call, and nothing else sees them; they are left
    out unless ``spec.computes_unread``.

    If fewer frames than the window's are wanted, the newest are rebuilt. They see the others, sink
    included, whose keys and values stay those of the prompts they were made under.
    """
    known = state.block_start
    of_shot = known - state.window.origin
    whole = min(state.spec.window_latent_frames or of_shot, of_shot)
    frames = min(state.spec.recached_latent_frames or whole, of_shot)
    # A recache of a part does not move the sink: half of an old one and half of a new one is none.
    protects_sink = state.spec.keeps_sink or frames < whole
    plan = state.window.plan(known - frames, frames, protects_sink=protects_sink)
    call = plan if state.spec.computes_unread else without_dropped(plan)
    state.place_sink(call)
    latents_BFCHW = torch.cat(list(state.recent), 1)[:, -call.frames :]
    denoiser(latents_BFCHW, state.step_inputs(call, state.spec.context_sigma, keys_only=True))
    state.window.commit(plan)
