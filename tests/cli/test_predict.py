"""longlive predict, through the real command line, with a model of random weights.

Good input makes files; bad input is one line that names the fix, and loses nothing.
"""

import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from nano_model import DIT, SETTINGS, write_nano_model
from torch.utils.data import DataLoader

from longlive.cli import main
from longlive.cli.complaints import allowed_by
from longlive.video import h264
from longlive.video.read import read_video
from longlive.weights.embedded import CONFIG_FILE

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny.yaml"
PROMPT = "--prompt=a red circle"
LONGEST_LINE = 450


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    lines: list[str]
    """Of stderr."""

    def refusal(self) -> str:
        """The line that says why it was refused, without its beginning."""
        assert self.code == 2, self.lines
        assert all(line.startswith("longlive: ") for line in self.lines), self.lines
        told = [line for line in self.lines if line.startswith("longlive: error: ")]
        assert told == self.lines[-1:], self.lines
        assert len(told[0]) <= LONGEST_LINE
        return told[0].removeprefix("longlive: error: ")


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def nano(tmp_path_factory) -> Path:
    return write_nano_model(tmp_path_factory.mktemp("nano"))


@pytest.fixture(scope="session")
def nano_config(nano, tmp_path_factory) -> Path:
    """An overlay for the embedded model's base: one block of a small video."""
    settings = {**SETTINGS, "weights": str(nano), "denoising_steps": 1, "guidance": 1.0}
    path = tmp_path_factory.mktemp("config") / "nano.yaml"
    content = {
        "trainer": {"accelerator": "cpu"},
        "model": {"init_args": {**settings, "seconds": 0.1}},
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def run(capsys) -> Run:
    """Runs the program; what Lightning warns of would be an exception here."""

    def call(*args: object) -> Outcome:
        code = main([str(arg) for arg in args])
        return Outcome(code, capsys.readouterr().err.splitlines())

    return call


@pytest.fixture
def predict(run, nano_config, tmp_path, monkeypatch) -> Run:
    """``predict`` with the nano model, into ``tmp_path/outputs``."""
    monkeypatch.chdir(tmp_path)
    return lambda *options: run("predict", "--config", TINY, "--config", nano_config, *options)


def setting(way: str, key: str, value: Any, folder: Path) -> list[str]:
    """A setting as an option, or in a configuration file of its own."""
    if way == "option":
        return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}"]
    parts = key.split(".")
    if parts[0] in ("model", "data"):
        parts.insert(1, "init_args")
    for part in reversed(parts):
        value = {part: value}
    path = folder / "setting.yaml"
    path.write_text(yaml.safe_dump(value))
    return [f"--config={path}"]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def sidecar(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text())


def assert_matches(text: str, pattern: str) -> None:
    assert re.fullmatch(pattern, text), text


def starts(path: Path) -> list[tuple[int, str]]:
    return [(entry["latent_frame"], entry["prompt"]) for entry in sidecar(path)["prompts"]]


# What is typed most.


def test_a_prompt_becomes_a_video_with_its_record_and_only_our_own_lines_are_shown(predict):
    outcome = predict(PROMPT, "--seed=7")
    assert outcome.code == 0
    video = Path("outputs/0000-a-red-circle-s7.mp4")
    assert read_video(video).shape == (9, 32, 48, 3)
    record = sidecar(video)
    assert (record["seed"], record["options"]["ended"]) == (7, "complete")
    assert record["weights"]["kind"] == "converted"
    assert all(line.startswith("longlive: ") for line in outcome.lines)
    assert any(str(video) in line for line in outcome.lines)


def test_the_seed_decides_the_video(predict):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert predict(PROMPT, f"--seed={seed}", f"--output={name}.mp4").code == 0
    a, b, c = (read_video(Path(f"{name}.mp4")) for name in "abc")
    assert (a == b).all()
    assert (a != c).any()


def test_seconds_are_rounded_up_to_whole_blocks_and_replace_latent_frames(predict, tmp_path):
    length = write(tmp_path / "l.yaml", "model: {init_args: {seconds: null, latent_frames: 9}}")
    assert predict(PROMPT, f"--config={length}", "--output=a.mp4").code == 0
    assert predict(PROMPT, f"--config={length}", "--output=b.mp4", "--seconds=0.6").code == 0
    assert [sidecar(Path(name))["latent_frames"] for name in ("a.mp4", "b.mp4")] == [9, 6]


@pytest.mark.parametrize("switch", [["--switch", "3", "6"], ["--switch=[3, 6]"]])
def test_several_prompts_switch_where_the_command_line_says(predict, switch):
    prompts = ["a red circle", "a blue square", "a circle"]
    options = f"--prompt={json.dumps(prompts)}", "--output=x.mp4", "--seconds=1.5"
    assert predict(*options, *switch).code == 0
    assert starts(Path("x.mp4")) == list(zip((0, 3, 6), prompts, strict=True))


@pytest.mark.parametrize("switch", ["6", "[6]"])
def test_switches_may_stand_in_a_configuration(predict, tmp_path, switch):
    config = write(tmp_path / "s.yaml", f'prompt: ["a circle", "a square"]\nswitch: {switch}\n')
    assert predict(f"--config={config}", "--output=x.mp4", "--seconds=1.5").code == 0
    assert starts(Path("x.mp4")) == [(0, "a circle"), (6, "a square")]


def test_each_line_of_a_text_file_is_a_video_with_a_seed_of_its_own(predict, tmp_path):
    file = write(tmp_path / "p.txt", "a red circle\na blue square\n")
    assert predict(f"--prompts={file}", "--seed=5").code == 0
    assert sorted(path.name for path in Path("outputs").glob("*.mp4")) == [
        "0000-a-red-circle-s5.mp4",
        "0001-a-blue-square-s6.mp4",
    ]


def test_each_line_of_a_jsonl_file_is_a_video_with_its_own_switches(predict, tmp_path):
    named = {"prompts": ["a circle", "a square"], "switch_frame_indices": [3]}
    equal = {"prompts": ["a red circle", "a blue square"]}
    file = write(tmp_path / "p.jsonl", f"{json.dumps(named)}\n{json.dumps(equal)}\n")
    assert predict(f"--prompts={file}", "--seconds=1.9", "--output=x.mp4").code == 0
    assert starts(Path("x.mp4")) == [(0, "a circle"), (3, "a square")]
    assert starts(Path("x-0001.mp4")) == [(0, "a red circle"), (6, "a blue square")]


def test_frames_and_latents_are_written_on_request(predict):
    assert predict(PROMPT, "--output=x.mp4", "--png=true", "--latents=true").code == 0
    assert len(list(Path("x").glob("*.png"))) == 9
    assert Path("x.safetensors").is_file()


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(predict, tmp_path):
    folder = write_nano_model(tmp_path / "long", text_len=512)
    outcome = predict("--prompt=" + "circle " * 600, f"--model.weights={folder}")
    assert outcome.code == 0
    told = [line for line in outcome.lines if "tokens" in line]
    assert len(told) == 1
    assert "a prompt has 600 tokens and the model reads 511: the last 89 were dropped" in told[0]


def test_the_help_begins_with_the_short_cuts(capsys):
    assert main(["predict", "--help"]) == 0
    text = capsys.readouterr().out
    before_trainer = text.partition("--trainer")[0]
    for name in ("prompt", "prompts", "switch", "seconds", "seed", "output", "png", "latents"):
        assert f"\n  --{name} " in before_trainer
    assert before_trainer.startswith("usage: longlive predict --config")


# Settings.


@pytest.mark.parametrize("way", ["option", "file"])
@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("model.window_latent_frame", 9, "did you mean @model.window_latent_frames?"),
        ("data.prompt_file", "x", "did you mean @data.prompts_file?"),
        ("trainer.acelerator", "cpu", "did you mean @trainer.accelerator?"),
        ("secnds", 3, "did you mean @seconds?"),
        ("modle", 3, "did you mean @model?"),
        ("sec", 3, "did you mean @seconds?"),
        ("wrong", 3, "see longlive predict --help"),
    ],
)
def test_a_misspelt_key_is_named_with_the_closest_one(predict, tmp_path, way, key, value, fix):
    is_parsers = way == "option" and not key.startswith(("model.", "data."))
    dashes = "--" if is_parsers else ""
    told = predict(PROMPT, *setting(way, key, value, tmp_path)).refusal()
    assert told == f"unknown {dashes}{key}: {fix.replace('@', dashes)}"


def test_a_wrong_first_part_of_a_key_is_recognized(predict):
    assert predict(PROMPT, "--modle.seconds=3").refusal() == (
        "unknown --modle.seconds: did you mean --model?"
    )


def test_without_a_close_key_those_of_the_class_are_listed(predict):
    told = predict(PROMPT, "--model.qqq=1").refusal()
    assert told.startswith("unknown model.qqq: it can be weights, size, height_px, ")


@pytest.mark.parametrize("way", ["option", "file"])
@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model.sampler", "eular", "model.sampler must be renoise or euler, got eular"),
        (
            "model.window_latent_frames",
            "wide",
            "model.window_latent_frames must be a whole number or null, got wide",
        ),
        ("model.keeps_sink", 7, "model.keeps_sink must be true or false, got 7"),
        (
            "model.denoising_steps",
            ["a", "b"],
            "model.denoising_steps must be a list of whole numbers, a whole number or null, "
            "got ['a', 'b']",
        ),
        ("trainer.max_epochs", "all", "trainer.max_epochs must be a whole number or null, got all"),
        ("trainer.callbacks", 3, "trainer.callbacks cannot be 3: see longlive predict --help"),
        ("seconds", "long", "seconds must be a number or null, got long"),
        (
            "switch",
            "ten",
            "switch must be a list of whole numbers, a whole number or null, got ten",
        ),
        ("seed_everything", -3, "seed_everything goes from 0 to 4294967295, got -3"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(predict, tmp_path, way, key, value, told):
    options = setting(way, key, value, tmp_path)
    if isinstance(value, list) and way == "option":
        options = [f"--{key}=[a,b]"]
    assert predict(PROMPT, *options).refusal() == told


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | list[int], "a whole number or a list of whole numbers"),
        (bool | str | Path | None, "true or false, a text, a path or null"),
        (Callable[[], None], None),
        (float | Callable[[], None], None),
    ],
)
def test_types_are_put_into_words(hint, words):
    assert allowed_by(hint) == words


@pytest.mark.parametrize("way", ["option", "file"])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (
            "longlive.callbacks.progress.RoloutProgress",
            "longlive.callbacks.progress has no RoloutProgress, did you mean RolloutProgress?",
        ),
        ("longlive.callbacks.zzz.Zzz", "longlive.callbacks has no zzz, check the name"),
        ("longlive.callbacks.compil.Compile", "longlive.callbacks has no compil, did you mean"),
        ("zzz.Zzz", "No module named 'zzz'"),
        ("pathlib.Path", "pathlib.Path is no Callback"),
    ],
)
def test_an_unknown_callback_is_named(predict, tmp_path, way, path, reason):
    options = [f"--trainer.callbacks+={path}"]
    if way == "file":
        options = setting(way, "trainer.callbacks+", [{"class_path": path}], tmp_path)
    assert predict(PROMPT, *options).refusal().startswith(f"trainer.callbacks: {reason}")


def test_arguments_of_a_callback_are_checked_like_others(predict, tmp_path):
    entry = {"class_path": "longlive.callbacks.compile.CompileLayers", "init_args": {"mod": "x"}}
    options = setting("file", "trainer.callbacks+", [entry], tmp_path)
    assert predict(PROMPT, *options).refusal() == (
        "unknown trainer.callbacks.mod: did you mean trainer.callbacks.mode?"
    )


def test_a_callback_that_two_overlays_bring_is_refused_before_weights_are_read(predict, tmp_path):
    entry = {"class_path": "longlive.callbacks.frame_writer.FrameWriter"}
    options = setting("file", "trainer.callbacks+", [entry], tmp_path)
    outcome = predict(PROMPT, *options, "--model.weights=nowhere")
    assert outcome.refusal() == "FrameWriter is configured twice: name its overlay once"


def test_an_output_without_a_writer_is_refused(predict):
    told = predict(PROMPT, "--trainer.callbacks=null", "--output=x.mp4").refusal()
    assert told == "--output needs the callback FrameWriter: add it to trainer.callbacks"


def test_short_cuts_that_a_class_does_not_take_are_refused(run):
    config = ROOT / "configs" / "train" / "tiny_vae.yaml"
    told = run("predict", "--config", config, PROMPT).refusal()
    assert told.startswith("--prompt does not fit: ")
    assert told.endswith(".ShapesClips takes no prompt")


# Configuration files.


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"model: [1\n", r"@ line 2 is not YAML \(.*\): correct it"),
        (b"- 1\n", r"@ holds no settings: it needs keys such as model and trainer"),
        (b"", r"@ holds no settings: .*"),
        (b"\xff\xfe\x00", r"@ is not UTF-8 text: name a YAML file after --config"),
        (None, r"cannot read the configuration @: no such file or directory; check its name"),
    ],
)
@pytest.mark.parametrize("option", ["--config=", "--config ", "-c "])
def test_a_bad_configuration_file_is_named(predict, tmp_path, content, told, option):
    path = tmp_path / "other.yaml"
    if content is not None:
        path.write_bytes(content)
    words = f"{option}{path}".split(" ")
    refusal = predict(PROMPT, *words).refusal()
    assert_matches(refusal, told.replace("@", str(path)))


def test_a_folder_is_no_configuration(run, tmp_path):
    told = run("predict", f"--config={tmp_path}", PROMPT).refusal()
    assert told.startswith(f"cannot read the configuration {tmp_path}: is a directory")


def test_a_configuration_may_be_written_out(predict):
    written = "{model: {init_args: {seconds: null, latent_frames: 6}}}"
    assert predict(PROMPT, f"--config={written}", "--output=x.mp4").code == 0
    assert sidecar(Path("x.mp4"))["latent_frames"] == 6


@pytest.mark.parametrize("command", ["predict", "fit"])
def test_without_a_configuration_one_is_named(run, command):
    fix = {"predict": "--config configs/tiny.yaml", "fit": "a --config of configs/train"}[command]
    assert (
        run(command).refusal() == f"no data and model to {command}: give {fix}, before other ones"
    )


def test_an_overlay_without_a_base_is_refused(run):
    overlay = ROOT / "configs" / "window" / "9.yaml"
    assert run("predict", "--config", overlay, PROMPT).refusal() == (
        "unknown model.window_latent_frames: no class is configured that takes it, "
        "begin with --config configs/tiny.yaml"
    )


# Prompts.


@pytest.mark.parametrize("prompt", ["", "  "])
def test_an_empty_prompt_is_refused(predict, prompt):
    assert predict(f"--prompt={prompt}").refusal() == (
        "prompt 1 is empty; describe what the video shows"
    )


def test_no_prompt_and_two_kinds_of_prompts_are_refused(predict):
    assert predict().refusal() == ("there is nothing to show; give a prompt or a file of prompts")
    assert predict(PROMPT, "--prompts=x.txt").refusal() == (
        "both a prompt and a file of prompts are given; leave one out"
    )


def test_a_prompt_without_quotes_is_recognized(predict):
    assert predict("--prompt", "a", "red", "circle").refusal() == (
        "'red circle' belongs to no option: put a prompt in quotes"
    )


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "p.txt",
            None,
            "cannot read prompts from p.txt: no such file or directory; check the name",
        ),
        ("p.doc", "a", "p.doc is no prompt file; its name must end in .txt, .jsonl, .yaml, .yml"),
        ("p.txt", "a\n\nb\n", "p.txt line 2 is blank; remove it or write a prompt"),
        ("p.txt", "", "p.txt is empty; write a prompt into it"),
        (
            "p.jsonl",
            '{"prompts": ["a"]}\n{"prompts": ["a", "b", "c"], "switch_frame_indices": [6, 3]}\n',
            "p.jsonl line 2: switch latent frames must ascend, got 3 after 6; sort them",
        ),
        (
            "p.jsonl",
            '{"prompts": ["a"]}\n{"prompts": ["a", "b"], "switch_frame_indices": [3]}\n',
            "video 1: prompt 2 would never be shown: no block is left for its switch at latent "
            "frame 3 (the last of 3 starts at 0); switch earlier or ask for a longer video",
        ),
    ],
)
def test_a_bad_file_of_prompts_is_refused_before_any_video(predict, name, content, told):
    if content is not None:
        Path(name).write_text(content)
    assert predict(f"--prompts={name}", "--model.weights=nowhere").refusal() == told
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("switches", "told"),
    [
        (["6", "3"], "switch latent frames must ascend, got 3 after 6; sort them"),
        (["3", "3"], "switch latent frames must ascend, got 3 after 3; sort them"),
        (["3"], "1 switch latent frames do not fit 3 prompt(s); give one for each prompt after"),
        (["3", "30"], "prompt 3 would never be shown: no block is left for its switch at latent"),
        (["-3", "3"], "switch latent frame -3 is negative; count from 1"),
    ],
)
def test_switches_out_of_order_or_past_the_end_are_refused(predict, switches, told):
    prompts = '--prompt=["a circle", "a square", "a red circle"]'
    outcome = predict(prompts, "--seconds=1.5", "--switch", *switches)
    assert outcome.refusal().startswith(told)
    assert not Path("outputs").exists()


# Settings that cannot work together: nothing is read or written for them.


@pytest.mark.parametrize("way", ["option", "file"])
@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "model.window_latent_frames",
            5,
            "a window of 5 latent frames has no room for a sink of 3 and a block of 3: "
            "set window_latent_frames to at least 6",
        ),
        (
            "model.sink_latent_frames",
            4,
            "a sink of 4 latent frames is larger than a block of 3: "
            "set sink_latent_frames to at most 3",
        ),
        (
            "model.seconds",
            256,
            "absolute positions end at 1023 latent frames and 1026 latent frames was asked for: "
            "set positions to relative",
        ),
        (
            "model.latent_frames",
            7,
            "give the length of a video once: as seconds or as latent_frames",
        ),
        ("model.block_latent_frames", 0, "a block needs at least one latent frame, got 0"),
        (
            "model.height_px",
            33,
            "a video of 48x33 pixels does not fit: both sides must be positive multiples of 8",
        ),
        ("seconds", 0, "seconds must be positive, got 0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(predict, tmp_path, way, key, value, told):
    options = setting(way, key, value, tmp_path)
    assert predict(PROMPT, *options, "--model.weights=nowhere").refusal() == told


def test_a_length_of_broken_blocks_is_refused_with_the_next_whole_one(predict):
    told = predict(PROMPT, "--model.seconds=null", "--model.latent_frames=7").refusal()
    assert told == "7 latent frames are not whole blocks of 3: set latent_frames to 9"


def test_relative_positions_have_no_limit(predict, tmp_path):
    infinity = ROOT / "configs" / "length" / "infinity.yaml"
    options = "--seconds=256.5", f"--config={infinity}", "--model.weights=nowhere"
    assert predict(PROMPT, *options).refusal().startswith("not found under nowhere")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
# The whole word would mark the test as one that needs a GPU.
@pytest.mark.parametrize("name", ["gpu", "cuda"], ids="accelerator={}".format)
def test_a_missing_gpu_is_told_with_what_works_without_one(predict, name):
    assert predict(PROMPT, f"--trainer.accelerator={name}").refusal() == (
        f"no GPU for accelerator {name}: use --config configs/tiny.yaml, or add "
        "--trainer.accelerator cpu"
    )


def test_an_unknown_accelerator_is_refused(predict):
    told = predict(PROMPT, "--trainer.accelerator=abacus").refusal()
    assert_matches(told, r"trainer: .*abacus.* Available names are: .*")


def test_an_attention_kernel_that_does_not_run_here_is_refused(predict):
    told = predict(PROMPT, "--model.attention=flash-attn-4").refusal()
    assert told == "attention backend 'flash-attn-4' cannot be used: needs a CUDA device"


# Weights.


@pytest.fixture
def damaged(nano, tmp_path) -> Path:
    """A copy of the model, to be damaged."""
    return Path(shutil.copytree(nano, tmp_path / "damaged"))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("name", ["dit", "vae", "text_encoder"])
def test_a_truncated_weight_file_is_named(predict, damaged, name, share):
    path = damaged / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    told = predict(PROMPT, f"--model.weights={damaged}").refusal()
    assert_matches(told, rf"{path} is damaged or incomplete .*; delete it and download it again")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("dit.safetensors", b"\xff" * 999, r"@ is damaged or incomplete .*"),
        ("dit.safetensors", b"version https://git-lfs.github.com/spec", r"@ is a Git LFS place.*"),
        ("tokenizer.json", b"{}", r"@ is not a readable tokenizer .*"),
        (CONFIG_FILE, b'{"dit": ', r"@ is damaged .*: copy it again"),
        (CONFIG_FILE, b"[1]", r"@ is damaged .*: copy it again"),
        (CONFIG_FILE, b'{"dit": {"widht": 3}}', r"@ does not describe a dit .*'widht'.*"),
        (CONFIG_FILE, b'{"dit": {"width": "wide"}}', r"@ does not describe a dit .*"),
        (CONFIG_FILE, b'{"dit": null}', r"@ does not describe a dit .*"),
    ],
)
def test_a_corrupt_file_is_named(predict, damaged, name, content, told):
    path = damaged / name
    path.write_bytes(content)
    refusal = predict(PROMPT, f"--model.weights={damaged}").refusal()
    assert_matches(refusal, told.replace("@", str(path)))


@pytest.mark.parametrize("name", ["dit.safetensors", "vae.safetensors", "tokenizer.json"])
def test_a_missing_weight_file_is_named(predict, damaged, name):
    (damaged / name).unlink()
    told = predict(PROMPT, f"--model.weights={damaged}").refusal()
    assert_matches(told, rf"no (weights|tokenizer) at {damaged / name}[;:] .*")


def test_a_checkpoint_of_another_size_is_recognized(predict, nano, tmp_path):
    deeper = write_nano_model(tmp_path / "deeper", dit=replace(DIT, layers=3))
    shutil.copy(nano / "dit.safetensors", deeper)
    # One line, although dozens of weights are missing.
    outcome = predict(PROMPT, f"--model.weights={deeper}")
    assert outcome.code == 2
    assert_matches(
        outcome.lines[-1],
        rf"longlive: error: {deeper}/dit.safetensors does not fit the model: it looks like "
        r"transformer weights of width 16 with 2 layers, the model takes transformer weights of "
        r"width 16 with 3 layers; .*",
    )


def test_weights_that_are_not_there_are_listed_with_the_command_that_fetches_them(predict):
    outcome = predict(PROMPT, "--model.weights=nowhere", "--model.size=wan-1.3b")
    assert outcome.code == 2
    assert_matches(
        outcome.lines[-1],
        r"longlive: error: not found under nowhere: .*; run `longlive download longlive-1.3b`",
    )


@pytest.mark.parametrize("config", [None, {"dim": 1536}])
def test_a_folder_of_published_weights_is_not_taken_for_the_small_model(predict, tmp_path, config):
    folder = tmp_path / "published"
    folder.mkdir()
    if config is not None:
        (folder / CONFIG_FILE).write_text(json.dumps(config))
    outcome = predict(PROMPT, f"--model.weights={folder}")
    assert "not found under" in outcome.lines[-1]


def test_a_decoder_that_the_weights_lack_is_refused(predict, nano):
    assert predict(PROMPT, "--model.decoder=tiny").refusal() == (
        f"no tiny decoder in {nano}: set model.decoder to wan, or train one "
        "(configs/train/tiny_decoder.yaml)"
    )


def test_a_training_checkpoint_is_looked_at_before_it_is_loaded(predict):
    Path("cut.ckpt").write_bytes(b"PK\x03\x04")
    assert_matches(predict(PROMPT, "--ckpt_path=cut.ckpt").refusal(), r"cut\.ckpt is damaged .*")
    assert_matches(predict(PROMPT, "--ckpt_path=no.ckpt").refusal(), r"no weights at no\.ckpt; .*")


# What is already made stays.


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("file.txt", "file.txt is a file: name a folder, or a file that ends in .mp4"),
        ("x.gif", "videos are written as .mp4, not .gif: rename x.gif"),
        ("file.txt/x.mp4", "file.txt is a file: name a folder, or a file that ends in .mp4"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(predict, output, told):
    Path("file.txt").write_text("mine")
    assert predict(PROMPT, f"--output={output}").refusal() == told
    assert Path("file.txt").read_text() == "mine"


class FullDisk:
    """Takes so many bytes of MP4 and no more."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        self.write_all = h264._PartFile._write_all

    def __call__(self, file: h264._PartFile, rest: memoryview) -> None:
        taken = min(self.free_bytes, len(rest))
        self.write_all(file, rest[:taken])
        self.free_bytes -= taken
        if taken < len(rest):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_every_frame_that_fitted(predict, tmp_path, monkeypatch):
    file = write(tmp_path / "p.txt", "a red circle\na blue square\n")
    assert predict(f"--prompts={file}", "--seconds=1", "--output=whole.mp4").code == 0
    first, second = (Path(name).stat().st_size for name in ("whole.mp4", "whole-0001.mp4"))
    disk = FullDisk(first + second // 2)
    monkeypatch.setattr(h264._PartFile, "_write_all", lambda part, rest: disk(part, rest))
    outcome = predict(f"--prompts={file}", "--seconds=1", "--output=x.mp4")
    assert_matches(
        outcome.refusal(),
        r"cannot write x-0001\.mp4: no space left on device, its first \d+ frames are kept; "
        r"free some space or choose another output folder",
    )
    assert (read_video(Path("x.mp4")) == read_video(Path("whole.mp4"))).all()
    kept = read_video(Path("x-0001.mp4"))
    assert 0 < len(kept) < 21
    assert f"its first {len(kept)} frames" in outcome.lines[-1]
    assert (kept == read_video(Path("whole-0001.mp4"))[: len(kept)]).all()
    assert sidecar(Path("x-0001.mp4"))["options"]["ended"] == "failed: UserError"
    assert not list(Path().glob(".*part*"))


def test_bad_input_leaves_an_earlier_video_alone(predict, damaged):
    assert predict(PROMPT, "--output=x.mp4").code == 0
    before = Path("x.mp4").read_bytes()
    (damaged / "vae.safetensors").write_bytes(b"")
    for option in (f"--model.weights={damaged}", "--switch=3", "--model.sink_latent_frames=9"):
        predict(PROMPT, "--output=x.mp4", option).refusal()
    assert Path("x.mp4").read_bytes() == before


def test_ctrl_c_finishes_the_video_so_far_and_it_plays(nano_config, tmp_path):
    # A process that a shell started in the background ignores the signal until told otherwise.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from longlive.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    video = tmp_path / "x.mp4"
    options = PROMPT, "--seconds=250", f"--output={video}", f"--config={nano_config}"
    line = [sys.executable, "-c", program, "predict", f"--config={TINY}", *options]
    one_core = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(line, cwd=ROOT, env=one_core, stderr=subprocess.PIPE, text=True) as made:
        assert made.stderr is not None
        lines = []
        for text in made.stderr:
            if not any("frames" in earlier for earlier in lines) and "frames" in text:
                made.send_signal(signal.SIGINT)
            lines.append(text.rstrip("\n"))
    assert made.returncode == 130, lines
    assert lines[-1] == "longlive: interrupted"
    assert all(line.startswith("longlive: ") for line in lines)
    record = sidecar(video)
    assert record["options"]["ended"] == "stopped"
    assert 0 < len(read_video(video)) == record["frames"] < 3000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.mp4"]


# What Lightning says.


class OneStep(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_index):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OneBatch(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(torch.zeros(1, 1))


def test_a_training_run_keeps_the_trainers_warnings(run, tmp_path):
    settings = {
        "accelerator": "cpu",
        "max_steps": 1,
        "logger": "lightning.pytorch.loggers.CSVLogger",
        "logger.save_dir": tmp_path,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    options = [f"--trainer.{name}={value}" for name, value in settings.items()]
    classes = f"--model={__name__}.OneStep", f"--data={__name__}.OneBatch"
    with pytest.warns(UserWarning, match="number of training batches"):
        assert run("fit", *classes, *options, "--trainer.log_every_n_steps=50").code == 0


def test_loggers_are_as_before_once_a_command_has_ended(predict):
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels = [logging.getLogger(name).level for name in names]
    predict(PROMPT, "--seconds=0")
    assert [logging.getLogger(name).level for name in names] == levels
    assert logging.getLogger("lightning.pytorch").isEnabledFor(logging.INFO)
