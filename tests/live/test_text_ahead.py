"""Prompts that are encoded ahead of time."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from longlive.live.text_ahead import TextAhead

CPU = torch.device("cpu")


class Encoder:
    """Counts what it encodes; waits where it is told to."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, prompt: str) -> Tensor:
        self.seen.append(prompt)
        self.gate.wait(10)
        if prompt == "bad":
            raise RuntimeError("no")
        return torch.full((1, 2, 3), float(len(prompt)))


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def ahead(encoder) -> Iterator[TextAhead]:
    made = TextAhead(encoder, CPU)
    yield made
    encoder.gate.set()
    made.close()


def wait_for(encoder: Encoder, count: int) -> None:
    end_s = time.monotonic() + 10
    while len(encoder.seen) < count:
        assert time.monotonic() < end_s
        time.sleep(0.002)


def test_an_announced_prompt_is_encoded_once_in_another_thread(ahead, encoder):
    ahead.announce("abc")
    wait_for(encoder, 1)
    assert torch.equal(ahead("abc"), torch.full((1, 2, 3), 3.0))
    assert torch.equal(ahead("abc"), torch.full((1, 2, 3), 3.0))
    assert encoder.seen == ["abc"]


def test_a_prompt_that_nobody_announced_is_encoded_when_it_is_wanted(ahead, encoder):
    assert ahead("ab")[0, 0, 0] == 2
    assert encoder.seen == ["ab"]


def test_whoever_wants_a_prompt_that_is_being_encoded_waits_for_it(ahead, encoder):
    encoder.gate.clear()
    ahead.announce("abc")
    wait_for(encoder, 1)
    threading.Timer(0.1, encoder.gate.set).start()
    assert ahead("abc")[0, 0, 0] == 3
    assert encoder.seen == ["abc"]


def test_of_a_thousand_announcements_only_the_latest_is_worked_on(ahead, encoder):
    encoder.gate.clear()
    ahead.announce("first")
    wait_for(encoder, 1)
    for i in range(1000):
        ahead.announce(f"prompt {i}")
    encoder.gate.set()
    wait_for(encoder, 2)
    assert ahead("prompt 999")[0, 0, 0] == 10
    assert encoder.seen == ["first", "prompt 999"]


def test_an_error_reaches_whoever_wants_the_prompt(ahead, encoder):
    ahead.announce("bad")
    wait_for(encoder, 1)
    with pytest.raises(RuntimeError, match="no"):
        ahead("bad")
    assert ahead("good")[0, 0, 0] == 4


def test_few_prompts_are_remembered(ahead, encoder):
    for i in range(100):
        ahead(f"{i}")
    encoder.seen.clear()
    ahead("99")
    assert encoder.seen == []
    ahead("0")
    assert encoder.seen == ["0"]


def test_without_a_thread_a_prompt_is_encoded_by_whoever_wants_it(encoder):
    threads: list[str] = []

    def encode(prompt: str) -> Tensor:
        threads.append(threading.current_thread().name)
        return encoder(prompt)

    ahead = TextAhead(encode, CPU, has_thread=False)
    ahead.announce("abc")
    assert ahead("abc")[0, 0, 0] == ahead("abc")[0, 0, 0] == 3
    assert threads == [threading.current_thread().name]
    ahead.close()
