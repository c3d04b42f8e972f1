"""Calls that are recorded once as CUDA graphs and then replayed.

A graph replays kernels with the addresses they had when it was recorded. Whoever records therefore
hands in tensors that stay where they are, copies new inputs into them, and reads the outputs before
the next replay. Host code does not run again: a Python number in it keeps its value for ever.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

Result = TypeVar("Result")


class Recording(NamedTuple):
    """A call that can be repeated.

    Attributes:
        out: What the call returned; its tensors get new values with every replay.
        replay: Queues the kernels of the call on the current stream.
    """

    out: Any
    replay: Callable[[], None]


class Recorder(Protocol):
    """Records calls."""

    def record(self, call: Callable[[], Result]) -> Recording:
        """Record a call that has been made before, so that nothing is compiled or tuned in it."""
        ...


class GraphRecorder:
    """Records CUDA graphs that share one pool of memory.

    So they must not run at the same time; in whatever order they run, each writes its memory before
    it reads it.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def record(self, call: Callable[[], Result]) -> Recording:
        """Record a call; the host waits for the device.

        Raises:
            RuntimeError: If the call does something that a graph cannot hold, such as waiting.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            if self._stream is None:
                # Torch's own is of the device that was captured first. Kernels of a graph keep the
                # priority of the stream they were recorded in.
                priority = torch.cuda.current_stream(self._device).priority
                self._stream = torch.cuda.Stream(self._device, priority)
            # Another thread waits for copies of frames meanwhile, see longlive.video.to_host.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                out = call()
        return Recording(out, graph.replay)
