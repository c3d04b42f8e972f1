"""Who may see whom, in training's one pass over all blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longlive.attention.backends import masked_attention, sdpa_attention
from longlive.attention.masks import BlockCausal, _sparse_mask, mask_for
from longlive.attention.window import SlotWindow

CPU = torch.device("cpu")


def seen_frames(rule: BlockCausal) -> list[set[int]]:
    """For each latent frame of the sequence the ones that it sees."""
    frame = torch.arange(rule.sequence_latent_frames)
    table = rule.sees(frame[:, None], frame[None, :])
    return [set(row.nonzero().flatten().tolist()) for row in table]


def visible(block_end: int, window: int | None, sink: int) -> set[int]:
    """The sink and the most recent latent frames that fit beside it, own block included."""
    if window is None:
        return set(range(block_end))
    recent = range(max(0, block_end - (window - sink)), block_end)
    return {*range(min(sink, block_end)), *recent}


@st.composite
def rules(draw, *, teacher_forcing: bool) -> BlockCausal:
    block, sink = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    window = draw(st.one_of(st.none(), st.integers(sink + block, 16)))
    frames = block * draw(st.integers(1, 8))
    return BlockCausal(frames, block, window, sink, teacher_forcing)


def block_end_of(frame: int, rule: BlockCausal) -> int:
    return (frame // rule.block + 1) * rule.block


@settings(deadline=None)
@given(rules(teacher_forcing=False))
def test_a_block_sees_itself_and_what_its_window_holds(rule):
    for frame, seen in enumerate(seen_frames(rule)):
        end = block_end_of(frame, rule)
        own = set(range(end - rule.block, end))
        # A sink that the block is part of is the block's own business.
        past = {f for f in visible(end, rule.window, rule.sink) if f < end - rule.block}
        assert seen == own | past


@settings(deadline=None)
@given(rules(teacher_forcing=True))
def test_teacher_forcing_shows_clean_history_and_the_noisy_block_itself(rule):
    seen, frames = seen_frames(rule), rule.latent_frames
    for frame in range(frames):
        end = block_end_of(frame, rule)
        own = set(range(end - rule.block, end))
        past = visible(end, rule.window, rule.sink) - own
        assert seen[frame] == past | own
        assert seen[frames + frame] == past | {frames + f for f in own}


def test_the_window_of_twelve_is_three_of_sink_six_of_past_and_the_block():
    seen = seen_frames(BlockCausal(21, 3, 12, 3))
    assert seen[12] == seen[13] == seen[14] == {0, 1, 2, *range(6, 15)}
    assert seen[4] == set(range(6))


def test_a_noisy_block_never_sees_another_noisy_block_or_its_own_clean_one():
    seen = seen_frames(BlockCausal(9, 3, 12, 3, teacher_forcing=True))
    assert seen[9 + 4] == {0, 1, 2, 12, 13, 14}
    assert seen[4] == set(range(6))


@settings(deadline=None)
@given(rules(teacher_forcing=False))
def test_the_mask_of_training_is_the_window_of_a_rollout(rule):
    slots = rule.window or rule.latent_frames
    if rule.sink > rule.block:
        return
    window = SlotWindow(slots, slots, rule.sink, evicts=rule.window is not None)
    held, seen = {}, seen_frames(rule)
    for start in range(0, rule.latent_frames, rule.block):
        plan = window.plan(start, rule.block)
        held.update(zip(plan.write_slots, range(start, start + rule.block), strict=True))
        window.commit(plan)
        in_rollout = {held[slot] for slot in plan.read_slots if slot in held}
        assert seen[start] == seen[start + rule.block - 1] == in_rollout


def test_every_token_of_a_latent_frame_gets_the_latent_frame_s_mask():
    rule = BlockCausal(4, 2, 3, 1)
    mask = mask_for(rule, 5, CPU)
    assert mask.shape == (20, 20)
    assert mask.dtype == torch.bool
    for query, seen in enumerate(seen_frames(rule)):
        for key in range(4):
            tile = mask[5 * query : 5 * query + 5, 5 * key : 5 * key + 5]
            assert (tile == (key in seen)).all()


def test_the_same_rule_builds_its_mask_once():
    assert mask_for(BlockCausal(4, 2, 3, 1), 5, CPU) is mask_for(BlockCausal(4, 2, 3, 1), 5, CPU)


@pytest.mark.parametrize("teacher_forcing", [False, True])
def test_masked_attention_of_a_block_is_plain_attention_over_what_it_sees(teacher_forcing):
    rule, tokens = BlockCausal(12, 2, 6, 2, teacher_forcing), 3
    length = rule.sequence_latent_frames * tokens
    q, k, v = torch.randn(3, 2, length, 2, 8, dtype=torch.float64)
    out = masked_attention(q, k, v, mask_for(rule, tokens, CPU))
    out = out.unflatten(1, (-1, tokens))
    q, k, v = (x.unflatten(1, (-1, tokens)) for x in (q, k, v))
    for query, seen in enumerate(seen_frames(rule)):
        frames = sorted(seen)
        keys, values = k[:, frames].flatten(1, 2), v[:, frames].flatten(1, 2)
        torch.testing.assert_close(out[:, query], sdpa_attention(q[:, query], keys, values))


@pytest.mark.parametrize("teacher_forcing", [False, True])
def test_the_sparse_mask_asks_the_same_rule_about_tokens(teacher_forcing):
    rule = BlockCausal(12, 3, 9, 3, teacher_forcing)
    token = torch.arange(5 * rule.sequence_latent_frames)
    sparse = _sparse_mask(rule, 5, CPU)
    assert sparse.shape == (1, 1, len(token), len(token))
    seen = sparse.mask_mod(0, 0, token[:, None], token[None, :])
    assert torch.equal(seen, mask_for(rule, 5, CPU))


@pytest.mark.gpu
@pytest.mark.parametrize("teacher_forcing", [False, True])
def test_the_sparse_mask_of_a_gpu_equals_the_dense_one(teacher_forcing):
    rule, tokens = BlockCausal(12, 3, 9, 3, teacher_forcing), 40
    length = rule.sequence_latent_frames * tokens
    q, k, v = torch.randn(3, 1, length, 2, 64, device="cuda")
    sparse = masked_attention(q, k, v, mask_for(rule, tokens, q.device))
    dense = masked_attention(q, k, v, mask_for(rule, tokens, CPU).cuda())
    torch.testing.assert_close(sparse, dense, rtol=2e-3, atol=2e-3)  # TF32 in the kernel
