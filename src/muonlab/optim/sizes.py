"""How much work one operation gets, by device: the only place that knows.

A CPU wants pieces that stay in its cache; an accelerator wants few, large launches.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Numbers of tensor elements, and whether the host has to wait before it can read a value.

    ``per_pass``: of each tensor in one elementwise pass. ``per_batch``: of the matrices that are
    orthogonalised together. ``per_repair``: of those that are done again in fp32 at a time.
    """

    per_pass: int
    per_batch: int
    per_repair: int
    host_waits: bool


# A few tensors of 300,000 fp32 values stay in the 2 MiB of cache beside each core, and a batch of
# 2 Mi values is large enough for the full rate of its products (docs/decisions/0004).
_CPU = Sizes(per_pass=300_000, per_batch=2 << 20, per_repair=300_000, host_waits=False)
# Not measured yet: large enough that a launch is short against its work.
_ACCELERATOR = Sizes(per_pass=64 << 20, per_batch=64 << 20, per_repair=1 << 20, host_waits=True)


def sizes_for(device: torch.device) -> Sizes:
    return _CPU if device.type == "cpu" else _ACCELERATOR
