"""The prompts of a live video, as the loop asks for them."""

from collections.abc import Callable

from longlive.rollout.transitions import SWITCH, Transition


class LivePrompts:
    """Prompts as the loop asks for them: by block, whichever way the blocks come.

    Args:
        begin_block: Told that a block begins; gives the prompt that begins with it, if one does.
        expected_transition: How a prompt begins that is known to begin with a block, if one is.
        preempted_block: The block at hand, if a prompt was asked for that it has to begin with.
        block_latent_frames: Latent frames of a block.
    """

    def __init__(
        self,
        begin_block: Callable[[int], tuple[str, Transition] | None],
        expected_transition: Callable[[int], Transition | None],
        preempted_block: Callable[[], int | None],
        block_latent_frames: int,
    ) -> None:
        self._begin_block = begin_block
        self._expected_transition = expected_transition
        self._preempted_block = preempted_block
        self._block_latent_frames = block_latent_frames
        self.prompt = ""
        self.transition = SWITCH

    def advance(self, block_start_latent_frame: int, /) -> str | None:
        """Move to a block; return the prompt that begins with it, if one does."""
        found = self._begin_block(block_start_latent_frame // self._block_latent_frames)
        if found is None:
            return None
        self.prompt, self.transition = found
        return self.prompt

    def expects(self, block_start_latent_frame: int, /) -> Transition | None:
        """How a prompt will begin with that block, if one is known; it may still be withdrawn."""
        return self._expected_transition(block_start_latent_frame // self._block_latent_frames)

    def request(self, prompt: str, /) -> None:
        """Prompts are asked for through the engine, which knows the branches."""
        raise ValueError("ask the session engine for a prompt")

    def preempt(self) -> str | None:
        """Let a prompt that was asked for begin with the block at hand; return it, if any."""
        block = self._preempted_block()
        return None if block is None else self.advance(block * self._block_latent_frames)
