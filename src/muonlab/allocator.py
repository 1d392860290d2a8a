"""The C library's memory allocator, set up for training. Imports no torch."""

import ctypes
import platform
import sys


def keep_freed_memory() -> bool:
    """Let glibc keep large freed blocks instead of returning their pages to the kernel.

    A training step frees and allocates the same large buffers again and again; with glibc's
    default every one of them is zeroed by the kernel anew (15-25 % of a CPU step). This is an
    application's choice: the CLI and the benchmarks call it, the library never does.
    Returns whether it took effect (Linux with glibc only).
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    libc = ctypes.CDLL(None)
    settings = ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 256 << 20))
    return all(libc.mallopt(option, value) == 1 for option, value in settings)
