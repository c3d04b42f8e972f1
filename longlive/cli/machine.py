"""What a machine has and lacks, found out without failing: a broken one needs the report most."""

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ParamSpec, TypeVar

import longlive
from longlive.cli import accelerator
from longlive.cli.accelerator import Gpu
from longlive.weights.layouts import COMPONENTS, Component, format_size

PACKAGES = ("torch", "lightning", "torchao", "av", "triton", "flash-attn-4", "flash-attn")
_EMBEDDED_FILES = (
    "config.json",
    "vae.safetensors",
    "dit.safetensors",
    "text_encoder.safetensors",
    "tokenizer.json",
)
# Version 2 and version 1 of Linux control groups: what a container may use.
_MEMORY_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Ability:
    """Whether something can be had here.

    Attributes:
        available: Whether it can.
        detail: Which one or where; if it cannot, why not and what to do.
    """

    available: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Machine:
    """The report. ``longlive doctor --json`` has the same fields.

    Attributes:
        longlive: Version.
        python: Version.
        system: Operating system, its release, and architecture.
        packages: Version of each package, None for those that are not installed.
        cores: CPU cores that this process may use.
        memory_bytes: Main memory that it may use; None where the system does not tell.
        free_memory_bytes: What is left of it, None as above.
        cuda: Whether torch can use CUDA.
        driver: Version of the NVIDIA driver, None without one.
        gpus: All that torch sees.
        attention: Backends by name, fastest first, on the first GPU, or on the CPU without one.
        auto_attention: The one that ``auto`` takes there for bfloat16.
        fp8: Whether a GPU multiplies in FP8.
        triton: Whether kernels can be compiled for a GPU.
        video: Whether H.264 can be encoded.
        embedded: Whether the weights inside the package are there.
        models: Folder that was searched for published weights.
        weights: What it has of them, by the names of ``longlive.weights.layouts.COMPONENTS``.
        free_disk_bytes: Space for that folder.
    """

    longlive: str
    python: str
    system: str
    packages: dict[str, str | None]
    cores: int
    memory_bytes: int | None
    free_memory_bytes: int | None
    cuda: Ability
    driver: str | None
    gpus: list[Gpu]
    attention: dict[str, Ability]
    auto_attention: str | None
    fp8: Ability
    triton: Ability
    video: Ability
    embedded: Ability
    models: str
    weights: dict[str, Ability]
    free_disk_bytes: int | None


def examine(models: Path) -> Machine:
    """Find out what this machine has. Nothing that is missing or broken makes it fail.

    Args:
        models: Folder to look for published weights in; it need not exist.
    """
    cuda = _ability(accelerator.cuda)
    gpus = _attempt([], accelerator.gpus) if cuda.available else []
    device = "cuda:0" if gpus else "cpu"
    attention = {
        name: _ability(accelerator.attention, name, device)
        for name in _attempt([], accelerator.attention_names)
    }
    return Machine(
        longlive=longlive.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages={name: _attempt(None, _version, name) for name in PACKAGES},
        cores=_cores(),
        memory_bytes=_attempt(None, _memory),
        free_memory_bytes=_attempt(None, _free_memory),
        cuda=cuda,
        driver=_attempt(None, accelerator.driver),
        gpus=gpus,
        attention=attention,
        auto_attention=next((name for name, found in attention.items() if found.available), None),
        fp8=_ability(accelerator.fp8, gpus),
        triton=_ability(accelerator.triton),
        video=_ability(_video),
        embedded=_ability(_embedded),
        models=str(models),
        weights={name: _ability(_weights, part, models) for name, part in COMPONENTS.items()},
        free_disk_bytes=_attempt(None, _free_disk, models),
    )


def _ability(
    question: Callable[Given, tuple[bool, str]], *args: Given.args, **kwargs: Given.kwargs
) -> Ability:
    try:
        return Ability(*question(*args, **kwargs))
    except Exception as error:  # Whatever a driver or a half-installed package does.
        reason = " ".join(str(error).split())
        return Ability(False, f"{type(error).__name__}: {reason}" if reason else repr(error))


def _attempt(
    otherwise: Answer,
    question: Callable[Given, Answer],
    *args: Given.args,
    **kwargs: Given.kwargs,
) -> Answer:
    try:
        return question(*args, **kwargs)
    except Exception:  # As above.
        return otherwise


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int | None:
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    texts = [Path(path).read_text().strip() for path in _MEMORY_LIMITS if Path(path).is_file()]
    return min([installed, *(int(text) for text in texts if text.isdigit())])


def _free_memory() -> int | None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    memory = _memory()
    return int(kib) * 1024 if memory is None else min(int(kib) * 1024, memory)


def _video() -> tuple[bool, str]:
    try:
        import av
    except ImportError as error:
        return False, f"not installed ({error}): pip install av"
    try:
        av.codec.Codec("libx264", "w")
    except ValueError:
        return False, f"PyAV {av.__version__} is built without libx264: pip install av"
    return True, f"PyAV {av.__version__} with libx264"


def _embedded() -> tuple[bool, str]:
    from longlive.weights.embedded import embedded_folder

    folder = embedded_folder()
    missing = [name for name in _EMBEDDED_FILES if not (folder / name).is_file()]
    if missing:
        return False, f"{', '.join(missing)} not in {folder}: install longlive again"
    return True, str(folder)


def _weights(component: Component, models: Path) -> tuple[bool, str]:
    path = component.find(models)
    if path is None:
        return False, f"{component.what}, {format_size(component.size_bytes)}: {component.fetch}"
    return True, str(path)


def _free_disk(folder: Path) -> int | None:
    place = folder.absolute()
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free
