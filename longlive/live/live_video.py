"""What a viewer has asked for and where the rollout stands in it: the rules without threads."""

from collections.abc import Iterable
from dataclasses import dataclass

from longlive.data.sessions import BranchTree, PromptEvent
from longlive.errors import UserError
from longlive.geometry import frames_of
from longlive.live.protocol import Branches, BranchInfo, State, StateName
from longlive.live.recipes import Setup
from longlive.rollout.snapshot import BEFORE_THE_FIRST
from longlive.rollout.transitions import SWITCH, Transition


@dataclass(frozen=True, slots=True)
class Effect:
    """Where a command takes effect.

    Attributes:
        branch: On which branch.
        block: With which block.
        frame: Its first frame, counted from the start of the branch's video.
        replaces: The id of an earlier prompt that will not be shown, if any.
        unchanged: Whether nothing changes, because the prompt is the active one.
    """

    branch: int
    block: int
    frame: int
    replaces: int | None = None
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class Jump:
    """A way to the start of a block that the rollout has not gone yet.

    Attributes:
        block: Which one.
        is_new_video: Whether nothing made before belongs to it.
    """

    block: int
    is_new_video: bool


class OutOfOrder(UserError):
    """A command that makes no sense now."""


class LiveVideo:
    """One video and the commands it is given. Not thread-safe: used under the engine's lock.

    Args:
        block_latent_frames: Latent frames of a block.

    Attributes:
        tree: Its branches, prompts and seeds; None before the first start.
        serial: Counts the videos.
        setup: What its rollout is built for.
        is_playing: Whether it is started, not stopped and not at its end.
        is_paused: Whether the viewer has frozen it.
        is_held: Whether the first block of a branch waits for ``resume``, so that a prompt that
            comes meanwhile begins with it.
        has_shown: Whether a frame was shown since the start.
        is_recording: Whether what is shown is recorded.
        jump: Where the rollout has to go before the next block, if anywhere.
        muted_until: Blocks before this one are made again only to get here.
        is_open: Whether a prompt may still begin with the block at hand, which is then begun again.
        pins: Blocks whose state was asked to be kept.
    """

    def __init__(self, block_latent_frames: int) -> None:
        self.tree: BranchTree | None = None
        self.serial = 0
        self.setup: Setup | None = None
        self.is_playing = self.is_paused = self.has_shown = self.is_recording = False
        self.is_held = self.is_open = False
        self.jump: Jump | None = None
        self.muted_until = 0
        self.pins: set[int] = set()
        self._block_latent_frames = block_latent_frames
        self._transition = SWITCH
        self._length: int | None = None
        self._begun = BEFORE_THE_FIRST
        self._made = 0

    # ---- Orders ----

    def start(
        self,
        prompts: Iterable[PromptEvent],
        seed: int,
        setup: Setup,
        *,
        transition: Transition = SWITCH,
        blocks: int | None = None,
    ) -> Effect:
        """Begin a new video."""
        self.tree = BranchTree.begin(prompts, seed)
        self.serial += 1
        self.setup = setup
        self._transition = transition
        self._length = blocks
        self.pins.clear()
        self.is_playing, self.is_paused, self.has_shown = True, False, False
        self.is_held = False
        return self._go_to(0, is_new_video=True)

    def ask(self, request: int, prompt: str, transition: Transition | None) -> Effect:
        """Let a prompt begin with the next block, or with the one at hand while that is open.

        Raises:
            OutOfOrder: If nothing plays.
        """
        tree = self.playing_tree()
        block = self._begun if self.is_open and self.jump is None else self.next_block
        if self._length is not None and block >= self._length:
            raise OutOfOrder("the last block has begun; start another video or go back")
        chosen = transition or self._transition
        replaced = tree.ask(PromptEvent(block, prompt, chosen, request))
        return Effect(
            tree.current,
            block,
            self.frame_of(block),
            replaces=None if replaced is None else replaced.request,
            unchanged=tree.event_at(tree.current, block) is None,
        )

    def back(
        self,
        branch: int,
        block: int,
        *,
        prompt: PromptEvent | None = None,
        seed: int | None = None,
        play: bool = True,
    ) -> Effect:
        """Branch at the start of a block.

        Raises:
            UserError: If there is no such block.
        """
        if self.tree is None:
            raise OutOfOrder("there is no video to go back in; start one")
        length = self._length
        if length is not None and block >= length:
            raise UserError(f"the video ends before block {block}; go back to an earlier one")
        self.tree.branch_off(branch, block, seed)
        if prompt is not None:
            self.tree.ask(prompt)
        self.is_playing, self.is_paused, self.is_held = True, not play, not play
        return self._go_to(block, is_new_video=False)

    def transition_of(self, asked: Transition | None) -> Transition:
        """The transition that was asked for, or the video's own."""
        return asked or self._transition

    def pause(self, is_paused: bool) -> Effect:
        """Freeze or go on.

        Raises:
            OutOfOrder: If nothing plays.
        """
        self.playing_tree()
        self.is_paused = is_paused
        self.is_held = self.is_held and is_paused
        return self._effect()

    def stop(self) -> Effect:
        """End the video.

        Raises:
            OutOfOrder: If nothing plays.
        """
        self.playing_tree()
        effect = self._effect()
        self.is_playing = self.is_paused = self.is_held = False
        return effect

    def pin(self) -> Effect:
        """Keep the state before the next block for good.

        Raises:
            OutOfOrder: If nothing plays.
        """
        self.playing_tree()
        self.pins.add(self.next_block)
        return self._effect()

    def here(self) -> Effect:
        """Where an order that changes nothing in the video takes effect."""
        return self._effect() if self.tree is not None else Effect(0, 0, 0)

    # ---- The rollout's side ----

    @property
    def next_block(self) -> int:
        """The block that begins next, as the viewer counts."""
        if self.jump is not None:
            return self.jump.block
        return max(self._begun + 1, self.muted_until)

    @property
    def is_remaking(self) -> bool:
        """Whether the next block was made before, and only leads to where the viewer went."""
        return self._begun + 1 < self.muted_until

    @property
    def may_begin(self) -> bool:
        """Whether there is a block to begin."""
        is_whole = self._length is not None and self._begun + 1 >= self._length
        waits = self.is_held and not self.is_remaking
        return self.is_playing and self.jump is None and not is_whole and not waits

    @property
    def is_whole(self) -> bool:
        """Whether all blocks that were asked for are made."""
        return (
            self._length is not None
            and self.jump is None
            and self.tree is not None
            and self.tree.branch.blocks >= self._length
        )

    def arrive(self, block_index: int) -> None:
        """The rollout has gone back to after a block, at or before where it was sent."""
        assert self.jump is not None
        self.muted_until = self.jump.block
        self._begun = block_index
        self.is_open = False
        self.jump = None

    def begin(self, block: int) -> PromptEvent | None:
        """A block begins; return the prompt that begins with it, if one does."""
        assert self.tree is not None
        self._begun = block
        return self.tree.event_at(self.tree.current, block)

    def finish(self, block: int) -> None:
        """A block that began here is made."""
        assert self.tree is not None
        branch = self.tree.branch
        if block >= branch.block:
            branch.blocks = max(branch.blocks, block + 1)

    def frame_of(self, block: int) -> int:
        """First frame of a block."""
        return frames_of(block * self._block_latent_frames)

    # ---- For the viewer ----

    @property
    def state(self) -> State:
        """What the viewer is told."""
        name: StateName = "idle"
        if self.is_playing:
            name = "playing" if self.has_shown else "starting"
            name = "paused" if self.is_paused else name
        branch = self.tree.current if self.tree is not None else 0
        return State(name, branch, self.next_block, self.is_recording)

    @property
    def branches(self) -> Branches:
        """All branches, as the viewer is told."""
        tree = self.tree or BranchTree([])
        infos = tuple(
            BranchInfo(made.id, made.parent, made.block, made.blocks, made.seed)
            for made in tree.branches
        )
        return Branches(tree.current, infos)

    def playing_tree(self) -> BranchTree:
        """The branches of a video that plays.

        Raises:
            OutOfOrder: If none does.
        """
        if self.tree is None or not self.is_playing:
            raise OutOfOrder("nothing plays; start a video first")
        return self.tree

    def _go_to(self, block: int, *, is_new_video: bool) -> Effect:
        # A jump that was not made yet may have been the one to a new video.
        if self.jump is not None and self.jump.is_new_video:
            is_new_video = True
        self.jump = Jump(block, is_new_video)
        return self._effect()

    def _effect(self) -> Effect:
        assert self.tree is not None
        block = self.next_block
        return Effect(self.tree.current, block, self.frame_of(block))
