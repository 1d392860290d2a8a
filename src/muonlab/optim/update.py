"""One Muon update for all matrices of a parameter group, batched by shape.

Legend: B matrices of a batch, each m × n. A *piece* is one block (B, m, n) of one parameter; pieces
of one shape, from any parameters, share a batch, and a batch is small enough to stay in cache.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from muonlab.optim.diagnostics import Collector
from muonlab.optim.options import update_scale
from muonlab.optim.polar import (
    PASS_ELEMENTS,
    Workspace,
    matrices_within,
    normalise_,
    polar_factors,
    svd_polar,
    work_dtype,
)
from muonlab.optim.schedules import resolve_schedule

# A batch of this many bytes of master values: large enough for full GEMM rate, small enough that a
# value is still in cache when the next pass reads it (docs/decisions/0004).
TARGET_BATCH_BYTES = 16 << 20
MIN_BATCH = 4  # batches are multiples of it, so that every core has matrices of its own


@dataclass(frozen=True, slots=True)
class Piece:
    """Views of one block of one parameter, each (B, m, n), except ``row_moment`` (B, m, 1)."""

    name: str
    parameter: Tensor
    gradient: Tensor
    momentum: Tensor
    second_moment: Tensor | None
    active: Tensor | None  # (B, 1, 1) of 0 and 1; None when every matrix has a gradient


def batches(pieces: Iterable[Piece], max_bytes: int, work_name: str) -> Iterator[list[Piece]]:
    """Pieces of equal (m, n) and dtype, cut and joined into batches of bounded workspace."""
    by_shape: dict[tuple[Any, ...], list[Piece]] = {}
    for piece in pieces:
        key = (*piece.parameter.shape[1:], piece.parameter.dtype, piece.parameter.device)
        by_shape.setdefault(key, []).append(piece)
    for (m, n, dtype, device), same in by_shape.items():
        master = torch.promote_types(dtype, torch.float32)
        work = work_dtype(work_name, torch.empty(0, dtype=master, device=device))
        limit = max(MIN_BATCH, TARGET_BATCH_BYTES // (m * n * master.itemsize))
        limit = min(limit, matrices_within(max_bytes, m, n, master, work))
        limit = limit // MIN_BATCH * MIN_BATCH or limit
        batch, size = [], 0
        for piece in same:
            for part in _cut(piece, min(limit, max(1, PASS_ELEMENTS // (m * n)))):
                if size + part.parameter.shape[0] > limit:
                    yield batch
                    batch, size = [], 0
                batch.append(part)
                size += part.parameter.shape[0]
        yield batch


def _cut(piece: Piece, size: int) -> Iterator[Piece]:
    """Pieces of at most ``size`` matrices."""
    if piece.parameter.shape[0] <= size:
        yield piece
        return
    for start in range(0, piece.parameter.shape[0], size):
        part = slice(start, start + size)
        yield Piece(
            name=piece.name,
            parameter=piece.parameter[part],
            gradient=piece.gradient[part],
            momentum=piece.momentum[part],
            second_moment=None if piece.second_moment is None else piece.second_moment[part],
            active=None if piece.active is None else piece.active[part],
        )


def update_batch(
    batch: list[Piece], options: dict[str, Any], workspace: Workspace, collector: Collector | None
) -> None:
    """Momentum, orthogonalisation, scale, weight decay and step for one batch of equal shapes."""
    first = batch[0].parameter
    m, n = first.shape[1:]
    master = torch.promote_types(first.dtype, torch.float32)
    sizes = [piece.parameter.shape[0] for piece in batch]
    update = workspace.take("update", (sum(sizes), m, n), master, first.device)
    for piece, slot in zip(batch, update.split(sizes), strict=True):
        _accumulate(piece, slot, options["momentum"], options["nesterov"])
        if options["second_moment"] == "adamuon":
            slot.sign_()  # 2507.11005: orthogonalise the signs
        if options["row_equilibration"]:  # 2603.28254, variant R
            row_norms = torch.linalg.vector_norm(slot, dim=2, keepdim=True)
            slot.div_(row_norms.masked_fill_(row_norms == 0, 1.0))
    if collector is not None:
        collector.before(update)
    direction = _orthogonalise(update, options, workspace)

    scale = update_scale(options["scale"], m, n)
    slots = zip(update.split(sizes), direction.split(sizes), strict=True)
    for piece, (slot, result) in zip(batch, slots, strict=True):
        slot.copy_(result)
        if piece.second_moment is not None:
            _adapt_(slot, piece, options)
        if piece.active is not None:
            slot.mul_(piece.active)
        if collector is not None:
            collector.after(piece, slot, scale)
        _apply_(piece, slot, scale, options)


def _accumulate(piece: Piece, out: Tensor, momentum: float, nesterov: bool) -> None:
    """M ← μM + (1 − μ)G, and G + μ(M − G) (Nesterov) or M into ``out``."""
    weight: float | Tensor = 1 - momentum
    if piece.active is not None:  # a weight of 0 leaves the momentum of an idle matrix as it is
        weight = (weight * piece.active).to(piece.momentum.dtype)
    rows = max(1, PASS_ELEMENTS // (out.shape[0] * out.shape[2]))
    parts = (tensor.split(rows, dim=1) for tensor in (piece.gradient, piece.momentum, out))
    for gradient, buffer, target in zip(*parts, strict=True):
        buffer.lerp_(gradient, weight)
        if not nesterov:
            target.copy_(buffer)
        elif gradient.dtype == target.dtype:
            torch.lerp(gradient, buffer, momentum, out=target)
        else:
            target.copy_(gradient).lerp_(buffer.to(target.dtype), momentum)


def _orthogonalise(update: Tensor, options: dict[str, Any], workspace: Workspace) -> Tensor:
    schedule = options["schedule"]
    if schedule == "none":
        return update
    if schedule == "svd":
        return svd_polar(normalise_(update))
    dtype = work_dtype(options["dtype"], update)
    return polar_factors(update, resolve_schedule(schedule), dtype, workspace)


def _adapt_(update: Tensor, piece: Piece, options: dict[str, Any]) -> None:
    """Divide by the root of a running second moment, keeping each matrix's Frobenius norm.

    normuon (2510.05491): one moment a row; adamuon (2507.11005): one an element.
    """
    moment = piece.second_moment
    assert moment is not None
    norms = torch.linalg.vector_norm(update, dim=(1, 2), keepdim=True)
    square = update.square()
    if options["second_moment"] == "normuon":
        square = square.mean(dim=2, keepdim=True)
    weight = 1 - options["beta2"]
    if piece.active is None:
        moment.lerp_(square, weight)
    else:
        moment.lerp_(square, (weight * piece.active).expand_as(square))
    update.div_(moment.sqrt().add_(options["eps"]))
    new_norms = torch.linalg.vector_norm(update, dim=(1, 2), keepdim=True)
    update.mul_(norms / new_norms.masked_fill_(new_norms == 0, 1.0))


def _apply_(piece: Piece, update: Tensor, scale: float, options: dict[str, Any]) -> None:
    parameter, lr, decay = piece.parameter, options["lr"], options["weight_decay"]
    if decay:
        shrink = -lr * decay
        if options["cautious"]:  # 2510.12402: decay only where the update shrinks the weight too
            parameter.addcmul_(parameter, (parameter * update > 0).to(parameter.dtype) * shrink)
        elif piece.active is not None:
            parameter.mul_(1 + shrink * piece.active.to(parameter.dtype))
        else:
            parameter.mul_(1 + shrink)
    if isinstance(lr, Tensor):
        update.mul_(lr.to(update.device) * -scale)
        parameter.add_(update)
    else:
        parameter.add_(update, alpha=-lr * scale)
