"""What is shown while a rollout runs, in a terminal and in a log."""

import io
import re
import sys
import time

import lightning.pytorch as pl
import pytest
import torch

from longlive.callbacks import progress
from longlive.callbacks.frame_writer import FrameWriter
from longlive.callbacks.progress import FrameMeter, RolloutProgress
from longlive.rollout.hooks import CallbackHooks


class Clock:
    """Stands still until it is moved."""

    now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def logged(caplog):
    caplog.set_level("INFO", logger="longlive.callbacks.progress")
    return lambda: [r.getMessage() for r in caplog.records if r.name.endswith("progress")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def open_terminal(monkeypatch):
    """Called by the test: pytest puts its own stderr in place after the fixtures have run."""

    def open_terminal(kind: str = "xterm") -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", kind)
        monkeypatch.setenv("COLUMNS", "200")
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        return terminal

    return open_terminal


def last_line(terminal: Terminal) -> str:
    """The line as it stands when everything has been drawn."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()][-1]


def frames(count: int) -> torch.Tensor:
    return torch.zeros(1, count, 3, 8, 8)


def arrive(meter: FrameMeter, clock: Clock, count: int, after_s: float) -> None:
    clock.now_s += after_s
    meter.queue(frames(count))
    meter.poll()


def test_speed_is_that_of_the_frames_after_the_first_ones(clock):
    meter = FrameMeter(total=57)
    assert (meter.fps, meter.left_s) == (None, None)
    arrive(meter, clock, 9, after_s=60)  # loading and compiling
    assert meter.fps is None
    arrive(meter, clock, 12, after_s=2)
    arrive(meter, clock, 12, after_s=4)
    assert meter.frames == 33
    assert meter.fps == pytest.approx(4)
    assert meter.left_s == pytest.approx(6)


def test_speed_forgets_what_is_older_than_ten_seconds(clock):
    meter = FrameMeter(total=None)
    for _ in range(10):
        arrive(meter, clock, 10, after_s=1)
    for _ in range(12):
        arrive(meter, clock, 2, after_s=1)
    assert meter.fps == pytest.approx(2)


def test_speed_of_blocks_that_take_longer_than_ten_seconds_is_still_known(clock):
    meter = FrameMeter(total=None)
    for _ in range(4):
        arrive(meter, clock, 12, after_s=60)
    assert meter.fps == pytest.approx(0.2)


class Event:
    """Like CUDA's, done when somebody says so."""

    is_done = False
    waited = 0

    def query(self) -> bool:
        return self.is_done

    def synchronize(self) -> None:
        self.waited += 1
        self.is_done = True


def test_frames_count_once_the_device_has_finished_them(clock):
    meter = FrameMeter(total=None)
    events = [Event(), Event()]
    meter._queued.extend((12, event) for event in events)
    meter.poll()
    assert meter.frames == 0
    events[0].is_done = True
    meter.poll()
    assert meter.frames == 12
    assert [event.waited for event in events] == [0, 0]
    meter.wait()
    assert meter.frames == 24


def test_without_a_terminal_there_is_a_line_for_every_tenth(rollout, logged, clock):
    rollout([RolloutProgress()], latent_frames=120, positions="relative").run()
    lines = logged()
    assert 9 <= len(lines) <= 11
    assert lines[-1].startswith("477/477 frames, ")
    done = [int(line.split("/")[0]) for line in lines]
    assert done == sorted(set(done))


def test_a_line_tells_frames_speed_seconds_what_is_left_and_the_prompt(rollout, logged, clock):
    running = rollout([RolloutProgress()], ["a red\ncircle"], latent_frames=24)
    for _ in range(3):
        next(running.blocks)
        clock.now_s += 1.5
    next(running.blocks)
    assert logged()[-1] == ("45/93 frames, 8.0 fps, 2.8 s of video, 0:06 left; a red circle")
    running.blocks.close()


def test_a_slow_rollout_is_logged_every_ten_seconds(rollout, logged, clock):
    running = rollout([RolloutProgress()], latent_frames=None, positions="relative")
    for _ in range(9):
        next(running.blocks)
        clock.now_s += 4
    lines = logged()
    assert len(lines) == 2
    assert lines[0].startswith("33 frames, 3.0 fps, 2.1 s of video; ")
    assert "left" not in lines[0]
    running.blocks.close()


def test_the_last_line_is_the_final_count_of_a_stopped_rollout(rollout, logged, clock):
    running = rollout([RolloutProgress()], latent_frames=None, positions="relative")
    for _ in range(2):
        next(running.blocks)
    assert logged() == []
    running.blocks.close()
    assert [line.split(",")[0] for line in logged()] == ["21 frames"]


def test_a_switch_of_prompt_is_shown(rollout, logged, clock):
    rollout([RolloutProgress()], ["a red circle", "a blue square"], [6]).run()
    assert logged()[0].endswith("a red circle")
    assert logged()[-1].endswith("a blue square")


def test_a_long_prompt_is_cut_also_where_it_has_no_spaces(rollout, logged, clock):
    rollout([RolloutProgress()], ["字" * 500], latent_frames=3).run()
    assert logged()[-1].split("; ")[1] == "字" * 59 + "…"


def test_in_a_terminal_one_line_is_redrawn_and_nothing_is_logged(rollout, logged, open_terminal):
    terminal = open_terminal()
    rollout([RolloutProgress()], ["a [red] circle"], latent_frames=120, positions="relative").run()
    assert logged() == []
    line = last_line(terminal)
    assert "477/477 frames" in line
    assert "29.8 s of video" in line
    assert line.rstrip().endswith("a [red] circle")
    assert terminal.getvalue().count("\n") == 1


@pytest.mark.parametrize("ending", ["end", "exception", "stop"])
def test_the_terminal_gets_its_cursor_back_however_the_rollout_ends(rollout, open_terminal, ending):
    terminal = open_terminal()
    callback = RolloutProgress()
    running = rollout([callback])
    next(running.blocks)
    if ending == "end":
        running.run()
    elif ending == "stop":
        running.blocks.close()
    else:
        callback.on_exception(None, running.module, KeyboardInterrupt())
    shown, hidden = (terminal.getvalue().rfind(code) for code in ("\x1b[?25h", "\x1b[?25l"))
    assert shown > hidden >= 0
    written = terminal.getvalue()
    time.sleep(0.4)
    assert terminal.getvalue() == written
    running.blocks.close()


def test_output_that_is_piped_does_not_land_in_the_terminal(rollout, open_terminal, capsys):
    terminal = open_terminal()
    running = rollout([RolloutProgress()])
    next(running.blocks)
    sys.stdout.write("a result\n")
    running.run()
    assert capsys.readouterr().out == "a result\n"
    assert "a result" not in terminal.getvalue()


def test_a_terminal_that_cannot_redraw_gets_log_lines(rollout, logged, open_terminal):
    open_terminal("dumb")
    rollout([RolloutProgress()]).run()
    assert logged()[-1].startswith("45/45 frames")


def test_a_second_rollout_is_not_ended_by_the_collection_of_the_first(rollout, logged, clock):
    callback = RolloutProgress()
    first, second = rollout([callback]), rollout([callback], ["a blue square"])
    next(first.blocks)
    next(second.blocks)
    first.blocks.close()
    second.run()
    assert logged()[-1].startswith("45/45 frames")
    assert logged()[-1].endswith("a blue square")


def test_only_the_first_process_shows_progress(rollout, logged, clock):
    class Other:
        is_global_zero = False

    callback = RolloutProgress()
    running = rollout([callback])
    running.hooks.trainer = Other()
    running.run()
    assert logged() == []


def test_the_display_ends_before_the_writer_says_where_the_file_is(tmp_path):
    writer, shown = FrameWriter(tmp_path), RolloutProgress()
    assert CallbackHooks([writer, shown], pl.LightningModule()).callbacks == [shown, writer]


@pytest.mark.gpu
def test_progress_does_not_make_the_host_wait(rollout, logged):
    class Watched(RolloutProgress):
        def on_frames_ready(self, *args) -> None:
            torch.cuda._sleep(200_000_000)
            super().on_frames_ready(*args)
            assert not torch.cuda.current_stream().query()
            torch.cuda.synchronize()

    rollout([Watched()], device="cuda").run()
    assert logged()[-1].startswith("45/45 frames")
