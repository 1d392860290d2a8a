"""What a processor multiplies in hardware: asked of the processor and of the library, never timed.

A choice that follows from here is the same in a run and in its resumption on the same machine.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Values of ONEDNN_MAX_CPU_ISA under which oneDNN does not use a CPU's bf16 instructions.
_ISA_WITHOUT_BF16 = (
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
)


def bf16_is_native(device: torch.device) -> bool:
    """Whether ``device`` multiplies bf16 matrices in hardware, so that they are faster than fp32.

    On a CPU the processor must have AMX or AVX512-BF16, and oneDNN must use it; Arm counts as
    without until it has been measured. On CUDA the compute capability must be at least 8.0: older
    GPUs only emulate bf16. False on every other device.
    """
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return False
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    if limit.upper() in _ISA_WITHOUT_BF16:
        return False
    features = torch.cpu.get_capabilities()
    in_processor = features.get("amx_bf16", False) or features.get("avx512_bf16", False)
    return bool(in_processor and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def full_fp32() -> Iterator[None]:
    """Within, fp32 matrix products are fp32: no TF32 and no bf16, whatever the program asked for.

    The setting belongs to the process and is put back at the end.
    """
    places = (("cuda", "matmul"), ("mkldnn", "matmul"))
    before = [torch._C._get_fp32_precision_getter(*place) for place in places]
    for place in places:
        torch._C._set_fp32_precision_setter(*place, "ieee")
    try:
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            torch._C._set_fp32_precision_setter(*place, precision)
