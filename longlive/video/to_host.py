"""Tensors on their way from the device to a thread that uses them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from longlive.video.background import BackgroundWorker

Receiver = Callable[[Tensor], None]


class _Parcel(NamedTuple):
    host: Tensor
    copied: torch.cuda.Event | None
    receiver: Receiver


class HostTransfer:
    """Copies tensors to the host and hands them over, in order, in a thread of its own.

    ``send`` queues the copy on the current stream and returns; it is the thread that waits for the
    device. Only when ``capacity`` tensors are under way does ``send`` wait: memory stays bounded
    when the receivers are the slower side, and the host does not run away from the device.

    The thread waits for events, which CUDA forbids while a graph is captured in its default mode:
    capture with ``capture_error_mode="thread_local"`` while tensors are under way.

    Args:
        capacity: Tensors that may wait.
        name: Of the thread, for debuggers.
    """

    def __init__(self, *, capacity: int, name: str) -> None:
        self._worker: BackgroundWorker[_Parcel] = BackgroundWorker(
            _hand_over, lambda error: None, capacity=capacity, name=name
        )

    def send(self, x: Tensor, receiver: Receiver) -> None:
        """Hand a copy of ``x`` to ``receiver``, contiguous and on the host, once it is there.

        Args:
            x: Any shape, on any device; may be overwritten by work queued after this call.
            receiver: Called in the thread.

        Raises:
            Exception: What an earlier receiver raised; nothing is handed over after it.
        """
        x = x.detach()
        if not x.is_cuda:
            host = x.to("cpu", copy=True, memory_format=torch.contiguous_format)
            self._worker.submit(_Parcel(host, None, receiver))
            return
        # Into pageable memory the copy would make the host wait.
        host = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True)
        host.copy_(x.contiguous(), non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(x.device))
        self._worker.submit(_Parcel(host, copied, receiver))

    def finish(self) -> None:
        """Wait until everything is handed over; may be called again.

        Raises:
            Exception: What a receiver raised.
        """
        self._worker.finish()


def _hand_over(parcel: _Parcel) -> None:
    if parcel.copied is not None:
        parcel.copied.synchronize()
    parcel.receiver(parcel.host)
