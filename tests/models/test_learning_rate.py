"""How far a training is, and the learning rate."""

import pytest
import torch

from longlive.models.learning_rate import TimedTraining, TrainingClock, warmup_cosine


def test_the_learning_rate_rises_then_falls_to_zero():
    module = TimedTraining(1.0, (0.9, 0.99), warmup_steps=4, max_steps=16, max_seconds=None)
    module.weight = torch.nn.Parameter(torch.zeros(1))
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(18):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.25)
    assert rates[:4] == sorted(rates[:4])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[8] == pytest.approx(0.5)
    assert rates[16] == rates[17] == pytest.approx(0)
    assert warmup_cosine(10**6, 4, progress=0.0) == 1


def test_the_seconds_count_from_the_first_step(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("longlive.models.learning_rate.time.monotonic", lambda: now[0])
    clock = TrainingClock(max_seconds=20)
    assert clock.advance(0) == 0
    now[0] = 150.0  # compiling
    assert clock.advance(1) == 0
    now[0] = 155.0
    assert clock.advance(2) == pytest.approx(0.25)
    now[0] = 200.0
    assert clock.advance(3) == clock.progress == 1


def test_the_end_that_comes_first_counts(monkeypatch):
    monkeypatch.setattr("longlive.models.learning_rate.time.monotonic", lambda: 5.0)
    clock = TrainingClock(max_steps=10, max_seconds=1000)
    clock.advance(1)
    assert clock.advance(5) == pytest.approx(0.5)


def test_a_resumed_training_goes_on_where_it_was(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("longlive.models.learning_rate.time.monotonic", lambda: now[0])
    clock = TrainingClock(max_seconds=10)
    clock.advance(1)
    now[0] = 4.0
    clock.advance(2)
    resumed = TrainingClock(max_seconds=10)
    resumed.load_state_dict(clock.state_dict())
    assert resumed.progress == pytest.approx(0.4)
    now[0] = 100.0
    assert resumed.advance(3) == pytest.approx(0.4)
    now[0] = 101.0
    assert resumed.advance(4) == pytest.approx(0.5)


def test_a_training_without_an_end_makes_no_progress():
    assert TrainingClock().advance(10**6) == 0


def test_processes_take_the_time_of_the_first_one(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("longlive.models.learning_rate.time.monotonic", lambda: now[0])
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    heard = []

    def broadcast(box: list[float], src: int) -> None:
        heard.append(box[0])
        box[0] = 5.0

    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    clock = TrainingClock(max_seconds=10)
    for step in range(1, 21):
        now[0] = float(step)
        clock.advance(step)
    assert heard == [9.0, 19.0], "seldom, since everybody waits"
    assert clock.progress == pytest.approx(0.5)


def test_a_checkpoint_keeps_the_time_of_a_module_and_one_without_it_can_be_read():
    module, resumed = (TimedTraining(1.0, (0.9, 0.99), 4, None, 10.0) for _ in range(2))
    module.clock.load_state_dict({"seconds": 7.0, "progress": 0.7})
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)
    resumed.on_load_checkpoint({})
    assert resumed.clock.progress == 0
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.clock.progress == 0.7
    assert resumed.clock.advance(1) == pytest.approx(0.7, abs=0.01)
