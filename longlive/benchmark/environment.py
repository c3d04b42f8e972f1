"""The machine, the versions and the commit that a benchmark ran with."""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import longlive
from longlive.benchmark.provenance import Environment, GpuState
from longlive.metrics.clocks import clock_of, memory_gauge_of
from longlive.metrics.measure_ceilings import device_name

PACKAGES = ("lightning", "triton", "torchao", "flash-attn-4", "flash-attn", "nvidia-cudnn-frontend")
_CPU_INFO = Path("/proc/cpuinfo")
_TIMEOUT_S = 20.0
_STATE = {
    "sm_clock_mhz": "clocks.sm",
    "sm_clock_max_mhz": "clocks.max.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
}


def environment_of(device: torch.device) -> Environment:
    """Describe the machine; the state of its GPU is filled in by who knows when it matters."""
    gauge = memory_gauge_of(device)
    is_gpu = device.type == "cuda"
    has_cudnn = is_gpu and torch.backends.cudnn.is_available()
    return Environment(
        device=str(device),
        device_name=device_name(device) if is_gpu else cpu_name(),
        driver=_ask_gpu(device, "driver_version") if is_gpu else None,
        cuda=torch.version.cuda,
        cudnn=str(torch.backends.cudnn.version()) if has_cudnn else None,
        torch=torch.__version__,
        python=platform.python_version(),
        longlive=longlive.__version__,
        packages={name: _version(name) for name in PACKAGES},
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        cores=_cores(),
        threads=torch.get_num_threads(),
        clock=clock_of(device).kind,
        memory=None if gauge is None else gauge.kind,
        gpu_before=None,
        gpu_after=None,
    )


def gpu_state(device: torch.device) -> GpuState | None:
    """Ask the driver for clocks, power and temperature of a GPU; None on a CPU.

    It takes some tens of milliseconds and is no part of any rollout.
    """
    if device.type != "cuda":
        return None
    said = (_ask_gpu(device, ",".join(_STATE.values())) or "").split(",")
    numbers = [_number(text) for text in said] if len(said) == len(_STATE) else [None] * len(_STATE)
    throttled = _ask_gpu(device, "clocks_throttle_reasons.active")
    return GpuState(**dict(zip(_STATE, numbers, strict=True)), throttle_reasons=throttled)


def cpu_name() -> str:
    """Model of the processor, or its architecture where the system does not tell."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def commit_of_checkout() -> str | None:
    """Commit of the checkout that the package is in, ``-dirty`` if changed; None outside of one."""
    package = Path(longlive.__file__).resolve()
    root = package.parents[1]
    git = shutil.which("git")
    if git is None:
        return None
    # The package may also lie, installed, inside a checkout of something else.
    if _output([git, "-C", str(root), "ls-files", "--error-unmatch", str(package)]) is None:
        return None
    commit = _output([git, "-C", str(root), "rev-parse", "HEAD"])
    changes = _output([git, "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return commit and (f"{commit}-dirty" if changes else commit)


def _ask_gpu(device: torch.device, query: str) -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    # By its own name: the driver counts also the GPUs that this process must not see.
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    which = ["-i", f"GPU-{uuid}"] if uuid else []
    return _output([program, *which, f"--query-gpu={query}", "--format=csv,noheader,nounits"])


def _output(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        # What a GPU does not tell is written out: "[N/A]".
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
