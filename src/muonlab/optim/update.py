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
    workspace_bytes,
)
from muonlab.optim.schedules import resolve_schedule

# A batch of this many values: large enough for full GEMM rate, small enough that a value is still
# in cache when the next pass reads it (docs/decisions/0004).
BATCH_ELEMENTS = 2 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Views of one block of one parameter, each (B, m, n), except ``row_moment`` (B, m, 1)."""

    name: str
    parameter: Tensor
    gradient: Tensor
    momentum: Tensor
    second_moment: Tensor | None
    active: Tensor | None  # (B, 1, 1) of 0 and 1; None when every matrix has a gradient

    @property
    def master(self) -> torch.dtype:
        """Of sums and scales: fp32, or fp64 for such parameters."""
        return torch.promote_types(self.parameter.dtype, torch.float32)


def num_workers(pieces: Iterable[Piece], options: dict[str, Any], max_bytes: int) -> int:
    """How many batches to work on at a time: as many as there are CPU cores and workspaces for."""
    workers = torch.get_num_threads()
    for piece in pieces:
        if piece.parameter.device.type != "cpu":
            return 1
        m, n = piece.parameter.shape[1:]
        one = workspace_bytes(1, m, n, piece.master, _dtype(piece, options))
        workers = min(workers, max_bytes // one)
    return max(1, workers)


def batches(
    pieces: Iterable[Piece], options: dict[str, Any], max_bytes: int, workers: int
) -> Iterator[list[Piece]]:
    """Pieces of equal (m, n) and dtype, cut and joined into batches of bounded workspace."""
    by_shape: dict[tuple[Any, ...], list[Piece]] = {}
    for piece in pieces:
        key = (*piece.parameter.shape[1:], piece.parameter.dtype, piece.parameter.device)
        by_shape.setdefault(key, []).append(piece)
    for (m, n, *_), same in by_shape.items():
        within = matrices_within(max_bytes, m, n, same[0].master, _dtype(same[0], options))
        fair = -(-sum(piece.parameter.shape[0] for piece in same) // workers)
        limit = min(BATCH_ELEMENTS // (m * n), within, fair)
        batch, size = [], 0
        for piece in same:
            for part in _cut(piece, max(1, min(limit, PASS_ELEMENTS // (m * n)))):
                if batch and size + part.parameter.shape[0] > limit:
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
    batch: list[Piece], options: dict[str, Any], collector: Collector | None, workspace: Workspace
) -> None:
    """Momentum, orthogonalisation, scale, weight decay and step for one batch of equal shapes."""
    first = batch[0]
    m, n = first.parameter.shape[1:]
    sizes = [piece.parameter.shape[0] for piece in batch]
    shape = (sum(sizes), m, n)
    x = workspace.take("x", shape, _dtype(first, options), first.parameter.device)
    for piece, slot in zip(batch, x.split(sizes), strict=True):
        _accumulate(piece, slot, options)
    if collector is not None:
        collector.before(_direction(first.gradient[0], first.momentum[0], first.master, options))
    directions = _orthogonalise(x, batch, options, workspace).split(sizes)
    scale = update_scale(options["scale"], m, n)
    for piece, direction in zip(batch, directions, strict=True):
        if piece.second_moment is not None:
            direction = _adapted(direction, piece, options)
        if piece.active is not None:
            direction = direction * piece.active
        if collector is not None:
            collector.after(piece, direction, scale)
        _apply_(piece, direction, scale, options)


def _dtype(piece: Piece, options: dict[str, Any]) -> torch.dtype:
    """Of the matrix products."""
    if options["schedule"] in ("svd", "none"):
        return piece.master
    return work_dtype(options["dtype"], piece.master, piece.parameter.device)


def _rows(piece: Piece, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Equal parts of (B, m, n) tensors along m that stay in cache together."""
    size, _, n = piece.parameter.shape
    rows = max(1, PASS_ELEMENTS // (size * n))
    return zip(*(tensor.split(rows, dim=1) for tensor in tensors), strict=True)


def _accumulate(piece: Piece, out: Tensor, options: dict[str, Any]) -> None:
    """M ← μM + (1 − μ)G, and the direction into ``out``."""
    weight: float | Tensor = 1 - options["momentum"]
    if piece.active is not None:  # a weight of 0 leaves the momentum of an idle matrix as it is
        weight = (weight * piece.active).to(piece.momentum.dtype)
    for gradient, momentum, target in _rows(piece, piece.gradient, piece.momentum, out):
        momentum.lerp_(gradient, weight)
        target.copy_(_direction(gradient, momentum, piece.master, options))


def _direction(
    gradient: Tensor, momentum: Tensor, master: torch.dtype, options: dict[str, Any]
) -> Tensor:
    """G + μ(M − G) (Nesterov) or M, in fp32 or fp64; never ``momentum`` itself."""
    if options["nesterov"]:
        out = torch.lerp(gradient.to(master), momentum.to(master), options["momentum"])
    else:
        out = momentum.to(master, copy=True)
    if options["second_moment"] == "adamuon":
        out.sign_()  # 2507.11005: orthogonalise the signs
    if options["row_equilibration"]:  # 2603.28254, variant R
        row_norms = torch.linalg.vector_norm(out, dim=-1, keepdim=True)
        out.div_(row_norms.masked_fill_(row_norms == 0, 1.0))
    return out


def _orthogonalise(
    x: Tensor, batch: list[Piece], options: dict[str, Any], workspace: Workspace
) -> Tensor:
    schedule = options["schedule"]
    if schedule == "none":
        return x
    if schedule == "svd":
        return svd_polar(normalise_(x))

    def master() -> Tensor:
        return torch.cat([_direction(p.gradient, p.momentum, p.master, options) for p in batch])

    return polar_factors(x, resolve_schedule(schedule), workspace, master)


def _adapted(direction: Tensor, piece: Piece, options: dict[str, Any]) -> Tensor:
    """Divided by the root of a running second moment, with each matrix's Frobenius norm kept.

    normuon (2510.05491): one moment a row; adamuon (2507.11005): one an element.
    """
    moment = piece.second_moment
    assert moment is not None
    update = direction.to(moment.dtype, copy=True)
    norms = torch.linalg.vector_norm(update, dim=(1, 2), keepdim=True)
    square = update.square()
    if options["second_moment"] == "normuon":
        square = square.mean(dim=2, keepdim=True)
    weight = 1 - options["beta2"]
    if piece.active is None:
        moment.lerp_(square, weight)
    else:
        moment.lerp_(square, (weight * piece.active).to(moment.dtype).expand_as(square))
    update.div_(moment.sqrt().add_(options["eps"]))
    new_norms = torch.linalg.vector_norm(update, dim=(1, 2), keepdim=True)
    return update.mul_(norms / new_norms.masked_fill_(new_norms == 0, 1.0))


def _apply_(piece: Piece, direction: Tensor, scale: float, options: dict[str, Any]) -> None:
    lr, decay = options["lr"], options["weight_decay"]
    shrink: float | Tensor = -lr * decay
    if piece.active is not None:
        shrink = shrink * piece.active.to(piece.parameter.dtype)
    for parameter, update in _rows(piece, piece.parameter, direction):
        if decay:
            if options["cautious"]:  # 2510.12402: only where the update shrinks the weight too
                agree = (parameter * update > 0).to(parameter.dtype)
                parameter.addcmul_(parameter, agree * shrink)
            else:
                parameter.mul_(1 + shrink)
        if isinstance(lr, Tensor):
            parameter.add_(update.to(piece.master) * (lr.to(update.device) * -scale))
        else:
            parameter.add_(update, alpha=-lr * scale)
