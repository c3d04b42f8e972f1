"""The playout buffer: bounded, and without a frame that nobody wants any more."""

import numpy as np

from longlive.live.playout import Frame, Playout
from longlive.live.protocol import PictureFlag

NOTHING = PictureFlag(0)


def frames(block: int, count: int = 3, flags: PictureFlag = NOTHING) -> list[Frame]:
    pixels = np.zeros((2, 2, 3), np.uint8)
    return [
        Frame(pixels, 0, block, 10 * block + i, 1, flags if i == 0 else NOTHING)
        for i in range(count)
    ]


def numbers(playout: Playout) -> list[int]:
    taken = []
    while (frame := playout.take()) is not None:
        taken.append(frame.frame)
    return taken


def test_frames_come_out_in_the_order_they_went_in():
    playout = Playout(depth=6)
    for block in (1, 2):
        playout.put(playout.expect(3), frames(block))
    assert numbers(playout) == [10, 11, 12, 20, 21, 22]
    assert playout.take() is None


def test_a_block_may_begin_only_while_less_than_the_depth_is_ready_or_on_its_way():
    playout = Playout(depth=4)
    assert playout.has_room
    generation = playout.expect(3)
    assert playout.has_room
    playout.expect(3)
    assert not playout.has_room
    playout.put(generation, frames(1))
    assert not playout.has_room
    playout.take()
    playout.take()
    assert not playout.has_room
    playout.take()
    assert playout.has_room
    assert not playout.is_empty


def test_the_first_frames_of_a_prompt_replace_those_of_the_older_one_and_say_that_they_jump():
    playout = Playout(depth=9)
    playout.put(playout.expect(3), frames(1))
    playout.put(playout.expect(3), frames(2))
    playout.take()
    playout.put(playout.expect(3), frames(3, flags=PictureFlag.FIRST_OF_PROMPT))
    assert playout.dropped == 5
    first = playout.take()
    assert first.frame == 30
    assert first.flags == PictureFlag.FIRST_OF_PROMPT | PictureFlag.JUMP
    assert [playout.take().flags for _ in range(2)] == [NOTHING, NOTHING]


def test_a_new_prompt_behind_an_empty_buffer_is_no_jump():
    playout = Playout(depth=9)
    playout.put(playout.expect(3), frames(1, flags=PictureFlag.FIRST_OF_PROMPT))
    assert playout.take().flags == PictureFlag.FIRST_OF_PROMPT
    assert playout.dropped == 0


def test_after_a_jump_frames_that_were_on_their_way_are_not_taken():
    playout = Playout(depth=6)
    playout.put(playout.expect(3), frames(1))
    late = playout.expect(3)
    playout.clear()
    assert playout.is_empty
    assert not playout.put(late, frames(2))
    assert numbers(playout) == []
    assert playout.put(playout.expect(3), frames(3))
    assert playout.take().flags == PictureFlag.JUMP
