"""How fast a device can go at best: measured rates, and the time that work takes at them.

Data sheets promise rates that no product of these shapes reaches. A ceiling is what the best kernel
at hand reached on a product of the model's own shape, so a floor built on it says what is left to
win by better use of the same kernels, and no more.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from longlive.errors import UserError
from longlive.metrics.cost import Product, Unit, Work

_NUMBERS = ("gemm_tflops", "attention_tflops", "conv_tflops", "copy_tb_s")


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Highest rates of a device.

    Attributes:
        name: The device.
        dtype: Type of the numbers they were measured with, as in ``bfloat16``.
        gemm_tflops: Matrix products, in 1e12 FLOPs a second.
        attention_tflops: Attention, likewise.
        conv_tflops: Convolutions, likewise.
        copy_tb_s: Memory traffic, in 1e12 bytes a second, read and written together.

    Raises:
        UserError: If a rate is not positive.
    """

    name: str
    dtype: str
    gemm_tflops: float
    attention_tflops: float
    conv_tflops: float
    copy_tb_s: float

    def __post_init__(self) -> None:
        for rate in _NUMBERS:
            value = getattr(self, rate)
            # True is an integer to Python, and not-a-number compares as false.
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 < value < math.inf:
                raise UserError(f"{rate} must be a positive number, got {value!r}")

    def tflops(self, unit: Unit) -> float:
        """Rate of a unit, in 1e12 FLOPs a second."""
        rates = {
            "gemm": self.gemm_tflops,
            "attention": self.attention_tflops,
            "conv": self.conv_tflops,
        }
        return rates[unit]


def load_ceilings(path: Path) -> Ceilings:
    """Read rates from a YAML file with the fields of :class:`Ceilings`, and no others.

    Raises:
        UserError: If it cannot be read, or fields are missing, unknown or wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"cannot read ceilings from {path}: {' '.join(str(error).split())}"
        ) from error
    wanted = {field.name for field in fields(Ceilings)}
    if not isinstance(content, dict) or content.keys() != wanted:
        raise UserError(f"{path} must have the keys {', '.join(sorted(wanted))}, and no others")
    try:
        return Ceilings(**content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def product_floor_ms(product: Product, ceilings: Ceilings) -> float:
    """Milliseconds that a product takes at best: ``max(FLOPs / rate, bytes / bandwidth)``."""
    compute_s = product.flops / (ceilings.tflops(product.unit) * 1e12)
    return 1e3 * max(compute_s, product.bytes / (ceilings.copy_tb_s * 1e12))


def floor_ms(work: Work, ceilings: Ceilings) -> float:
    """Milliseconds that work takes at best, one kind after another: the sum over its kinds."""
    return sum(product_floor_ms(product, ceilings) for product in work.kinds.values())
