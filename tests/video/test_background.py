"""The thread behind the writers."""

import threading

import pytest

from longlive.video.background import BackgroundWorker


def test_items_are_worked_off_in_order_and_the_end_comes_last():
    seen = []
    worker = BackgroundWorker(
        seen.append, lambda error: seen.append(("end", error)), capacity=2, name="test"
    )
    for item in range(20):
        worker.submit(item)
    worker.finish()
    worker.finish()
    assert seen == [*range(20), ("end", None)]


def test_submitting_waits_while_the_queue_is_full():
    gate = threading.Event()
    worker = BackgroundWorker(lambda _: gate.wait(10), lambda _: None, capacity=2, name="test")
    submitted = []

    def submit_five() -> None:
        for item in range(5):
            worker.submit(item)
            submitted.append(item)

    caller = threading.Thread(target=submit_five)
    caller.start()
    caller.join(0.3)
    assert caller.is_alive()
    assert len(submitted) <= 3  # one in work, two waiting
    gate.set()
    caller.join(10)
    worker.finish()
    assert submitted == [0, 1, 2, 3, 4]


def test_an_error_frees_a_waiting_caller_and_is_raised_there():
    gate = threading.Event()

    def fail(_):
        gate.wait(10)
        raise OSError("disk")

    ends = []
    worker = BackgroundWorker(fail, ends.append, capacity=1, name="test")
    threading.Timer(0.2, gate.set).start()

    def submit_many() -> None:
        for item in range(50):
            worker.submit(item)

    with pytest.raises(OSError, match="disk"):
        submit_many()
    with pytest.raises(OSError, match="disk"):
        worker.finish()
    assert [str(error) for error in ends] == ["disk"]


def test_what_the_end_raises_replaces_the_error_of_the_work():
    def fail(_):
        raise OSError("disk")

    def end(error):
        raise RuntimeError(f"explained {error}")

    worker = BackgroundWorker(fail, end, capacity=1, name="test")
    worker.submit(0)
    with pytest.raises(RuntimeError, match="explained disk"):
        worker.finish()


def test_nobody_meets_the_error_of_the_work_while_the_end_still_explains_it():
    may_explain, is_ending = threading.Event(), threading.Event()

    def fail(_):
        raise OSError("disk")

    def end(error):
        is_ending.set()
        assert may_explain.wait(10)
        raise RuntimeError(f"explained {error}")

    worker = BackgroundWorker(fail, end, capacity=2, name="test")
    worker.submit(0)
    assert is_ending.wait(10)
    worker.submit(1)
    may_explain.set()
    with pytest.raises(RuntimeError, match="explained disk"):
        worker.finish()
