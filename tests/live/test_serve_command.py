"""``longlive serve`` as a program: how it begins, refuses and ends."""

import asyncio
import builtins
import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import take

from longlive.callbacks.preempt import PreemptBlock
from longlive.cli import main
from longlive.cli.serve import _with_default_config
from longlive.cli.serve_model import configure
from longlive.client import connect
from longlive.live import serve as module_of_serve
from longlive.video.read import read_metadata, read_video

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny.yaml"
A, B = "a large red circle", "a small blue square"


@pytest.fixture
def nano_config(nano_settings, tmp_path) -> Path:
    path = tmp_path / "nano.yaml"
    settings = {**nano_settings, "seconds": None, "guidance": 1.0}
    content = {"model": {"init_args": settings}, "trainer": {"accelerator": "cpu"}}
    path.write_text(json.dumps(content))
    return path


@contextlib.contextmanager
def killing(program: subprocess.Popen) -> Iterator[None]:
    """Leave no program behind, whatever a test finds."""
    try:
        yield
    finally:
        program.kill()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_program_with_a_whole_recording(how, nano_config, tmp_path):
    folder = tmp_path / "recordings"
    command = [sys.executable, "-m", "longlive", "serve", "--port", "0", "--recordings", folder]
    program = subprocess.Popen(
        [*command, "--config", TINY, "--config", nano_config],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Shells start background jobs, and so these tests, with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with program, killing(program):
        lines = []
        while not (found := re.search(r"open http://localhost:(\d+) ", (lines or [""])[-1])):
            line = program.stderr.readline()
            assert line, lines
            lines.append(line)

        async def story() -> None:
            client = await connect(f"ws://127.0.0.1:{found[1]}")
            await client.start(A, seed=3)
            await client.record()
            await take(client, 8)
            await client.prompt(B)
            await take(client, 16)
            program.send_signal(how)
            await client.close(leave=False)

        asyncio.run(story())
        _, errors = program.communicate(timeout=60)
        assert program.returncode in (130, -how)
    assert "Traceback" not in errors
    video = next(folder.glob("live-*.mp4"))
    assert len(read_video(video)) >= 20
    assert [title for _, title in read_metadata(video)["chapters"]] == [A, B]
    session = json.loads(video.with_suffix(".json").read_text())
    assert session["branches"][0]["seed"] == 3
    assert session["config"]["callbacks"] == []
    assert video.with_suffix(".png").is_file()
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--host", "0.0.0.0"], "others can reach 0.0.0.0: add --token SECRET"),
        (["--host", ""], "others can reach every address"),
        (["--port", "70000"], "port 70000 does not exist"),
        (["--port", "x"], "argument --port: invalid int value: 'x'"),
        (["--grace", "0"], "--grace must be more than 0"),
        (["--buffer", "0"], "--buffer goes from 1 to 256"),
        (["--samples", "none.txt"], "cannot read prompts from none.txt"),
        (["--config", "none.yaml"], "cannot read the configuration none.yaml"),
        (["--model.steps", "3"], "unknown model.steps: it can be"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(args, message, capsys):
    assert main(["serve", *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    importing = builtins.__import__

    def without(name: str, *args: object) -> object:
        if name == "uvicorn":
            raise ImportError("no module", name="uvicorn")
        return importing(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["serve"]) == 2
    expected = "longlive: error: longlive serve needs uvicorn: pip install 'longlive[ui]'\n"
    assert capsys.readouterr().err == expected


def test_a_port_that_is_taken_is_one_line(play, capsys):
    played = play()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = module_of_serve.ServeSettings(port=taken.getsockname()[1])
        with pytest.raises(module_of_serve.UserError, match="in use; choose another --port"):
            module_of_serve.serve(played.engine, settings)


def test_the_help_shows_what_it_takes(capsys):
    assert main(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    for name in ("host", "port", "token", "origin", "recordings", "buffer", "grace"):
        assert f"--{name}" in text


def test_without_a_configuration_a_prompt_interrupts_the_block_of_the_small_model():
    model = configure(_with_default_config(["--trainer.accelerator=cpu"]))
    assert model.model.weights == "embedded"
    assert [type(one) for one in model.callbacks] == [PreemptBlock]
    assert _with_default_config(["--config=a.yaml"]) == ["--config=a.yaml"]


def test_nothing_heavy_is_imported_to_refuse_an_argument():
    code = (
        "import sys\nfrom longlive.cli import main\n"
        "main(['serve', '--port', 'x'])\n"
        "heavy = {'torch', 'lightning', 'starlette', 'uvicorn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert importlib.util.find_spec("uvicorn") is not None
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_client_and_the_protocol_do_without_torch():
    code = "import sys, longlive.client; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
