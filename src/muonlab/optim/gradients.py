"""One sweep over all gradients: their norms, whether they are finite, and clipping.

Nothing here reads a value on the host but `Sweep.first_nonfinite`, once the norm is known not to be
finite, and a CPU's own values, which cost nothing to read.
"""

import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from muonlab.optim.layout import MatrixSpec
from muonlab.optim.state import names_of
from muonlab.optim.workers import parallel_map


class NonfiniteGradientError(RuntimeError):
    """A gradient holds NaN or infinity; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """A parameter's gradient and its sums of squares: (B,) of each block of a stack, else one (1,).

    ``version`` counts the changes of the gradient's values until it was seen.
    """

    name: str
    parameter: Tensor
    values: Tensor
    algorithm: str
    squares: list[Tensor]
    version: int


class Sweep:
    """What one pass over the gradients of all parameter groups found."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self._groups = groups
        found = list(_gradients(groups))
        # None begins a long one when others are done.
        found.sort(key=lambda each: each[1].numel(), reverse=True)
        self.on_cpu = all(parameter.device.type == "cpu" for _, parameter, _ in found)
        workers = torch.get_num_threads() if self.on_cpu else 1
        self.gradients = parallel_map(_measured, found, workers)
        self.squares = {each.parameter: each.squares for each in self.gradients}

    def is_current(self) -> bool:
        """Whether all gradients are still the ones that were seen."""
        now = [p for group in self._groups for p in group["params"] if p.grad is not None]
        return len(now) == len(self.gradients) and all(
            each.parameter.grad is each.values and each.values._version == each.version
            for each in self.gradients
        )

    @functools.cached_property
    def norms(self) -> dict[str, Tensor]:
        """``norm`` of all gradients, before clipping, ``norm_muon`` and ``norm_adamw``; 0-d."""
        device = self.gradients[0].values.device if self.gradients else torch.device("cpu")
        totals = {}
        for algorithm in ("muon", "adamw"):
            parts = [
                part.sum().to(device)
                for each in self.gradients
                if each.algorithm == algorithm
                for part in each.squares
            ]
            totals[algorithm] = (
                torch.stack(parts).sum() if parts else torch.zeros((), device=device)
            )
        return {
            "norm": (totals["muon"] + totals["adamw"]).sqrt(),
            "norm_muon": totals["muon"].sqrt(),
            "norm_adamw": totals["adamw"].sqrt(),
        }

    def scale_(self, scale: Tensor) -> None:
        """Multiply all gradients by ``scale``; they count as seen."""
        if not self.gradients or (self.on_cpu and bool(scale == 1)):
            return
        by_device: dict[torch.device, list[Tensor]] = {}
        for each in self.gradients:
            by_device.setdefault(each.values.device, []).append(each.values)
        for device, values in by_device.items():
            torch._foreach_mul_(values, scale.to(device))  # type: ignore[attr-defined]
        self.gradients = [
            Gradient(g.name, g.parameter, g.values, g.algorithm, g.squares, g.values._version)
            for g in self.gradients
        ]

    def first_nonfinite(self) -> str | None:
        """The name of a parameter whose gradient is not finite; the norm may overflow without."""
        for each in self.gradients:
            if not bool(each.values.isfinite().all()):
                return each.name
        return None


def refuse_sharded(name: str, parameter: Tensor) -> None:
    """Raise ValueError, naming it, on a parameter of which this process holds only a part."""
    tensor_module = sys.modules.get("torch.distributed.tensor")  # else there can be none
    if tensor_module is not None and isinstance(parameter, tensor_module.DTensor):
        raise ValueError(
            f"{name}: a DTensor, as fully_shard (FSDP2) makes them; Muon needs whole matrices and "
            f"does not gather them yet: use DistributedDataParallel, or torch.optim.AdamW here"
        )
    if getattr(parameter, "_is_flat_param", False) or getattr(parameter, "_fsdp_flattened", False):
        raise ValueError(
            f"{name}: flattened by FullyShardedDataParallel (FSDP1), so its matrices are gone; "
            f"use DistributedDataParallel, or torch.optim.AdamW here"
        )


def _gradients(groups: list[dict[str, Any]]) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    for group in groups:
        for name, parameter in zip(names_of(group), group["params"], strict=True):
            refuse_sharded(name, parameter)
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise ValueError(f"{name}: sparse gradients are not supported")
            yield name, parameter, group


def _measured(found: tuple[str, Tensor, dict[str, Any]]) -> Gradient:
    name, parameter, group = found
    values = parameter.grad
    assert values is not None
    squares = None
    if group["algorithm"] == "muon" and values.numel():
        spec = MatrixSpec.from_layout(parameter.shape, group["layout"])
        if spec.is_stack:
            squares = [_norms(block).square_() for block in spec.blocks(values)]
    if squares is None:
        flat = values.flatten()
        if values.dtype.itemsize < 4:  # a dot product would sum in half precision
            squares = [_norms(flat.view(1, 1, -1)).square_()]
        else:  # at memory bandwidth; a norm is a third as fast
            squares = [torch.dot(flat, flat).view(1)]
    return Gradient(name, parameter, values, group["algorithm"], squares, values._version)


def _norms(matrices: Tensor) -> Tensor:
    """Frobenius norm of each of (B, m, n), in fp32 or fp64."""
    dtype = torch.promote_types(matrices.dtype, torch.float32)
    return torch.linalg.vector_norm(matrices, dim=(1, 2), dtype=dtype)
