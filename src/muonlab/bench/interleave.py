"""Fair timing on a machine whose speed drifts: candidates take turns within one process."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from muonlab.machine import synchronize


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds per call of one candidate over all rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Inter-quartile range over the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 2,
    device: torch.device | None = None,
) -> dict[str, Timing]:
    """Time every candidate once per round, in turn, after ``warmup`` untimed rounds.

    A call has ended when ``device`` (default: the CPU) has done its work.

    Compare the medians or, better, `paired_ratio`: each round sees the same machine.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if device is not None:
                synchronize(device)
            elapsed = time.perf_counter() - start
            if turn >= warmup:
                seconds[name].append(elapsed)
    return {name: Timing(seconds=tuple(values)) for name, values in seconds.items()}


def paired_ratio(slow: Timing, fast: Timing) -> float:
    """Median over rounds of ``slow / fast``: how many times faster ``fast`` is."""
    return statistics.median(s / f for s, f in zip(slow.seconds, fast.seconds, strict=True))
