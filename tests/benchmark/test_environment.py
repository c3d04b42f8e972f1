"""The machine and the commit: what is asked, and what happens where nobody answers."""

import subprocess
from pathlib import Path

import pytest
import torch

from longlive.benchmark import environment
from longlive.benchmark.environment import commit_of_checkout, environment_of, gpu_state

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
ANSWERS = {
    "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu": (
        "1980, 1980, 3201, 640.25, 700.00, [N/A]"
    ),
    "clocks_throttle_reasons.active": "0x0000000000000000",
}


def test_a_machine_without_a_gpu_is_described():
    found = environment_of(CPU)
    assert (found.device, found.driver, found.gpu_before) == ("cpu", None, None)
    assert found.cores >= 1
    assert found.device_name == found.cpu
    assert found.clock == "wall clock"
    assert found.packages["lightning"]
    assert gpu_state(CPU) is None


def test_clocks_and_power_are_what_the_driver_says(monkeypatch):
    monkeypatch.setattr(environment, "_ask_gpu", lambda device, query: ANSWERS[query])
    found = gpu_state(GPU)
    assert (found.sm_clock_mhz, found.memory_clock_mhz, found.power_w) == (1980, 3201, 640.25)
    assert found.temperature_c is None
    assert found.throttle_reasons == "0x0000000000000000"


@pytest.mark.parametrize("answer", [None, "", "1980, 1980"])
def test_a_driver_that_does_not_answer_is_no_error(monkeypatch, answer):
    monkeypatch.setattr(environment, "_ask_gpu", lambda device, query: answer)
    found = gpu_state(GPU)
    assert (found.sm_clock_mhz, found.power_w, found.throttle_reasons) == (None, None, answer)


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout of a package."""
    package = tmp_path / "longlive" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    subprocess.run([*git, "add", "longlive"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    monkeypatch.setattr(environment.longlive, "__file__", str(package))
    return tmp_path


def test_the_commit_is_that_of_the_checkout_and_says_if_it_was_changed(checkout):
    commit = commit_of_checkout()
    assert len(commit) == 40
    (checkout / "new.txt").write_text("not part of it")
    assert commit_of_checkout() == commit
    (checkout / "longlive" / "__init__.py").write_text("x = 1")
    assert commit_of_checkout() == f"{commit}-dirty"


def test_a_package_that_only_lies_inside_a_checkout_has_no_commit(checkout, monkeypatch):
    installed = checkout / "site" / "longlive" / "__init__.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    monkeypatch.setattr(environment.longlive, "__file__", str(installed))
    assert commit_of_checkout() is None
