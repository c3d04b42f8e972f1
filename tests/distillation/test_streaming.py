"""One long video in chunks: what goes on, what counts, and where the prompt changes."""

from dataclasses import replace

import pytest
import torch
from nano import CPU, GEOMETRY, SPEC, embed, nano_dit, noise_of
from torch import Tensor

from longlive.attention.backends import sdpa_attention
from longlive.distillation.decisions import Decisions
from longlive.distillation.self_forcing import StudentRollout
from longlive.distillation.streaming import FIRST, SECOND, LongVideo, StreamingOptions
from longlive.errors import UserError

CLIP = 8
OPTIONS = StreamingOptions(latent_frames=26, overlap_latent_frames=2)


class Noise:
    def __init__(self) -> None:
        self.source = noise_of(SPEC)

    def draw(self, block_index: int, step_index: int) -> Tensor:
        return self.source.draw(block_index, step_index)

    def draw_context(self, block_index: int) -> Tensor:
        return self.source.draw(block_index, 99)


def video(
    decisions: Decisions | None = None,
    switch: int | None = None,
    image_latent=None,
    dit=None,
    **spec: object,
) -> LongVideo:
    decisions = decisions or Decisions()
    whole = replace(
        SPEC,
        latent_frames=OPTIONS.latent_frames,
        cached_latent_frames=6 + CLIP,
        recached_latent_frames=CLIP if decisions.recaches_clip else None,
        **spec,
    )
    dit = dit or nano_dit()
    rollout = StudentRollout(
        dit,
        whole,
        {FIRST: embed("a"), SECOND: embed("b")},
        decisions,
        attention=sdpa_attention,
        dtype=torch.float64,
        device=CPU,
    )
    return LongVideo(rollout, OPTIONS, CLIP, switch, image_latent)


def chunks(some: LongVideo, trains: bool = False) -> list:
    found = []
    while not some.is_over:
        found.append(some.next_chunk(Noise(), [1] * some.next_blocks, trains=trains))
    return found


def new_of(found: list) -> Tensor:
    parts = [chunk.clip[:, -(CLIP - OPTIONS.overlap_latent_frames) :] for chunk in found[1:]]
    return torch.cat([found[0].clip, *parts], 1)


def test_chunks_continue_one_video_that_equals_a_rollout_in_one_piece():
    from nano import Rollout

    found = chunks(video())
    assert len(found) == 4
    whole = Rollout(nano_dit(), replace(SPEC, latent_frames=26)).latents()
    assert torch.allclose(new_of(found), whole, atol=1e-12)


def test_a_video_with_a_switch_equals_a_rollout_with_that_switch():
    from nano import Rollout

    from longlive.rollout.prompts import PromptTimeline

    found = chunks(video(switch=14))
    timeline = PromptTimeline.switching(["a", "b"], [14])
    whole = Rollout(nano_dit(), replace(SPEC, latent_frames=26), timeline).latents()
    assert torch.allclose(new_of(found), whole, atol=1e-12)
    assert [chunk.prompt for chunk in found] == [FIRST, FIRST, SECOND, SECOND]


def test_only_new_latent_frames_count_and_every_clip_has_the_teachers_length():
    found = chunks(video())
    assert all(chunk.clip.shape[1] == CLIP for chunk in found)
    counts = [chunk.counts.flatten().tolist() for chunk in found]
    assert counts[0] == [True] * CLIP
    assert counts[1:] == [[False] * 2 + [True] * 6] * 3


def test_after_a_switch_inside_a_chunk_only_what_the_new_prompt_made_counts():
    found = chunks(video(switch=11))
    # The switch acts at latent frame 12, the fifth new one of the second chunk (8 to 13).
    assert found[1].counts.flatten().tolist() == [False] * 6 + [True] * 2
    assert found[1].prompt == SECOND


def test_the_overlap_is_what_the_chunk_before_made_and_is_in_no_graph():
    some = video()
    first = some.next_chunk(Noise(), [1] * 4, trains=True)
    second = some.next_chunk(Noise(), [1] * 3, trains=True)
    assert torch.equal(second.clip[:, :2].detach(), first.clip[:, -2:].detach())
    [gradient] = torch.autograd.grad(second.clip[:, :2].sum() + 0 * second.clip.sum(), second.clip)
    assert gradient is not None
    reached = torch.autograd.grad(second.clip.sum(), first.clip, allow_unused=True)[0]
    assert reached is None


def test_the_first_latent_of_a_later_clip_shows_the_last_frame_of_those_before_as_an_image():
    asked = []

    def image_latent(latents: Tensor) -> Tensor:
        asked.append(latents)
        return torch.full_like(latents[:, :1], 7.0)

    some = video(image_latent=image_latent)
    first = some.next_chunk(Noise(), [1] * 4, trains=False)
    second = some.next_chunk(Noise(), [1] * 3, trains=False)
    # Up to the first latent of the overlap, as the reference decodes 19 of 39.
    assert torch.equal(asked[0], first.clip[:, : CLIP - 1])
    assert (second.clip[:, 0] == 7).all()
    assert torch.equal(second.clip[:, 1:2], first.clip[:, -1:])
    # What is remembered for the next chunk is the video itself.
    third = some.next_chunk(Noise(), [1] * 3, trains=False)
    assert torch.equal(asked[1][:, 0], first.clip[:, -2])
    assert torch.equal(third.clip[:, 1:2], second.clip[:, -1:])


@pytest.mark.parametrize("sink", ["kept", "zeroed"])
def test_what_the_sink_holds_after_a_switch_is_the_decision(sink):
    some = video(Decisions(sink_after_switch=sink), switch=14)
    for _ in range(2):
        some.next_chunk(Noise(), [1] * some.next_blocks, trains=False)
    cache, sink_slots = some.rollout.cache, slice(0, 2)
    before = cache.k[:, :, sink_slots].clone()
    some.next_chunk(Noise(), [1] * 3, trains=False)
    after = cache.k[:, :, sink_slots]
    assert torch.equal(after, before) == (sink == "kept")
    assert (after == 0).all() == (sink == "zeroed")


def test_a_zeroed_sink_changes_what_comes_after_the_switch():
    kept = new_of(chunks(video(switch=14)))
    zeroed = new_of(chunks(video(Decisions(sink_after_switch="zeroed"), switch=14)))
    assert torch.equal(kept[:, :14], zeroed[:, :14])
    assert not torch.allclose(kept[:, 14:16], zeroed[:, 14:16])


def test_the_reference_rebuilds_the_sink_only_where_a_whole_clip_is_recached_from_the_start():
    decisions = Decisions.reference()
    early, late = video(decisions, switch=8), video(decisions, switch=14)
    for some, before in ((early, 1), (late, 2)):
        for _ in range(before + 1):
            some.next_chunk(Noise(), [1] * some.next_blocks, trains=False)
    assert not (early.rollout.cache.k[:, :, :2] == 0).any()
    assert (late.rollout.cache.k[:, :, :2] == 0).all()


def test_text_is_refreshed_after_an_update_unless_decided_otherwise():
    for refreshes in (True, False):
        some = video(Decisions(refreshes_text=refreshes))
        some.next_chunk(Noise(), [1] * 4, trains=False)
        before = some.rollout.state.cross_cache[0][0].clone()
        with torch.no_grad():
            some.rollout.dit.text_embedding[0].weight.mul_(1.5)
        some.next_chunk(Noise(), [1] * 3, trains=False)
        changed = not torch.equal(some.rollout.state.cross_cache[0][0], before)
        assert changed == refreshes


def test_a_stored_video_goes_on_bit_for_bit():
    dit = nano_dit()
    whole = chunks(video(switch=14, dit=dit))
    some = video(switch=14, dit=dit)
    for _ in range(2):
        some.next_chunk(Noise(), [1] * some.next_blocks, trains=False)
    other = video(switch=14, dit=dit)
    other.load_state_dict(some.state_dict())
    for expected in whole[2:]:
        found = other.next_chunk(Noise(), [1] * 3, trains=False)
        assert torch.equal(found.clip, expected.clip)
        assert found.prompt == expected.prompt


def test_the_chunks_of_the_published_recipe_end_at_237():
    options = StreamingOptions()
    starts = options.check(21, 3).starts(21)
    assert starts == [0, *range(21, 220, 18)]
    assert starts[-1] + 18 == 237
    assert options.switches(21) == list(range(21, 220, 18))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (StreamingOptions(switch_latent_frames=(300,)), "a switch at latent frame 300 is beyond"),
        (StreamingOptions(switch_latent_frames=(235,)), "its last block starts at 234"),
        (StreamingOptions(switch_latent_frames=(0,)), "switch at latent frame 0"),
        (StreamingOptions(overlap_latent_frames=4), "overlap_latent_frames"),
        (StreamingOptions(overlap_latent_frames=21), "overlap_latent_frames"),
        (StreamingOptions(latent_frames=18), "at least 21"),
        (StreamingOptions(latent_frames=21), "no place for a switch"),
        (StreamingOptions(switch_share=1.5), "switch_share"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options, named):
    with pytest.raises(UserError, match=named) as error:
        options.check(21, 3)
    assert "\n" not in str(error.value)


def test_the_last_switch_that_fits_is_accepted():
    StreamingOptions(switch_latent_frames=(234,)).check(21, 3)
    assert GEOMETRY.block_latent_frames == 2
