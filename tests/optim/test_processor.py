"""The rule for bf16, on processors that this machine may not be."""

import os
import subprocess
import sys

import pytest
import torch

from muonlab.optim.processor import bf16_is_native

CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch):
    """``processor("amx_bf16", …)``: a CPU with these features, whose bf16 the library uses."""

    def fake(*features, library=True):
        found = dict.fromkeys(features, True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: library)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)

    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    return fake


@pytest.mark.parametrize(
    ("features", "native"),
    [
        (("avx2",), False),
        (("avx2", "avx512_f"), False),
        (("avx512_f", "avx512_bf16"), True),
        (("avx512_f", "avx512_bf16", "amx_bf16"), True),
        (("amx_bf16",), True),
        (("bf16", "sve_bf16"), False),  # Arm: not measured yet
    ],
)
def test_a_cpu_needs_instructions_for_bf16(processor, features, native):
    processor(*features)
    assert bf16_is_native(CPU) is native


def test_the_library_must_use_them(processor):
    processor("avx512_bf16", library=False)
    assert bf16_is_native(CPU) is False


@pytest.mark.parametrize(
    ("limit", "native"),
    [
        ("AVX2", False),
        ("avx512_core", False),
        ("AVX512_CORE_VNNI", False),
        ("AVX512_CORE_BF16", True),
        ("AVX512_CORE_AMX", True),
        ("DEFAULT", True),
    ],
)
@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_a_limit_of_the_library_counts(processor, monkeypatch, variable, limit, native):
    processor("avx512_bf16", "amx_bf16")
    monkeypatch.setenv(variable, limit)
    assert bf16_is_native(CPU) is native


def test_the_real_library_under_a_limit():
    """Whatever this processor is: the library itself says no where its limit says so."""
    code = (
        "import torch; torch.cpu.get_capabilities = lambda: {'avx512_bf16': True};"
        "from muonlab.optim.processor import bf16_is_native;"
        "print(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bf16_is_native(torch.device('cpu')))"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)]
)
def test_a_gpu_needs_capability_8(monkeypatch, capability, native):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert bf16_is_native(torch.device("cuda", 0)) is native


def test_other_devices_have_none():
    assert not bf16_is_native(torch.device("meta"))
    assert not bf16_is_native(torch.device("mps"))
