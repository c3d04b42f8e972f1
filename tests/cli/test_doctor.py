"""The report on a machine: complete, honest about what is missing, and never an error."""

import builtins
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import longlive
from longlive.attention.backends import BACKENDS, resolve_attention
from longlive.cli import accelerator, machine, main
from longlive.cli.machine import Machine, examine
from longlive.weights import embedded
from longlive.weights.layouts import COMPONENTS

ROOT = Path(longlive.__file__).parents[1]
GIB = 1 << 30
EMBEDDED = ["config.json", "vae.safetensors", "dit.safetensors", "text_encoder.safetensors"]


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)


@pytest.fixture
def two_gpus(monkeypatch):
    """A Hopper whose memory cannot be asked for, and a card from before FP8."""
    cards = [
        SimpleNamespace(name="H100", major=9, minor=0, total_memory=80 * GIB),
        SimpleNamespace(name="A100", major=8, minor=0, total_memory=40 * GIB),
    ]

    def free(index):
        if index == 0:
            raise RuntimeError("CUDA out of memory")
        return 30 * GIB, 40 * GIB

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, answer in {
        "init": lambda: None,
        "device_count": lambda: len(cards),
        "get_device_properties": cards.__getitem__,
        "get_device_capability": lambda device: (cards[device.index].major, 0),
        "mem_get_info": free,
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return cards


@pytest.fixture
def hide(monkeypatch):
    """Makes packages fail to import, installed or not."""
    real = builtins.__import__

    def hide(*names: str) -> None:
        def import_(name, *args, **kwargs):
            if name.split(".")[0] in names:
                raise ImportError(f"libstdc++ is too old for {name}")
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", import_)

    return hide


def as_json(capsys, *options: str) -> dict:
    assert main(["doctor", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def as_text(capsys, *options: str) -> str:
    assert main(["doctor", *options]) == 0
    return capsys.readouterr().out


def words(text: str) -> str:
    """Text as if it had never been wrapped."""
    return " ".join(text.split())


def test_the_program_prints_one_json_document_and_nothing_else(tmp_path):
    line = [sys.executable, "-m", "longlive", "doctor", "--json", "--models", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert list(report) == [field.name for field in fields(Machine)]
    assert report["packages"]["torch"] == torch.__version__
    assert report["attention"].keys() == BACKENDS.keys()
    assert report["weights"].keys() == COMPONENTS.keys()


@pytest.mark.usefixtures("without_gpu")
def test_without_a_gpu_it_says_why_for_everything_that_needs_one(capsys):
    report = as_json(capsys)
    assert report["gpus"] == []
    assert "built without CUDA" in report["cuda"]["detail"]
    assert report["fp8"] == {"available": False, "detail": "needs a CUDA device"}
    assert {name: found["available"] for name, found in report["attention"].items()} == {
        name: name == "sdpa" for name in BACKENDS
    }
    assert report["attention"]["flash-attn-4"]["detail"] == "needs a CUDA device"


@pytest.mark.usefixtures("two_gpus")
def test_every_gpu_is_named_with_its_memory_and_whether_it_has_fp8(capsys):
    report = as_json(capsys)
    assert report["gpus"] == [
        {
            "index": 0,
            "name": "H100",
            "capability": "9.0",
            "memory_bytes": 80 * GIB,
            "free_bytes": None,
            "fp8": True,
        },
        {
            "index": 1,
            "name": "A100",
            "capability": "8.0",
            "memory_bytes": 40 * GIB,
            "free_bytes": 30 * GIB,
            "fp8": False,
        },
    ]
    assert report["cuda"] == {"available": True, "detail": "CUDA 13.0"}
    assert report["fp8"] == {"available": True, "detail": "on GPU 0"}
    text = words(as_text(capsys))
    assert "gpu 0 H100, compute capability 9.0, unknown of 80.0 GiB free, FP8" in text
    assert "gpu 1 A100, compute capability 8.0, 30.0 of 40.0 GiB free abilities" in text


@pytest.mark.parametrize(
    ("capability", "expected"), [((8, 9), True), ((8, 6), False), ((10, 0), True), ((9, 0), True)]
)
def test_fp8_begins_with_capability_8_9(two_gpus, capability, expected):
    two_gpus[0].major, two_gpus[0].minor = capability
    (first, _), report = accelerator.gpus(), examine(Path("models"))
    assert first.fp8 is report.fp8.available is expected
    if not expected:
        assert report.fp8.detail == "needs compute capability 8.9, GPU 0 is 8.6"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("has_flash", [False, True])
def test_auto_attention_is_the_one_that_a_model_would_get(monkeypatch, capsys, has_flash):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    flash = ModuleType("flash_attn_interface")
    flash.flash_attn_func = lambda *args: None
    monkeypatch.setitem(sys.modules, "flash_attn_interface", flash if has_flash else None)
    report = as_json(capsys)
    taken = resolve_attention("auto", torch.device("cuda", 0), torch.bfloat16)
    module = BACKENDS[report["auto_attention"]].module
    assert taken.__module__ == f"longlive.attention.backends.{module}"
    assert report["auto_attention"] == ("flash-attn-3" if has_flash else "sdpa")
    missing = report["attention"]["flash-attn-4"]
    assert "longlive[cuda]" in missing["detail"]
    # Brackets are markup to rich, which would swallow them.
    assert "pip install 'longlive[cuda]'" in words(as_text(capsys))


@pytest.mark.usefixtures("two_gpus")
def test_a_backend_that_breaks_in_its_own_way_is_missing_and_no_more(monkeypatch, capsys):
    broken = ModuleType("flash_attn_interface")
    broken.__getattr__ = lambda name: (_ for _ in ()).throw(KeyError(f"no\n{name}"))
    monkeypatch.setitem(sys.modules, "flash_attn_interface", broken)
    found = as_json(capsys)["attention"]["flash-attn-3"]
    assert found["available"] is False
    assert found["detail"].startswith("KeyError: ")
    assert "\n" not in found["detail"]


def test_a_driver_that_does_not_work_is_the_reason_given(monkeypatch, capsys):
    def init():
        raise RuntimeError("The NVIDIA driver\non your system is too old")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    report = as_json(capsys)
    assert report["cuda"] == {
        "available": False,
        "detail": "RuntimeError: The NVIDIA driver on your system is too old",
    }
    assert report["gpus"] == []
    assert report["auto_attention"] == "sdpa"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_torch_that_cannot_be_imported_is_reported(hide, monkeypatch, capsys, options):
    for name in [name for name in sys.modules if name.startswith("longlive.attention.")]:
        monkeypatch.delitem(sys.modules, name)
    hide("torch", "av", "triton")
    assert main(["doctor", *options]) == 0
    text = words(capsys.readouterr().out)
    assert "libstdc++ is too old for torch" in text
    assert "libstdc++ is too old for av" in text
    assert torch.__version__ in text  # the version needs no import


def test_packages_that_are_absent_have_no_version(monkeypatch, capsys):
    def version(package):
        raise machine.PackageNotFoundError(package)

    monkeypatch.setattr(machine, "version", version)
    assert set(as_json(capsys)["packages"].values()) == {None}
    assert "torchao not installed" in words(as_text(capsys))


def test_weights_are_found_in_the_folder_that_was_named(tmp_path, capsys):
    vae = tmp_path / "Wan2.1-T2V-1.3B" / "Wan2.1_VAE.pth"
    vae.parent.mkdir()
    vae.write_bytes(b"")
    report = as_json(capsys, "--models", str(tmp_path))
    found = {name: part["detail"] for name, part in report["weights"].items() if part["available"]}
    assert found == {"vae": str(vae)}
    assert report["models"] == str(tmp_path)
    missing = report["weights"]["wan-14b"]["detail"]
    assert "57.2 GB" in missing
    assert "longlive download wan-14b" in missing


@pytest.mark.parametrize("kind", ["absent", "a file", "two levels of nothing"])
def test_a_models_folder_that_is_none_is_no_error(tmp_path, capsys, kind):
    path = tmp_path / "models"
    if kind == "a file":
        path.write_text("")
    if kind == "two levels of nothing":
        path = path / "more" / "still"
    report = as_json(capsys, "--models", str(path))
    assert not any(part["available"] for part in report["weights"].values())
    assert report["free_disk_bytes"] > 0


def test_a_folder_that_may_not_be_read_is_the_reason_given(monkeypatch, capsys):
    def is_file(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", is_file)
    report = as_json(capsys)
    assert "Permission denied" in report["weights"]["vae"]["detail"]


def test_a_name_that_the_terminal_cannot_show_is_spelled_out(capsys, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    assert r"caf\udce9" in as_text(capsys, "--models", folder).replace("\n", "").replace(" ", "")
    assert as_json(capsys, "--models", folder)["models"] == folder


def test_the_embedded_model_needs_all_of_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embedded, "embedded_folder", lambda: tmp_path)
    for name in EMBEDDED:
        (tmp_path / name).write_bytes(b"")
    part = as_json(capsys)["embedded"]
    assert part["available"] is False
    assert part["detail"].startswith("tokenizer.json not in")
    (tmp_path / "tokenizer.json").write_bytes(b"")
    assert as_json(capsys)["embedded"] == {"available": True, "detail": str(tmp_path)}


def test_an_av_without_x264_is_told_from_one_that_is_absent(monkeypatch, capsys):
    av = pytest.importorskip("av")

    def codec(name, mode):
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av.codec, "Codec", codec)
    assert "without libx264" in as_json(capsys)["video"]["detail"]
    monkeypatch.setitem(sys.modules, "av", None)
    assert "not installed" in as_json(capsys)["video"]["detail"]


def test_triton_without_a_c_compiler_is_no_ability(monkeypatch, capsys):
    package = ModuleType("triton")
    package.__version__ = "3.6.0"
    monkeypatch.setitem(sys.modules, "triton", package)
    monkeypatch.setattr(accelerator.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert "C compiler" in as_json(capsys)["triton"]["detail"]
    monkeypatch.setenv("CC", "cc")
    assert as_json(capsys)["triton"] == {"available": True, "detail": "Triton 3.6.0"}


@pytest.mark.parametrize(
    "note",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 05:53:32 UTC 2025\n"
        "GCC version:  gcc version 11.4.0 (Ubuntu)\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n",
    ],
)
def test_the_driver_is_read_from_the_kernel_where_its_program_fails(monkeypatch, tmp_path, note):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho has failed\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setattr(accelerator.shutil, "which", lambda name: str(program))
    monkeypatch.setattr(accelerator, "_DRIVER_NOTE", tmp_path / "version")
    assert accelerator.driver() is None
    (tmp_path / "version").write_text(note)
    assert accelerator.driver() == "570.86.15"
    program.write_text("#!/bin/sh\nprintf '580.65.06\\n580.65.06\\n'\n")
    assert accelerator.driver() == "580.65.06"


def test_memory_is_what_the_container_may_use(monkeypatch, tmp_path, capsys):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_MEMORY_LIMITS", (str(limit),))
    installed = as_json(capsys)["memory_bytes"]
    assert installed == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit.write_text("max\n")
    assert as_json(capsys)["memory_bytes"] == installed
    limit.write_text(f"{GIB}\n")
    report = as_json(capsys)
    assert report["memory_bytes"] == GIB
    assert report["free_memory_bytes"] <= GIB
    assert f"{report['cores']} cores" in as_text(capsys)


def test_what_packages_say_while_they_are_asked_stays_off_stdout(monkeypatch, capsys):
    def talkative():
        sys.stdout.write("welcome")
        return False, "no"

    monkeypatch.setattr(accelerator, "cuda", talkative)
    assert as_json(capsys)["cuda"] == {"available": False, "detail": "no"}


def test_an_unknown_option_is_one_line(capsys):
    assert main(["doctor", "--jsn"]) == 2
    assert capsys.readouterr().err == (
        "longlive: error: unrecognized arguments: --jsn; see longlive doctor --help\n"
    )
