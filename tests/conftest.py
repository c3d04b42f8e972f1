"""Shared fixtures: where the parity data is, and one thread per test process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"

# Two test processes of two threads each on two cores wait for each other, and take five times as
# long.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden tensors, beside the checkout; see ``tools/check_parity.py``."""
    if not GOLDEN.is_dir():
        pytest.skip("no golden tensors: ../shared/golden is absent")
    return GOLDEN


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    assert torch.is_grad_enabled(), "this test left gradients off for the next one"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
