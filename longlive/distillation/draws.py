"""Random numbers of a training step, which depend on their name and on nothing drawn before.

So a resumed run draws what the uninterrupted one does, without a state to store; two processes draw
what one process with twice the batch does; and what all processes must agree on needs no broadcast:
it is named without a process.
"""

import hashlib

import torch

_BITS = 63


class Draws:
    """Makes generators by name.

    Args:
        seed: Of the run.
        device: Where numbers are wanted. Another kind of device draws other numbers.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.device = device

    def generator(self, *name: str | int) -> torch.Generator:
        """Return a generator that always starts alike for a name."""
        return torch.Generator(self.device).manual_seed(self._number(name))

    def integer(self, end: int, *name: str | int) -> int:
        """Draw an integer in [0, end) on the host; ``end`` must be far below 2**63."""
        return self._number(("integer", *name)) % end

    def _number(self, name: tuple[str | int, ...]) -> int:
        digest = hashlib.sha256(repr((self.seed, *name)).encode()).digest()
        return int.from_bytes(digest[:8], "little") >> (64 - _BITS)
