"""Threads that work side by side on a CPU, each with its own share of the cores.

Small products leave cores waiting for each other at every operation; batches that share nothing do
not. While one core waits for memory, another multiplies (docs/decisions/0004).
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> list[Result]:
    """``function`` of every item, in their order; called without autograd, in ``workers`` threads.

    With one worker, or fewer items than workers, the calling thread does it with all cores.
    """
    if workers == 1 or len(items) < workers:
        return [function(item) for item in items]
    pool = _pool(workers, torch.get_num_threads(), os.getpid())
    return list(pool.map(function, items))


@functools.cache
def _pool(workers: int, cores: int, process_id: int) -> ThreadPoolExecutor:
    """Threads for the life of the process; a forked one starts its own."""
    ready = threading.Barrier(workers + 1)

    def start() -> None:
        torch.get_num_threads()  # else a thread's first kernel sets it to the process's number
        torch.set_num_threads(cores // workers)  # of this thread
        torch.set_grad_enabled(False)
        ready.wait()

    pool = ThreadPoolExecutor(workers, "muon", start)
    for _ in range(workers):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(cores)  # the calls above also changed the default of new threads
    return pool
