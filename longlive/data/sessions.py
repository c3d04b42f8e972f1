"""What happened in a live session: branches of one video, and the file that makes them again.

A branch leaves its parent at the start of a block and has its own blocks from there on; before it,
its video is the parent's. Prompts and seeds belong to blocks, so a branch is a complete recipe: the
same weights and settings make the same latents, live or in batch.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longlive.errors import UserError
from longlive.rollout.transitions import SWITCH, Transition

FORMAT = "longlive-session"
VERSION = 1


@dataclass(frozen=True, slots=True)
class PromptEvent:
    """A prompt that begins with a block.

    Attributes:
        block: The first block under it.
        prompt: The text.
        transition: How it begins.
        request: Id of the request that asked for it; 0 if unknown.
    """

    block: int
    prompt: str
    transition: Transition = SWITCH
    request: int = 0


@dataclass(slots=True)
class Branch:
    """One branch of a video.

    Attributes:
        id: 0 is the first.
        parent: The branch it left; None if it begins with block 0.
        block: Its first own block.
        blocks: One past its last block that was made.
        seed: Of its own blocks' noise.
        prompts: By block, from ``block`` on; some may still be to come.
    """

    id: int
    parent: int | None
    block: int
    blocks: int
    seed: int
    prompts: dict[int, PromptEvent] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BranchVideo:
    """All that makes the video of one branch, from block 0 on.

    Attributes:
        branch: Its id.
        prompts: In order; the first begins with block 0.
        seeds: First block and seed of each stretch, in order.
        blocks: Length.
    """

    branch: int
    prompts: tuple[PromptEvent, ...]
    seeds: tuple[tuple[int, int], ...]
    blocks: int


class BranchTree:
    """The branches of one video while it is made, or as a file tells.

    Not thread-safe: the session engine calls it under its lock.

    Args:
        branches: In the order of their ids, none missing.
        current: The one at hand.
    """

    def __init__(self, branches: Iterable[Branch], current: int = 0) -> None:
        self.branches = list(branches)
        self.current = current

    @classmethod
    def begin(cls, prompts: Iterable[PromptEvent], seed: int) -> "BranchTree":
        """Start with one branch; its first prompt begins with block 0."""
        tree = cls([Branch(0, None, 0, 0, seed)])
        for event in prompts:
            tree.ask(event)
        return tree

    @property
    def branch(self) -> Branch:
        """The branch at hand."""
        return self.branches[self.current]

    def owner(self, branch: int, block: int) -> Branch:
        """The branch whose own block ``block`` is, on the way from the first one to ``branch``."""
        found = self.branches[branch]
        while found.block > block and found.parent is not None:
            found = self.branches[found.parent]
        return found

    def event_at(self, branch: int, block: int) -> PromptEvent | None:
        """The prompt that begins with ``block``, if one does."""
        return self.owner(branch, block).prompts.get(block)

    def prompt_at(self, branch: int, block: int) -> PromptEvent:
        """The prompt that is active in ``block``."""
        for earlier in range(block, -1, -1):
            event = self.event_at(branch, earlier)
            if event is not None:
                return event
        raise ValueError("a branch without a first prompt")

    def seed_at(self, branch: int, block: int) -> int:
        """The seed of a block's noise."""
        return self.owner(branch, block).seed

    def ask(self, event: PromptEvent) -> PromptEvent | None:
        """Let a prompt begin with a block that has not begun, on the branch at hand.

        The prompt that is active anyway changes nothing, unless it begins a new shot, but takes
        back what was asked for that block before.

        Returns:
            The event it replaces, if any.
        """
        prompts = self.branch.prompts
        replaced = prompts.pop(event.block, None)
        before = self.prompt_at(self.current, event.block - 1) if event.block else None
        is_cut = event.transition.kind == "cut"
        if before is None or before.prompt != event.prompt or is_cut:
            prompts[event.block] = event
        return replaced

    def branch_off(self, branch: int, block: int, seed: int | None = None) -> Branch:
        """Begin a branch at the start of ``block`` of the video of ``branch``, and go there.

        Its prompt and seed are those that ``block`` had, until others are asked for. The branch at
        hand is dropped if it has made no block.

        Raises:
            UserError: If there is no such branch or block.
        """
        if not 0 <= branch < len(self.branches):
            raise UserError(f"there is no branch {branch}; go up to {len(self.branches) - 1}")
        length = self.branches[branch].blocks
        if not 0 <= block <= length:
            raise UserError(f"branch {branch} has no block {block}; go back to 0 to {length}")
        event = self.event_at(branch, block)
        kept_seed = self.seed_at(branch, min(block, max(length - 1, 0)))
        parent = self.owner(branch, block - 1).id if block else None
        if self.branch.blocks == self.branch.block and self.current == len(self.branches) - 1:
            dropped = self.branches.pop()
            # An empty branch has nothing of its own to go on from.
            parent = dropped.parent if parent == dropped.id else parent
        made = Branch(len(self.branches), parent, block, block, kept_seed if seed is None else seed)
        if event is not None:
            made.prompts[block] = event
        self.branches.append(made)
        self.current = made.id
        return made

    def video(self, branch: int) -> BranchVideo:
        """Everything that makes the video of a branch again."""
        blocks = self.branches[branch].blocks
        events = (self.event_at(branch, block) for block in range(blocks))
        seeds: list[tuple[int, int]] = []
        for block in range(blocks):
            seed = self.seed_at(branch, block)
            if not seeds or seeds[-1][1] != seed:
                seeds.append((block, seed))
        prompts = tuple(event for event in events if event is not None)
        return BranchVideo(branch, prompts, tuple(seeds), blocks)

    def videos(self) -> list[BranchVideo]:
        """The videos of all branches that have blocks of their own."""
        return [self.video(made.id) for made in self.branches if made.blocks > made.block]

    def as_list(self) -> list[dict[str, Any]]:
        """The branches as plain data, with the prompts that were reached."""
        return [
            {
                "id": branch.id,
                "parent": branch.parent,
                "block": branch.block,
                "blocks": branch.blocks,
                "seed": branch.seed,
                "prompts": [
                    {
                        "block": event.block,
                        "prompt": event.prompt,
                        "transition": {
                            "kind": event.transition.kind,
                            "blocks": event.transition.blocks,
                        },
                    }
                    for block, event in sorted(branch.prompts.items())
                    if block < branch.blocks
                ],
            }
            for branch in self.branches
        ]


@dataclass(frozen=True, slots=True)
class SessionFile:
    """A recorded session.

    Attributes:
        path: Where it was read.
        weights_hash: Of the weights, :func:`longlive.weights.fingerprint.fingerprint`.
        model: ``class_path`` and ``init_args`` of the model.
        callbacks: The same of each optimization.
        block_latent_frames: Latent frames of a block.
        tree: Branches.
    """

    path: Path
    weights_hash: str
    model: Mapping[str, Any]
    callbacks: tuple[Mapping[str, Any], ...]
    block_latent_frames: int
    tree: BranchTree


def read_session(path: Path) -> SessionFile:
    """Read the JSON of a session.

    Raises:
        UserError: If it is missing, is none, or does not hold together.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot read the session {path}: {reason}; check its name") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); record the session again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path} is no session: longlive serve writes them when it records")
    if found.get("version") != VERSION:
        raise UserError(
            f"{path} has version {found.get('version')!r} and {VERSION} is understood: use the "
            "longlive that wrote it"
        )
    try:
        tree = BranchTree([_branch(entry) for entry in found["branches"]])
        session = SessionFile(
            path=path,
            weights_hash=str(found["weights"]["hash"]),
            model={**found["config"]["model"]},
            callbacks=tuple({**callback} for callback in found["config"]["callbacks"]),
            block_latent_frames=int(found["block_latent_frames"]),
            tree=tree,
        )
        _check_tree(tree)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}); record the session again"
        ) from error
    if not tree.videos():
        raise UserError(f"{path} has no block; record a session that was started")
    return session


def _branch(entry: Mapping[str, Any]) -> Branch:
    prompts = [
        PromptEvent(
            int(event["block"]),
            str(event["prompt"]),
            Transition(event["transition"]["kind"], int(event["transition"]["blocks"])),
        )
        for event in entry["prompts"]
    ]
    parent = entry["parent"]
    return Branch(
        id=int(entry["id"]),
        parent=None if parent is None else int(parent),
        block=int(entry["block"]),
        blocks=int(entry["blocks"]),
        seed=int(entry["seed"]),
        prompts={event.block: event for event in prompts},
    )


def _check_tree(tree: BranchTree) -> None:
    for index, branch in enumerate(tree.branches):
        is_root = branch.parent is None
        fits = (
            branch.id == index
            and 0 <= branch.block <= branch.blocks
            and (branch.block == 0 if is_root else 0 <= (branch.parent or 0) < index)
            and (is_root or branch.block <= tree.branches[branch.parent or 0].blocks)
            and all(branch.block <= block < branch.blocks for block in branch.prompts)
            and (not is_root or branch.blocks == 0 or 0 in branch.prompts)
        )
        if not fits:
            raise UserError(f"branch {index} does not hold together; record the session again")
