"""Going back to a block: everything that the next block depends on comes back."""

import pytest
import torch
from nano import Rollout, nano_dit, spec
from torch import Tensor, nn

from longlive.models.decoding_stream import DecodingStream
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.snapshot import RolloutSnapshot, restore_snapshot, take_snapshot
from longlive.rollout.state import RolloutState
from longlive.rollout.transitions import SWITCH, Transition


class Decoder(DecodingStream[Tensor]):
    """Sums up what it was given, and remembers the sum."""

    def __init__(self) -> None:
        super().__init__(self._add, torch.zeros(()), nn.Identity())

    @staticmethod
    def _add(latents_BFCHW: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = state + latents_BFCHW.sum()
        return state.expand(1, 4 * latents_BFCHW.shape[1], 3, 8, 8), state


class Rewinds:
    """Takes snapshots, and goes back where a plan says so: after a block, to before another."""

    def __init__(self, decoder: Decoder, plan: dict[int, int]) -> None:
        self.decoder = decoder
        self.plan = plan
        self.kept: dict[int, RolloutSnapshot] = {}

    def call(self, hook: str, state: RolloutState, *args) -> None:
        if hook == "on_rollout_start":
            state.block_index = -1
            self.kept[0] = take_snapshot(state, self.decoder)
        elif hook == "on_block_end":
            done = state.block_index
            self.kept[done + 1] = take_snapshot(state, self.decoder)
            if done in self.plan:
                restore_snapshot(state, self.decoder, self.kept[self.plan.pop(done)])


class Script:
    """Prompts by block, whichever way the blocks come."""

    def __init__(self, *prompts: tuple[int, str, Transition]) -> None:
        self.prompts = {start: (prompt, how) for start, prompt, how in prompts}
        self.prompt, self.transition = "a", SWITCH

    def expects(self, start: int) -> Transition | None:
        return self.prompts[start][1] if start in self.prompts else None

    def advance(self, start: int) -> str | None:
        if start not in self.prompts:
            self.prompt = self.prompt if start else "a"
            return None
        self.prompt, self.transition = self.prompts[start]
        return self.prompt


def run(
    dit, plan: dict[int, int], prompts=None, blocks: int = 8
) -> list[tuple[int, Tensor, float]]:
    decoder = Decoder()
    rollout = Rollout(
        dit, spec(), prompts or PromptTimeline.single("a"), hooks=Rewinds(decoder, plan)
    )
    made = []
    with torch.no_grad():
        for latents in rollout.stream():
            frames = decoder.decode(latents)
            made.append((rollout.state.block_index, latents, float(frames[0, 0, 0, 0, 0])))
            if rollout.state.block_index == blocks - 1 and not plan:
                break
    return made


@pytest.mark.parametrize(("after", "before"), [(1, 1), (2, 0), (6, 2), (7, 5), (5, 0)])
def test_what_follows_a_restored_snapshot_is_what_followed_it_before(after, before):
    dit = nano_dit()
    straight = run(dit, {})
    rewound = run(dit, {after: before}, Script())
    indices = [index for index, _, _ in rewound]
    assert indices == [*range(after + 1), *range(before, 8)]
    for index, latents, frame in rewound:
        assert torch.equal(latents, straight[index][1])
        assert frame == straight[index][2]


def test_a_snapshot_can_be_restored_twice():
    dit = nano_dit()
    straight = run(dit, {})
    rewinds = Rewinds(decoder := Decoder(), {6: 2, 7: 2})
    rollout = Rollout(dit, spec(), Script(), hooks=rewinds)
    made = []
    with torch.no_grad():
        for latents in rollout.stream():
            decoder.decode(latents)
            made.append((rollout.state.block_index, latents))
            if len(made) == 18:
                break
    assert [index for index, _ in made] == [*range(7), *range(2, 8), *range(2, 7)]
    assert all(torch.equal(latents, straight[index][1]) for index, latents in made)


@pytest.mark.parametrize("kind", ["switch", "cut"])
def test_a_prompt_after_going_back_equals_having_asked_for_it_there(kind):
    dit = nano_dit()
    how = Transition(kind)
    asked = run(dit, {}, PromptTimeline(("a", "b"), (6,), (how,)))
    script = Script()
    rewinds = Rewinds(decoder := Decoder(), {5: 3})
    rollout = Rollout(dit, spec(), script, hooks=rewinds)
    with torch.no_grad():
        for count, latents in enumerate(rollout.stream()):
            frame = float(decoder.decode(latents)[0, 0, 0, 0, 0])
            index = rollout.state.block_index
            if count == 5:
                script.prompts[6] = ("b", how)
            if count > 5:
                assert torch.equal(latents, asked[index][1])
                assert frame == asked[index][2]
    assert count == 10


def test_only_the_slots_in_use_are_kept():
    dit = nano_dit()
    rewinds = Rewinds(Decoder(), {})
    rollout = Rollout(dit, spec(), hooks=rewinds)
    rollout.latents(4)
    sizes = [rewinds.kept[block].keys_values[0].shape[2] for block in range(4)]
    assert sizes == [0, 2, 4, 6]
    full = rewinds.kept[3]
    assert full.nbytes > 2 * full.keys_values[0].nbytes
