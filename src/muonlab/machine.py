"""What this machine can do: its device, its matrix-multiplication rates, its memory.

Everything here is measured or asked of the operating system when called; nothing runs at import.
"""

import functools
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from muonlab.cores import usable_cores
from muonlab.optim.processor import bf16_is_native


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineRates:
    """Measured ceilings of this machine, in FLOP/s and bytes/s."""

    fp32_flops: float
    bf16_flops: float
    memory_bytes_per_second: float


def default_device() -> torch.device:
    """The GPU of this process if there is one (LOCAL_RANK under torchrun), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def gemm_flops(dtype: torch.dtype, device: torch.device, size: int = 1024) -> float:
    """Measured rate of one ``size``³ matrix product, in FLOP/s (best of 6, or of half a second)."""
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty(size, size, device=device, dtype=dtype)
    best = float("inf")
    begin = time.perf_counter()
    for _ in range(6):  # the first pass pays for kernel selection; the minimum ignores it
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - begin > 0.5:  # bf16 without units for it
            break
    return 2 * size**3 / best


def memory_bandwidth(device: torch.device, num_bytes: int = 256 << 20) -> float:
    """Measured rate of a sum over ``num_bytes`` of resident memory, in bytes/s (best of five)."""
    source = torch.ones(num_bytes // 4, device=device)
    best = float("inf")
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        source.sum()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return num_bytes / best


@functools.cache
def measure_rates(device: torch.device | None = None) -> MachineRates:
    """Measure this machine's ceilings once per process (0.2 to 2.5 s on two CPU cores)."""
    device = device or default_device()
    return MachineRates(
        fp32_flops=gemm_flops(torch.float32, device),
        bf16_flops=gemm_flops(torch.bfloat16, device),
        memory_bytes_per_second=memory_bandwidth(device),
    )


def resolve_dtype_name(name: str, device: torch.device) -> str:
    """``"bf16"`` or ``"fp32"``; ``"auto"`` is bf16 where ``device`` multiplies it in hardware."""
    if name == "auto":
        return "bf16" if bf16_is_native(device) else "fp32"
    return name


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The same as a torch dtype."""
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[resolve_dtype_name(name, device)]


def describe(device: torch.device | None = None) -> dict[str, str | int]:
    """The facts of this machine that belong beside a result."""
    device = device or default_device()
    facts: dict[str, str | int] = {
        "device": str(device),
        "processor": _processor_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = str(torch.version.cuda)
        facts["fp32_precision"] = torch.get_float32_matmul_precision()  # "highest": no TF32
    return facts


def _processor_name() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Seconds of work on ``device`` from now on; of a GPU by its own clock, so starting is free."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = self._mark()

    def stop(self) -> float:
        """The seconds since the start, once the device has done its work."""
        ended = self._mark()
        if isinstance(self._started, float):
            return ended - self._started
        ended.synchronize()
        return self._started.elapsed_time(ended) / 1e3  # it counts milliseconds

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
