"""Prompts typed into a terminal, or piped, while the video grows."""

import importlib.util
import io
import logging
import os
import re
import select
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

from longlive.data.shapes_data import shapes_tokenizer
from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.models.sizes import DiTConfig
from longlive.models.text_encoder import UMT5Config, UMT5Encoder
from longlive.models.vae import WanVAE
from longlive.models.vae_networks import VAEConfig
from longlive.video.read import read_metadata, read_video
from longlive.video.sidecar import read_sidecar
from longlive.weights.embedded import save_component
from longlive.weights.synthetic import fill_synthetic

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "infer" / "interactive.py"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A folder of random weights of the smallest sizes, laid out like the embedded model."""
    folder = tmp_path_factory.mktemp("weights")
    dit = DiTConfig(width=16, ffn_width=16, heads=2, layers=1, text_width=8, text_len=16, patch=2)
    text = UMT5Config(
        vocab=64, width=8, attention_width=8, ffn_width=8, heads=2, layers=1, text_len=16
    )
    vae = VAEConfig(base_width=2)
    for name, module, config in (
        ("dit", DiT(dit), dit),
        ("text_encoder", UMT5Encoder(text), text),
        ("vae", WanVAE(vae), vae),
    ):
        fill_synthetic(module)
        save_component(folder, name, module.state_dict(), asdict(config))
    shapes_tokenizer().tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def interactive() -> ModuleType:
    """The script as a module; what it changes in this process is undone."""
    spec = importlib.util.spec_from_file_location("interactive", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler, level = signal.getsignal(signal.SIGINT), logging.getLogger("longlive").level
    yield module
    signal.signal(signal.SIGINT, handler)
    logging.getLogger("longlive").setLevel(level)


@pytest.fixture
def pipe(interactive, weights, tmp_path, monkeypatch):
    """Run the script with lines on its stdin; return its exit code and the video's name."""

    def run(lines: str, *arguments: str) -> tuple[int, Path]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        output = tmp_path / "clip.mp4"
        given = ["--weights", str(weights), "--output", str(output), *arguments]
        return interactive.main(given), output

    return run


def test_lines_have_their_time_or_follow_after_five_seconds(interactive):
    lines = ["a\n", "\n", "b", "@7.5 c and @ d", "  e  "]
    assert interactive.read_script(lines) == [
        (0, "a"),
        (5, "b"),
        (7.5, "c and @ d"),
        (12.5, "e"),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "nothing to show at the start: give --prompt"),
        (["@2 a"], "nothing to show at the start"),
        (["a", "@3 b", "@3.5 c"], "'@3.5 c' must come a second or more after the prompt at @3"),
        (["a", "@x b"], "'@x b' is not @SECONDS and a prompt"),
        (["a", "@3"], "'@3' is not @SECONDS and a prompt"),
    ],
)
def test_a_script_that_cannot_be_played_is_refused_in_a_line(interactive, lines, message):
    with pytest.raises(UserError, match=message):
        interactive.read_script(lines)


class Stream:
    """Remembers what it is asked for."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.is_stopped = False
        self.state = type("State", (), {"block_start": 6})

    def change_prompt(self, prompt: str) -> None:
        self.requests.append(prompt)

    def stop(self) -> None:
        self.is_stopped = True


def test_typed_lines_become_prompts_until_the_command_to_quit(interactive):
    stream = Stream()
    interactive.listen(iter(["  a blue square \n", ":q\n", "too late\n"]), stream)
    assert stream.requests == ["a blue square"]
    assert stream.is_stopped


def test_the_end_of_what_is_typed_ends_the_video(interactive):
    stream = Stream()
    interactive.listen(iter(["a\n"]), stream)
    assert stream.is_stopped


def test_an_empty_line_changes_nothing_and_says_where_the_video_is(interactive, capsys):
    stream = Stream()
    interactive.listen(iter(["\n"]), stream)
    assert stream.requests == []
    assert capsys.readouterr().out == "1.3 s so far; type a prompt, or :q to end\n"


def test_the_first_ctrl_c_stops_gently_and_the_second_at_once(interactive):
    stream = Stream()
    interactive.end_on_ctrl_c(stream)
    signal.raise_signal(signal.SIGINT)
    assert stream.is_stopped
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_piped_lines_become_a_video_with_its_prompts_at_their_seconds(pipe, capsys):
    code, path = pipe("a red circle\n@1 a blue square\n", "--seconds", "2.5", "--seed", "4")
    assert code == 0
    # A second is 16 frames; the first block that starts at or after it starts at frame 21.
    assert read_metadata(path)["chapters"] == [(0, "a red circle"), (21, "a blue square")]
    assert capsys.readouterr().out.splitlines() == [
        "block 0, 0.0 s: a red circle",
        "block 2, 1.3 s: a blue square",
    ]
    record = read_sidecar(path)
    assert record["seed"] == 4
    assert record["frames"] == len(read_video(path)) == 45
    assert record["options"]["ended"] == "complete"


def test_without_a_length_the_last_prompt_plays_for_five_seconds(pipe):
    code, path = pipe("@1 a blue square\n", "--prompt", "a red circle")
    assert code == 0
    record = read_sidecar(path)
    assert [p["prompt"] for p in record["prompts"]] == ["a red circle", "a blue square"]
    assert 6 * 16 <= record["frames"] < 6 * 16 + 12


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        ("", (), "nothing to show"),
        ("a red circle\n@4 a blue square\n", ("--seconds", "2"), "would never be shown"),
        ("a red circle\n", ("--seconds", "0"), "seconds must be positive"),
        ("a red circle\n", ("--output", "clip.mov"), r"written as \.mp4"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(pipe, capsys, lines, arguments, message):
    code, path = pipe(lines, *arguments)
    errors = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(errors) == 1
    assert errors[0].startswith("interactive: error: ")
    assert re.search(message, errors[0])
    assert not path.exists()


class TypedSession:
    """The script in a terminal of its own."""

    def __init__(self, arguments: list[str]) -> None:
        self.keyboard, screen = os.openpty()
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            stdin=screen,
            stdout=screen,
            stderr=screen,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        os.close(screen)

    def wait_for(self, text: str) -> None:
        while text not in self.text:
            assert self._read(), self.text

    def type(self, line: str) -> None:
        os.write(self.keyboard, line.encode())

    def interrupt(self) -> int:
        """Press Ctrl-C, and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        while self._read():
            pass
        os.close(self.keyboard)
        return self.process.wait(30)

    def _read(self) -> bool:
        """Take what is on the screen; false once the program has ended."""
        # An endless video goes on without a word.
        is_ready, _, _ = select.select([self.keyboard], [], [], 60)
        assert is_ready, self.text
        try:
            new = os.read(self.keyboard, 4096)
        # What a terminal says once nobody has it open any more.
        except OSError:
            return False
        self.text += new.decode().replace("\r\n", "\n")
        return bool(new)


def test_prompts_typed_while_it_runs_take_effect_and_ctrl_c_keeps_the_video(weights, tmp_path):
    path = tmp_path / "clip.mp4"
    session = TypedSession(["--weights", str(weights), "--output", str(path)])
    try:
        session.wait_for("prompt: ")
        session.type("a red circle\n")
        session.wait_for("block 0, 0.0 s: a red circle\n")
        session.type("\na blue square\n")
        session.wait_for(" s: a blue square\n")
        assert session.interrupt() == 0
    finally:
        session.process.kill()
        session.process.wait()
    assert "so far; type a prompt, or :q to end" in session.text
    assert "Traceback" not in session.text
    record = read_sidecar(path)
    assert record["options"]["ended"] == "stopped"
    assert record["frames"] == len(read_video(path))
    (start, first), (switch, second) = read_metadata(path)["chapters"]
    assert (start, first, second) == (0, "a red circle", "a blue square")
    block = (record["prompts"][1]["latent_frame"]) // 3
    assert f"block {block}, {switch / 16:.1f} s: a blue square" in session.text
