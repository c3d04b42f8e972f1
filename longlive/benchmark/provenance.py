"""What was measured, and where: enough to repeat it, and to doubt it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class GpuState:
    """What the driver says of a GPU at one moment; None for what it does not tell.

    Attributes:
        sm_clock_mhz: Clock of its multiprocessors.
        sm_clock_max_mhz: Highest that it may have.
        memory_clock_mhz: Clock of its memory.
        power_w: Drawn.
        power_limit_w: Allowed.
        temperature_c: Of the chip.
        throttle_reasons: Why the clock is not higher, as the driver's bit mask in hexadecimal.
    """

    sm_clock_mhz: float | None
    sm_clock_max_mhz: float | None
    memory_clock_mhz: float | None
    power_w: float | None
    power_limit_w: float | None
    temperature_c: float | None
    throttle_reasons: str | None


@dataclass(frozen=True, slots=True)
class Environment:
    """Where it was measured.

    Attributes:
        device: ``cuda:0`` or ``cpu``.
        device_name: Model of the GPU or processor.
        driver: Version of the GPU's driver; None without one.
        cuda: Version that torch was built for; None without.
        cudnn: Version; None without.
        torch: Version.
        python: Version.
        longlive: Version of this package.
        packages: Versions of other packages that matter (Triton, kernels); None for absent ones.
        system: Operating system, release, architecture.
        cpu: Model of the processor.
        cores: Cores this process may use.
        threads: Threads torch computes with on the CPU.
        clock: What timed the device.
        memory: What the bytes are; None if they were not read.
        gpu_before: State of the GPU before the warm-up; None without one.
        gpu_after: After the last plain rollout.
    """

    device: str
    device_name: str
    driver: str | None
    cuda: str | None
    cudnn: str | None
    torch: str
    python: str
    longlive: str
    packages: dict[str, str | None]
    system: str
    cpu: str
    cores: int
    threads: int
    clock: str
    memory: str | None
    gpu_before: GpuState | None
    gpu_after: GpuState | None


@dataclass(frozen=True, slots=True)
class Recipe:
    """What was measured.

    Attributes:
        name: Short: the names of the configuration files, joined by ``+``.
        command: Command line, if there was one.
        config_files: As they were named, in order.
        settings: The resolved configuration (``--print_config``), defaults included.
        callbacks: Classes of the callbacks that ran, optimizations above all.
        left_out: Classes that were configured and left out, because they only watch.
        weights_kind: ``synthetic``, ``embedded``, ``converted`` or ``released``.
        weights_source: Where the weights came from.
        dtype: Type of the transformer's weights.
        attention: Backend of the self-attention that ran.
        height_px: Rows of a frame.
        width_px: Columns of a frame.
        steps: Denoising steps of a block.
        window_latent_frames: Latent frames a query can see; None for all.
        sink_latent_frames: First latent frames that are never evicted.
        block_latent_frames: Latent frames of a block.
        guidance: 1 without; else every pass has twice the batch.
        batch_size: Videos side by side. ``frames`` and frame rates are those of one of them.
    """

    name: str
    command: str
    config_files: tuple[str, ...]
    settings: dict[str, Any]
    callbacks: tuple[str, ...]
    left_out: tuple[str, ...]
    weights_kind: str
    weights_source: str
    dtype: str
    attention: str
    height_px: int
    width_px: int
    steps: int
    window_latent_frames: int | None
    sink_latent_frames: int
    block_latent_frames: int
    guidance: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class StartUp:
    """Times before the first measured rollout.

    Attributes:
        load_s: Weights read, merged and put on the device, by the wall clock.
        warm_up_s: Each warm-up rollout, by the wall clock: the first holds compilation, autotuning
            and graph capture.
        weights_bytes: Memory allocated once the weights are loaded; None where it is not known.
    """

    load_s: float
    warm_up_s: tuple[float, ...]
    weights_bytes: int | None
