"""The entry point: what is imported, what a user is told, and with which exit code."""

import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

import longlive
from longlive import cli
from longlive.cli import COMMANDS, lightning_commands, main
from longlive.errors import UserError


def refuse(message: str = "too short: make it longer") -> None:
    raise UserError(message)


def refuse_in_worker() -> None:
    """What arrives of an error in a worker process of a DataLoader."""
    try:
        refuse("clip 3 is empty: remove it")
    except UserError:
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    wrapper.reraise()


def break_down() -> None:
    raise ValueError("a bug")


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


DEEDS: dict[str, Callable[[], None]] = {
    "refuse": refuse,
    "refuse_in_worker": refuse_in_worker,
    "break_down": break_down,
    "press_ctrl_c": press_ctrl_c,
    "nothing": lambda: None,
}


class Model(pl.LightningModule):
    def __init__(self, when_built: str = "nothing", in_step: str = "nothing") -> None:
        super().__init__()
        DEEDS[when_built]()
        self.in_step = in_step

    def predict_step(self, batch, batch_idx):
        DEEDS[self.in_step]()
        return batch


class Data(pl.LightningDataModule):
    def predict_dataloader(self):
        return DataLoader([1, 2])


class Watcher(pl.Callback):
    """Remembers which exception it was told of."""

    seen: list[str] = []

    def on_exception(self, trainer, pl_module, exception):
        self.seen.append(type(exception).__name__)


class RefusingCallback(pl.Callback):
    def __init__(self) -> None:
        refuse()


@pytest.fixture
def ctrl_c_restored() -> Iterator[None]:
    """The Trainer ignores further interrupts for the rest of the process."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def predict(*options: str) -> int:
    given = {
        "seed_everything": "1",
        "trainer.logger": "false",
        "trainer.accelerator": "cpu",
        "trainer.enable_checkpointing": "false",
        "trainer.enable_progress_bar": "false",
        "model": f"{__name__}.Model",
        "data": f"{__name__}.Data",
    }
    return main(["predict", *(f"--{key}={value}" for key, value in given.items()), *options])


def errors_of(capsys) -> list[str]:
    """The lines of stderr that are ours."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("longlive")]


@pytest.fixture
def pretend(monkeypatch):
    """Makes ``predict`` do something else than to start Lightning."""
    return lambda deed: monkeypatch.setattr(lightning_commands, "run", lambda args: deed())


def test_help_and_version_import_neither_torch_nor_lightning():
    code = (
        "import sys; from longlive.cli import main; "
        "codes = [main(['--help']), main(['--version']), main(['predcit'])]; "
        "heavy = {'torch', 'lightning', 'jsonargparse', 'rich'} & set(sys.modules); "
        "sys.exit(f'{codes} {heavy}' if heavy or codes != [0, 0, 2] else 0)"
    )
    root = Path(longlive.__file__).parents[1]
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "longlive: error: unknown command 'predcit' (did you mean predict?); see longlive --help"
    ]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_a_line_for_every_command_and_two_examples(flag, capsys):
    assert main([flag]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert [line.split(maxsplit=1) for line in lines if line.split()[:1] == [name]] == [
            [name, command.summary]
        ]
    examples = lines[lines.index("examples:") + 1 :]
    assert len(examples) == 2
    assert all(line.split()[:2][1] in COMMANDS for line in examples)
    assert max(map(len, lines)) <= 100


def test_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"longlive {longlive.__version__}\n"


def test_no_command_shows_the_help_but_is_not_a_success(capsys):
    assert main([]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("usage: longlive COMMAND")


def test_the_arguments_of_the_process_are_the_default(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["longlive", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("longlive ")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["predct"], "unknown command 'predct' (did you mean predict?); see longlive --help"),
        (["tst"], "unknown command 'tst' (did you mean test?); see longlive --help"),
        (["tefit"], "unknown command 'tefit' (did you mean fit or test?); see longlive --help"),
        (["zzz"], "unknown command 'zzz'; see longlive --help"),
        (
            ["--config", "a.yaml", "predict"],
            "--config comes before the command: begin with one, as in longlive predict --config; "
            "see longlive --help",
        ),
    ],
)
def test_an_unknown_command_is_told_in_one_line_with_close_matches(args, told, capsys):
    assert main(args) == 2
    written = capsys.readouterr()
    assert written.err == f"longlive: error: {told}\n"
    assert written.out == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_gets_the_whole_command_line(name, monkeypatch):
    module = __import__(f"longlive.cli.{COMMANDS[name].module}", fromlist=["run"])
    given = []
    monkeypatch.setattr(module, "run", given.append)
    assert main((name, "--x", "1")) == 0
    assert given == [[name, "--x", "1"]]


def test_a_message_of_several_lines_becomes_one(pretend, capsys):
    pretend(lambda: refuse("the window\n  is too short:\tmake it longer\n"))
    assert main(["predict"]) == 2
    assert capsys.readouterr().err == ("longlive: error: the window is too short: make it longer\n")


def test_a_bug_keeps_its_traceback_even_if_it_is_a_value_error(pretend, capsys):
    pretend(break_down)
    with pytest.raises(ValueError, match="a bug"):
        main(["predict"])
    assert errors_of(capsys) == []


def test_a_bug_on_the_way_out_of_a_users_error_is_not_hidden(pretend):
    def deed() -> None:
        try:
            refuse()
        except UserError:
            break_down()

    pretend(deed)
    with pytest.raises(ValueError, match="a bug"):
        main(["predict"])


def test_exit_codes_of_a_parser_pass_through(pretend):
    pretend(lambda: sys.exit(2))
    assert main(["predict"]) == 2
    pretend(lambda: sys.exit(0))
    assert main(["predict"]) == 0
    pretend(lambda: sys.exit("words"))
    with pytest.raises(SystemExit, match="words"):
        main(["predict"])


def test_ctrl_c_outside_the_trainer_is_one_line_and_130(pretend, capsys):
    pretend(press_ctrl_c)
    assert main(["predict"]) == 130
    assert capsys.readouterr().err == "longlive: interrupted\n"


def test_what_the_package_logs_is_shown_while_a_command_runs_and_no_longer(pretend, capsys):
    log = logging.getLogger("longlive.somewhere")
    pretend(lambda: log.info("fetching it"))
    assert main(["predict"]) == 0
    log.info("unheard")
    assert capsys.readouterr().err == "longlive: fetching it\n"
    assert logging.getLogger("longlive").handlers == []
    assert logging.getLogger("longlive").level == logging.NOTSET


def test_predict_runs_and_succeeds(capsys):
    assert predict() == 0
    assert errors_of(capsys) == []


def test_a_users_error_in_predict_step_arrives_as_one_line_after_on_exception(capsys):
    Watcher.seen = []
    watcher = f"--trainer.callbacks+={__name__}.Watcher"
    assert predict(watcher, "--model.in_step=refuse") == 2
    written = capsys.readouterr()
    assert [line for line in written.err.splitlines() if "too short" in line] == [
        "longlive: error: too short: make it longer"
    ]
    assert "Traceback" not in written.err + written.out
    assert Watcher.seen == ["UserError"]


@pytest.mark.parametrize(
    "option", ["--model.when_built=refuse", f"--trainer.callbacks+={__name__}.RefusingCallback"]
)
def test_a_users_error_in_a_constructor_is_not_buried_in_the_parsers_words(option, capsys):
    assert predict(option) == 2
    assert errors_of(capsys) == ["longlive: error: too short: make it longer"]


def test_a_users_error_in_a_worker_process_comes_without_that_process_traceback(capsys):
    with pytest.raises(UserError, match="Traceback"):
        refuse_in_worker()
    assert predict("--model.in_step=refuse_in_worker") == 2
    assert errors_of(capsys) == ["longlive: error: clip 3 is empty: remove it"]


@pytest.mark.parametrize("place", ["when_built", "in_step"])
def test_a_bug_below_lightning_is_raised(place):
    with pytest.raises(ValueError, match="a bug"):
        predict(f"--model.{place}=break_down")


@pytest.mark.usefixtures("ctrl_c_restored")
def test_ctrl_c_in_predict_step_is_130_though_the_trainer_exits_with_1(capsys):
    Watcher.seen = []
    watcher = f"--trainer.callbacks+={__name__}.Watcher"
    assert predict(watcher, "--model.in_step=press_ctrl_c") == 130
    assert errors_of(capsys) == ["longlive: interrupted"]
    assert Watcher.seen == ["KeyboardInterrupt"]


def test_an_option_that_predict_does_not_have_is_one_line(capsys):
    assert predict("--bogus=1") == 2
    assert [line.split(": ")[1] for line in errors_of(capsys)] == ["error"]


def test_the_table_of_commands_is_complete():
    assert cli.COMMANDS.keys() == {
        *("predict", "fit", "validate", "test", "download", "convert", "analyze", "doctor"),
        *("benchmark", "evaluate", "serve"),
    }
