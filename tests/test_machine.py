import json
import platform
import subprocess
import sys

import pytest
import torch

from muonlab import machine

CPU = torch.device("cpu")


def test_named_dtypes_are_taken_as_they_are() -> None:
    assert machine.resolve_dtype("bf16", CPU) == torch.bfloat16
    assert machine.resolve_dtype("fp32", CPU) == torch.float32


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bf16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(machine, "bf16_is_native", lambda device: native)
    monkeypatch.delattr(machine, "measure_rates")  # never a timing
    assert machine.resolve_dtype("auto", CPU) == dtype


def test_rates_are_measured_once() -> None:
    rates = machine.measure_rates(CPU)
    assert rates is machine.measure_rates(CPU)
    assert min(rates.fp32_flops, rates.bf16_flops, rates.memory_bytes_per_second) > 1e6


def test_small_measurements() -> None:
    assert machine.gemm_flops(torch.float32, CPU, size=16) > 0
    assert machine.memory_bandwidth(CPU, num_bytes=1 << 12) > 0


def test_description_is_plain_data() -> None:
    facts = machine.describe(CPU)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["device"] == "cpu"
    assert facts["torch"] == torch.__version__
    assert facts["processor"]


def test_the_allocator_setting_takes_effect() -> None:
    """In a process of its own: it lasts as long as the process."""
    program = (
        "from muonlab import allocator;"
        "from muonlab.manifest import peak_memory_bytes;"
        "import torch; print(allocator.keep_freed_memory(), peak_memory_bytes(torch.device('cpu')))"
    )
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    assert output[0] == str(glibc)
    assert 10e6 < int(output[1]) < 10e9
