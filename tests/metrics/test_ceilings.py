"""Rates: where they come from, and what they make of work."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from longlive.errors import UserError
from longlive.metrics import measure_ceilings as measuring
from longlive.metrics.ceilings import Ceilings, floor_ms, load_ceilings, product_floor_ms
from longlive.metrics.cost import Product, Work
from longlive.metrics.measure_ceilings import (
    SMALL,
    device_name,
    measure_ceilings,
    median_seconds,
)

CPU = torch.device("cpu")
H200 = Path(__file__).parents[2] / "configs" / "ceilings" / "h200.yaml"
ROUND = Ceilings(
    "one", "bfloat16", gemm_tflops=1.0, attention_tflops=2.0, conv_tflops=4.0, copy_tb_s=0.5
)
TERA = 10**12


@pytest.mark.parametrize(
    ("product", "ms"),
    [
        (Product("gemm", TERA, 0), 1000),
        (Product("attention", TERA, 0), 500),
        (Product("conv", TERA, 0), 250),
        (Product("conv", TERA, TERA // 4), 500),
        (Product("conv", TERA, TERA // 16), 250),
    ],
)
def test_a_product_takes_its_arithmetic_or_its_traffic_whichever_is_longer(product, ms):
    assert product_floor_ms(product, ROUND) == pytest.approx(ms)


def test_kinds_take_turns():
    hidden = Product("gemm", TERA, TERA // 2)
    work = Work({"arithmetic": Product("gemm", TERA, 0), "traffic": Product("gemm", 0, TERA // 2)})
    assert floor_ms(work, ROUND) == pytest.approx(2000)
    assert floor_ms(Work({"both": hidden}), ROUND) == pytest.approx(1000)


def test_the_rates_of_the_h200_are_those_that_were_measured():
    assert load_ceilings(H200) == Ceilings("NVIDIA H200", "bfloat16", 657, 523, 578, 4.23)


GOOD = (
    "name: x\ndtype: float32\ngemm_tflops: 1\nattention_tflops: 1\nconv_tflops: 1\ncopy_tb_s: 1\n"
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.replace("copy_tb_s: 1\n", ""), "must have the keys"),
        (GOOD + "fp8_tflops: 2\n", "and no others"),
        ("- 1\n", "must have the keys"),
        ("", "must have the keys"),
        ("a: [", "cannot read ceilings"),
        (GOOD.replace("conv_tflops: 1", "conv_tflops: 0"), "conv_tflops must be a positive number"),
        (GOOD.replace("gemm_tflops: 1", "gemm_tflops: fast"), "got 'fast'"),
        (GOOD.replace("copy_tb_s: 1", "copy_tb_s: .inf"), "got inf"),
        (GOOD.replace("copy_tb_s: 1", "copy_tb_s: .nan"), "got nan"),
        (GOOD.replace("copy_tb_s: 1", "copy_tb_s: true"), "got True"),
    ],
)
def test_a_file_that_is_no_set_of_rates_is_refused_by_name_in_one_line(tmp_path, text, told):
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=told) as error:
        load_ceilings(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_absent_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot read ceilings from"):
        load_ceilings(tmp_path / "absent.yaml")


def test_measured_rates_are_the_flops_of_the_probes_over_their_time(monkeypatch):
    flops, copies = [], []

    def half_a_second(run, device, runs):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            out = run()
        flops.append(counter.get_total_flops())
        copies.append(out.numel() * out.element_size())
        assert runs == SMALL.runs
        return 0.5

    monkeypatch.setattr(measuring, "median_seconds", half_a_second)
    probes = replace(SMALL, convolutions=((16, 4, 24, 24), (8, 2, 6, 6)))
    measured = measure_ceilings(CPU, torch.float32, probes)
    gemm, attention, fine, coarse, nothing = flops
    assert nothing == 0
    assert measured == Ceilings(
        name=device_name(CPU),
        dtype="float32",
        gemm_tflops=2 * gemm / TERA,
        attention_tflops=2 * attention / TERA,
        conv_tflops=(fine + coarse) / TERA,
        copy_tb_s=2 * copies[-1] / 0.5 / TERA,
    )


def test_a_cpu_can_be_measured():
    measured = measure_ceilings(CPU, torch.float32, replace(SMALL, runs=2))
    rates = (measured.gemm_tflops, measured.attention_tflops, measured.conv_tflops)
    assert all(0 < rate < math.inf for rate in rates)


def test_the_median_is_of_the_runs_after_the_warm_up(monkeypatch):
    ticks = iter([0, 1, 10, 12, 20, 29])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(ticks))
    calls = []
    assert median_seconds(lambda: calls.append(None), CPU, runs=3) == 2
    assert len(calls) > 3


@pytest.mark.gpu
def test_a_gpu_is_measured_at_rates_that_it_can_have():
    measured = measure_ceilings(torch.device("cuda"), torch.bfloat16)
    assert measured.name == torch.cuda.get_device_name()
    assert 10 < measured.gemm_tflops < 10_000
    assert 10 < measured.attention_tflops < 10_000
    assert 5 < measured.conv_tflops < 10_000
    assert 0.1 < measured.copy_tb_s < 100
