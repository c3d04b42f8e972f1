"""Copies to the host: in order, independent of the source, and without waiting."""

import threading
from contextlib import suppress

import pytest
import torch

from longlive.video.to_host import HostTransfer


def test_tensors_arrive_in_order_and_contiguous():
    received = []
    transfer = HostTransfer(capacity=2, name="test")
    sent = [torch.arange(6).reshape(2, 3).T + i for i in range(10)]
    for x in sent:
        transfer.send(x, received.append)
    transfer.finish()
    assert all(torch.equal(a, b) for a, b in zip(received, sent, strict=True))
    assert all(x.is_contiguous() for x in received)


def test_a_tensor_may_be_overwritten_once_it_is_sent():
    received = []
    may_receive = threading.Event()

    def receive(x):
        assert may_receive.wait(10)
        received.append(x)

    transfer = HostTransfer(capacity=2, name="test")
    x = torch.ones(3)
    transfer.send(x, receive)
    x.zero_()
    may_receive.set()
    transfer.finish()
    assert received[0].tolist() == [1, 1, 1]


def test_what_a_receiver_raises_comes_back_and_nothing_is_handed_over_after_it():
    received = []

    def fail(x):
        raise ZeroDivisionError

    transfer = HostTransfer(capacity=2, name="test")
    transfer.send(torch.zeros(1), fail)
    # Sending raises it, too, if the thread was quick.
    with suppress(ZeroDivisionError):
        transfer.send(torch.zeros(1), received.append)
    with pytest.raises(ZeroDivisionError):
        transfer.finish()
    with pytest.raises(ZeroDivisionError):
        transfer.finish()
    assert received == []


@pytest.mark.gpu
def test_sending_waits_neither_for_the_device_nor_for_the_copy():
    received = []
    x = torch.zeros(1 << 20, device="cuda")
    # The first send allocates the pinned buffer, for which the driver may wait; the next reuses it.
    transfer = HostTransfer(capacity=2, name="test")
    transfer.send(x, lambda host: None)
    transfer.finish()
    transfer = HostTransfer(capacity=2, name="test")
    torch.cuda._sleep(1_000_000_000)
    x += 1
    transfer.send(x, received.append)
    assert not torch.cuda.current_stream().query()
    transfer.finish()
    assert received[0].min() == 1
