"""What torch and a GPU can do here. Every question may fail; ``longlive.cli.machine`` copes."""

import os
import re
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path

FP8_CAPABILITY = (8, 9)
_ANSWER_TIMEOUT_S = 10.0
_DRIVER_NOTE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that torch sees.

    Attributes:
        index: Its number for torch.
        name: Its model.
        capability: Compute capability, as in ``9.0``.
        memory_bytes: All of its memory.
        free_bytes: What nobody uses now; None if the GPU does not answer.
        fp8: Whether its matrix units take FP8.
    """

    index: int
    name: str
    capability: str
    memory_bytes: int
    free_bytes: int | None
    fp8: bool


def cuda() -> tuple[bool, str]:
    """Tell whether torch can use CUDA, and which version, or why not."""
    import torch

    if torch.version.cuda is None:
        return False, f"torch {torch.__version__} is built without CUDA: see https://pytorch.org"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Unlike is_available() this says what is wrong.
        torch.cuda.init()
    return True, f"CUDA {torch.version.cuda}"


def driver() -> str | None:
    """Return the version of the NVIDIA driver, None without one."""
    if program := shutil.which("nvidia-smi"):
        asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(
            asked, capture_output=True, text=True, timeout=_ANSWER_TIMEOUT_S, check=False
        )
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split("\n")[0].strip()
    if not _DRIVER_NOTE.is_file():
        return None
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", _DRIVER_NOTE.read_text())
    return found and found[1]


def gpus() -> list[Gpu]:
    """Return every GPU that torch sees."""
    import torch

    return [_gpu(index) for index in range(torch.cuda.device_count())]


def _gpu(index: int) -> Gpu:
    import torch

    known = torch.cuda.get_device_properties(index)
    try:
        free = torch.cuda.mem_get_info(index)[0]
    except RuntimeError:  # One whose memory is full cannot even be asked.
        free = None
    return Gpu(
        index=index,
        name=known.name,
        capability=f"{known.major}.{known.minor}",
        memory_bytes=known.total_memory,
        free_bytes=free,
        fp8=(known.major, known.minor) >= FP8_CAPABILITY,
    )


def attention_names() -> list[str]:
    """Return the attention backends, fastest first."""
    from longlive.attention.backends import BACKENDS

    return list(BACKENDS)


def attention(name: str, device: str) -> tuple[bool, str]:
    """Tell whether an attention backend works on a device."""
    import torch

    from longlive.attention.backends import missing_reason

    reason = missing_reason(name, torch.device(device))
    return reason is None, reason or f"on {device}"


def fp8(gpus: list[Gpu]) -> tuple[bool, str]:
    """Tell which of these GPUs multiply in FP8."""
    if not gpus:
        return False, "needs a CUDA device"
    able = [str(gpu.index) for gpu in gpus if gpu.fp8]
    if able:
        return True, f"on GPU {', '.join(able)}"
    needed = ".".join(map(str, FP8_CAPABILITY))
    return False, f"needs compute capability {needed}, GPU 0 is {gpus[0].capability}"


def triton() -> tuple[bool, str]:
    """Tell whether Triton is there, and the compiler that it calls."""
    try:
        import triton as package
    except ImportError as error:
        return False, f"not installed ({error}): pip install 'longlive[cuda]'"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return False, "needs a C compiler: install gcc, or name one in CC"
    return True, f"Triton {package.__version__}"
