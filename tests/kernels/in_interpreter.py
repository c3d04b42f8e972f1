"""Checks of kernels by Triton's interpreter: a process each, since Triton is told at import."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


def run_interpreted(module: str) -> None:
    """Run ``check_interpreted`` of a test module in a process whose Triton interprets kernels."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {module} import check_interpreted as c; c()"],
        cwd=Path(__file__).parent,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
