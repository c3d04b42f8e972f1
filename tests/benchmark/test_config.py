"""What cannot be measured is refused before anything runs, in one line that names the setting."""

from dataclasses import asdict, replace

import pytest

from longlive.benchmark.config import BenchmarkConfig
from longlive.errors import UserError

TWO = ["a red circle", "a small square"]


def refused(block: int = 3, **changes: object) -> str:
    with pytest.raises(UserError) as error:
        BenchmarkConfig(**changes).check(block)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_defaults_are_those_of_the_benchmark():
    config = BenchmarkConfig().check(3)
    wanted = {
        "num_output_frames": 120,
        "batch_size": 1,
        "warmup_iterations": 2,
        "benchmark_iterations": 10,
        "sync_cuda": True,
    }
    assert asdict(config).items() >= wanted.items()
    assert config.timeline().switch_latent_frames == (40, 80)


def test_no_iterations_are_refused():
    said = refused(benchmark_iterations=0)
    assert said == "benchmark.benchmark_iterations must be at least 1, got 0"
    assert "warmup_iterations must be at least 0" in refused(warmup_iterations=-1)
    assert "batch_size must be at least 1" in refused(batch_size=0)


def test_fewer_blocks_than_steady_latency_needs_are_refused():
    said = refused(num_output_frames=12, arrival="none")
    assert "steady latency needs 5 blocks" in said
    assert "set it to at least 15" in said
    BenchmarkConfig(num_output_frames=15, arrival="none").check(3)


def test_fewer_blocks_than_a_random_arrival_needs_are_refused():
    said = refused(num_output_frames=15, arrival="random")
    assert "needs 6 blocks" in said
    assert "at least 18 or benchmark.arrival to block_border" in said
    BenchmarkConfig(num_output_frames=18, arrival="random").check(3)


def test_switches_that_leave_no_steady_block_are_refused():
    said = refused(
        num_output_frames=18, prompts=["a", "b", "c"], switch_latent_frames=[9, 12], arrival="both"
    )
    assert "2 prompt switches leave 1 steady block(s) of 6" in said


def test_switches_before_the_steady_state_are_refused():
    said = refused(num_output_frames=30, prompts=TWO, switch_latent_frames=[3])
    assert "the last switch is at block 1: raise" in said


def test_half_blocks_are_refused():
    assert "whole blocks of 3 latent frames, got 25" in refused(num_output_frames=25)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": []}, "benchmark.prompts is empty"),
        ({"prompts": ["a", "b", "a"]}, "has one twice"),
        ({"prompts": ["a", " "]}, "prompt 2 is empty"),
        ({"prompts": TWO, "switch_latent_frames": [60, 90]}, "do not fit 2 prompt(s)"),
        ({"prompts": TWO, "switch_latent_frames": [120]}, "would never be shown"),
        ({"prompts": ["a"], "switch_latent_frames": [60]}, "needs two prompts"),
        ({"ceilings": "x.yaml", "measure_ceilings": True}, "not both"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, said):
    assert said in refused(**changes)


@pytest.mark.parametrize(
    ("arrival", "planned", "random"),
    [
        ("block_border", True, False),
        ("random", False, True),
        ("both", True, True),
        ("none", False, False),
    ],
)
def test_the_arrival_pattern_says_which_rollouts_there_are(arrival, planned, random):
    config = BenchmarkConfig(arrival=arrival)
    assert (config.plans_switches, config.has_arrivals) == (planned, random)
    assert len(config.timeline().prompts) == (3 if planned else 1)
    alone = replace(config, prompts=["a"])
    assert not alone.plans_switches
    assert not alone.has_arrivals
