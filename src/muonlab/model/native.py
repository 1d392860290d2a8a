"""Kernels in C++ for decoding on a CPU, where torch has none that read memory once: opt in.

`enable` compiles `native.cpp` once, in about two seconds; without it, or without a compiler,
torch's operations do the same. All are for inference: nothing here has a gradient.

Shapes: B rows, H heads, C capacity of a cache, W its width, of which the first R are values.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

from muonlab.places import user_cache

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp"]
# sums may be reordered, so that they use vectors; infinities stay
FLAGS += ["-fno-math-errno", "-fno-signed-zeros", "-fno-trapping-math", "-fassociative-math"]
SUFFIXES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
LANES, MAX_WIDTH = 16, 256  # of native.cpp

_library: ctypes.CDLL | None = None


def enable(on: bool = True) -> bool:
    """Use the native kernels from now on, in this process; whether they are in use.

    Warns in one line, and leaves all to torch, where they cannot be compiled.
    """
    global _library
    _library = None
    if on:
        try:
            _library = _load()
        except OSError as error:
            warnings.warn(f"no native kernels, torch's are used: {error}", stacklevel=2)
    return _library is not None


def enabled() -> bool:
    """Whether the native kernels are in use."""
    return _library is not None


def serves(x: Tensor) -> bool:
    """Whether there are kernels in use for a tensor like ``x``."""
    return (
        _library is not None
        and x.dtype in SUFFIXES
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
    )


def serves_latents(cache: Tensor, rank: int) -> bool:
    """Whether `attend_latents` is in use and takes a cache of this width."""
    width = cache.shape[-1]
    return serves(cache) and width <= MAX_WIDTH and width % LANES == rank % LANES == 0


def attend_latents(queries: Tensor, cache: Tensor, lengths: list[int], rank: int) -> Tensor:
    """softmax(queries · cacheᵀ) · cache, of the first ``lengths[b]`` tokens of each row.

    (B, H, W) and (B, C, W) -> (B, H, R); sums in fp32.
    """
    B, H, W = queries.shape
    out = queries.new_empty(B, H, rank)
    counts = (ctypes.c_int32 * B)(*lengths)
    _call(
        "latent_attention", queries.contiguous(), cache, out, counts, B, H, cache.shape[1], W, rank
    )
    return out


def matvec(weight: Tensor, x: Tensor) -> Tensor:
    """``weight · x``; (N, K) and (K,) -> (N,), bf16 with sums in fp32."""
    out = x.new_empty(len(weight))
    _call("matvec", weight, x, out, *weight.shape, ctypes.c_float(1), False)
    return out


def add_matvec(out: Tensor, weight: Tensor, x: Tensor, scale: float) -> None:
    """``out += scale · weight · x``; shapes and dtype as in `matvec`."""
    _call("matvec", weight, x, out, *weight.shape, ctypes.c_float(scale), True)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``x / rms(x) * weight`` over the last dimension, in one thread: for few rows."""
    x = x.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    _call("rms_norm", x, weight, out, x.numel() // width, width, ctypes.c_float(eps))
    return out


def _call(name: str, x: Tensor, *arguments: object) -> None:
    function = getattr(_library, f"{name}_{SUFFIXES[x.dtype]}")
    function(*(_argument(value) for value in (x, *arguments)))


def _argument(value: object) -> object:
    return ctypes.c_void_p(value.data_ptr()) if isinstance(value, Tensor) else value


@functools.cache
def _load() -> ctypes.CDLL:
    """The compiled library, from the user's cache or new; raises OSError if it cannot be made."""
    compiler = os.environ.get("CXX", "c++")
    found = shutil.which(compiler)
    if found is None:
        raise OSError(f"there is no C++ compiler {compiler!r} (CXX names another)")
    facts = (SOURCE.read_text(), *FLAGS, found, platform.machine(), _instruction_sets())
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    cache = user_cache()
    library = cache / f"native-{key}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            new = Path(directory) / library.name
            command = [found, *FLAGS, "-o", str(new), str(SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = done.stderr.strip() or f"exit code {done.returncode}"
                raise OSError(f"{compiler} failed: {reason.splitlines()[0]}")
            new.replace(library)
    return ctypes.CDLL(str(library))


def _instruction_sets() -> str:
    """What ``-march=native`` depends on: the cache may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.processor())
