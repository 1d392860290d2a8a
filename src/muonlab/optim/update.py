"""One Muon update for the matrices of all groups, batched by shape.

Legend: B matrices of a batch, each m × n. A *piece* is one block (B, m, n) of one parameter; pieces
of one shape and of equal options, from any parameters, share a batch. On a CPU a batch is small
enough to stay in cache, and each core works on batches of its own; elsewhere all batches are
queued before the host asks, once, whether some matrices must be done again in fp32.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from muonlab.optim.diagnostics import Collector
from muonlab.optim.options import update_scale
from muonlab.optim.polar import (
    Workspace,
    matrices_within,
    normalise_,
    polar_iterations,
    repair_,
    svd_polar,
    work_dtype,
    workspace_bytes,
)
from muonlab.optim.schedules import resolve_schedule
from muonlab.optim.sizes import sizes_for
from muonlab.optim.workers import parallel_map

Options = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """Views of one block of one parameter, each (B, m, n); ``second_moment`` may be (B, m, 1)."""

    name: str
    parameter: Tensor
    gradient: Tensor
    momentum: Tensor
    second_moment: Tensor | None
    active: Tensor | None  # (B, 1, 1), bool; None when every matrix has a gradient

    @property
    def master(self) -> torch.dtype:
        """Of sums and scales: fp32, or fp64 for such parameters."""
        return torch.promote_types(self.parameter.dtype, torch.float32)

    @property
    def size(self) -> int:
        return self.parameter.shape[0]

    def part(self, part: slice) -> "Piece":
        return Piece(
            name=self.name,
            parameter=self.parameter[part],
            gradient=self.gradient[part],
            momentum=self.momentum[part],
            second_moment=None if self.second_moment is None else self.second_moment[part],
            active=None if self.active is None else self.active[part],
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Pieces of equal (m, n), dtype, device and options."""

    pieces: list[Piece]
    options: Options
    collector: Collector | None

    @property
    def shape(self) -> tuple[int, int, int]:
        _, m, n = self.pieces[0].parameter.shape
        return sum(piece.size for piece in self.pieces), m, n


def update(
    found: Iterable[tuple[list[Piece], Options]],
    workspaces: list[Workspace],
    max_bytes: int,
    *,
    diagnostics: bool,
) -> Collector:
    """Update every piece; ``workspaces`` is kept between steps and bounded by ``max_bytes``."""
    found = list(found)
    pieces = [piece for same, _ in found for piece in same]
    on_cpu = all(piece.parameter.device.type == "cpu" for piece in pieces)
    workers = min((_num_workers(*each, max_bytes) for each in found), default=1) if on_cpu else 1
    if len(workspaces) != workers:
        workspaces[:] = [Workspace() for _ in range(workers)]
    # Off the CPU, a half of the bytes is for the directions that wait for the answer.
    bytes_each = max_bytes // workers if on_cpu else max_bytes // 2
    shapes = set()
    work = []
    for same, options in found:
        for batch in _batches(same, options, bytes_each, workers):
            shape = batch[0].parameter.shape[1:]
            collector = Collector(sample=shape not in shapes) if diagnostics else None
            shapes.add(shape)
            work.append(Batch(batch, options, collector))
    if on_cpu:
        update_side_by_side(work, workspaces)
    else:
        for wave in waves(work, max_bytes - bytes_each):
            update_wave(wave, workspaces[0])
    return Collector.joined(batch.collector for batch in work if batch.collector is not None)


def update_side_by_side(work: list[Batch], workspaces: list[Workspace]) -> None:
    free: SimpleQueue[Workspace] = SimpleQueue()
    for workspace in workspaces:
        free.put(workspace)

    def finish(batch: Batch) -> None:
        workspace = free.get()
        try:
            directions, reliable = _orthogonalised(batch, workspace)
            if reliable is not None and not bool(reliable.all()):
                _repair_(batch, directions, reliable, workspace)
            _apply(batch, directions)
        finally:
            free.put(workspace)

    parallel_map(finish, work, len(workspaces))


def update_wave(wave: list[Batch], workspace: Workspace) -> None:
    """One wave of batches with a single question of the host to the device."""
    started = []
    for batch in wave:
        directions, reliable = _orthogonalised(batch, workspace)
        started.append((batch, directions.clone(), reliable))
    flags = [reliable for *_, reliable in started if reliable is not None]
    if flags and not bool(torch.cat(flags).all()):
        for batch, directions, reliable in started:
            if reliable is not None and not bool(reliable.all()):
                _repair_(batch, directions, reliable, workspace)
    for batch, directions, _ in started:
        _apply(batch, directions)


def waves(work: list[Batch], max_bytes: int) -> Iterator[list[Batch]]:
    """Batches of one device whose directions take at most ``max_bytes`` together."""
    wave: list[Batch] = []
    used = 0
    for batch in work:
        count, m, n = batch.shape
        size = count * m * n * _dtype(batch.pieces[0], batch.options).itemsize
        device = batch.pieces[0].parameter.device
        if wave and (used + size > max_bytes or wave[0].pieces[0].parameter.device != device):
            yield wave
            wave, used = [], 0
        wave.append(batch)
        used += size
    if wave:
        yield wave


def _num_workers(pieces: Iterable[Piece], options: Options, max_bytes: int) -> int:
    """How many batches to work on at a time: as many as there are CPU cores and workspaces for."""
    workers = torch.get_num_threads()
    for piece in pieces:
        _, m, n = piece.parameter.shape
        dtype, device = _dtype(piece, options), piece.parameter.device
        workers = min(workers, max_bytes // workspace_bytes(1, m, n, piece.master, dtype, device))
    return max(1, workers)


def _batches(
    pieces: Iterable[Piece], options: Options, max_bytes: int, workers: int
) -> Iterator[list[Piece]]:
    """Pieces of equal (m, n) and dtype, cut and joined into batches of bounded workspace."""
    by_shape: dict[tuple[Any, ...], list[Piece]] = {}
    for piece in pieces:
        key = (*piece.parameter.shape[1:], piece.parameter.dtype, piece.parameter.device)
        by_shape.setdefault(key, []).append(piece)
    for (m, n, _, device), same in by_shape.items():
        dtype, sizes = _dtype(same[0], options), sizes_for(device)
        within = matrices_within(max_bytes, m, n, same[0].master, dtype, device)
        fair = -(-sum(piece.size for piece in same) // workers)
        limit = min(sizes.per_batch // (m * n), within, fair)
        batch, size = [], 0
        for piece in same:
            for part in _cut(piece, max(1, min(limit, sizes.per_pass // (m * n)))):
                if batch and size + part.size > limit:
                    yield batch
                    batch, size = [], 0
                batch.append(part)
                size += part.size
        yield batch


def _cut(piece: Piece, size: int) -> Iterator[Piece]:
    """Pieces of at most ``size`` matrices."""
    if piece.size <= size:
        yield piece
        return
    for start in range(0, piece.size, size):
        yield piece.part(slice(start, start + size))


def _dtype(piece: Piece, options: Options) -> torch.dtype:
    """Of the matrix products."""
    if options["schedule"] in ("svd", "none"):
        return piece.master
    _, m, n = piece.parameter.shape
    return work_dtype(options["dtype"], piece.master, piece.parameter.device, min(m, n))


def _orthogonalised(batch: Batch, workspace: Workspace) -> tuple[Tensor, Tensor | None]:
    """Momentum, then the directions (B, m, n), in ``workspace``, and on which of them to rely."""
    options, first = batch.options, batch.pieces[0]
    x = workspace.take("x", batch.shape, _dtype(first, options), first.parameter.device)
    for piece, slot in zip(batch.pieces, _by_piece(batch, x), strict=True):
        _accumulate(piece, slot, options)
    if batch.collector is not None:
        batch.collector.before(
            _direction(first.gradient[0], first.momentum[0], first.master, options)
        )
    if options["schedule"] == "none":
        return x, None
    if options["schedule"] == "svd":
        return svd_polar(normalise_(x)), None
    if x.dtype == torch.float16:  # its range is too small for squares of raw gradients
        x.copy_(normalise_(_master(batch)))
    return polar_iterations(x, resolve_schedule(options["schedule"]), workspace)


def _repair_(batch: Batch, directions: Tensor, reliable: Tensor, workspace: Workspace) -> None:
    schedule = resolve_schedule(batch.options["schedule"])
    repair_(directions, reliable, schedule, workspace, normalise_(_master(batch)))


def _apply(batch: Batch, directions: Tensor) -> None:
    """Second moment, scale, weight decay and step."""
    _, m, n = batch.shape
    scale = update_scale(batch.options["scale"], m, n)
    for piece, direction in zip(batch.pieces, _by_piece(batch, directions), strict=True):
        if piece.second_moment is not None:
            direction = _adapted(direction, piece, batch.options)
        if piece.active is not None:
            direction = direction * piece.active
        if batch.collector is not None:
            batch.collector.after(piece, direction, scale)
        _apply_(piece, direction, scale, batch.options)


def _by_piece(batch: Batch, tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.split([piece.size for piece in batch.pieces])


def _master(batch: Batch) -> Tensor:
    """The directions before orthogonalisation again, (B, m, n) in fp32 or fp64."""
    return torch.cat(
        [_direction(p.gradient, p.momentum, p.master, batch.options) for p in batch.pieces]
    )


def _rows(piece: Piece, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Equal parts of (B, m, n) tensors along m that stay in cache together."""
    size, m, n = piece.parameter.shape
    rows = max(1, sizes_for(piece.parameter.device).per_pass // (size * n))
    if rows >= m:
        return iter([tensors])
    return zip(*(tensor.split(rows, dim=1) for tensor in tensors), strict=True)


def _accumulate(piece: Piece, out: Tensor, options: Options) -> None:
    """M ← μM + (1 − μ)G, and the direction into ``out``; an idle matrix keeps its M exactly."""
    for gradient, momentum, target in _rows(piece, piece.gradient, piece.momentum, out):
        _lerp_(momentum, gradient, 1 - options["momentum"], piece.active)
        target.copy_(_direction(gradient, momentum, piece.master, options))


def _lerp_(average: Tensor, value: Tensor, weight: float, active: Tensor | None) -> None:
    """A ← A + weight·(V − A) where ``active``; elsewhere V is A, so that A stays bit for bit."""
    average.lerp_(value if active is None else torch.where(active, value, average), weight)


def _direction(gradient: Tensor, momentum: Tensor, master: torch.dtype, options: Options) -> Tensor:
    """G + μ(M − G) (Nesterov) or M, in fp32 or fp64; never ``momentum`` itself."""
    if options["nesterov"]:
        out = torch.lerp(gradient.to(master), momentum.to(master), options["momentum"])
    else:
        out = momentum.to(master, copy=True)
    if options["second_moment"] == "adamuon":
        out.sign_()  # 2507.11005: orthogonalise the signs
    if options["row_equilibration"]:  # 2603.28254, variant R
        largest = out.abs().amax(dim=-1, keepdim=True)
        out.div_(largest.masked_fill_(largest == 0, 1.0))  # now the squares are in range
        row_norms = torch.linalg.vector_norm(out, dim=-1, keepdim=True)
        out.div_(row_norms.masked_fill_(row_norms == 0, 1.0))
    return out


def _adapted(direction: Tensor, piece: Piece, options: Options) -> Tensor:
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
    _lerp_(moment, square, 1 - options["beta2"], piece.active)
    update.div_(moment.sqrt().add_(options["eps"]))
    new_norms = torch.linalg.vector_norm(update, dim=(1, 2), keepdim=True)
    return update.mul_(norms / new_norms.masked_fill_(new_norms == 0, 1.0))


def _apply_(piece: Piece, direction: Tensor, scale: float, options: Options) -> None:
    lr, decay = options["lr"], options["weight_decay"]
    for parameter, update in _rows(piece, piece.parameter, direction):
        if decay:
            _decay_(parameter, update, lr * decay, piece.active, cautious=options["cautious"])
        if isinstance(lr, Tensor):
            parameter.add_(update.to(piece.master) * (lr.to(update.device) * -scale))
        else:
            parameter.add_(update, alpha=-lr * scale)


def _decay_(
    parameter: Tensor,
    update: Tensor,
    amount: float | Tensor,
    active: Tensor | None,
    *,
    cautious: bool,
) -> None:
    """p ← (1 − amount)·p, where ``active``; ``cautious``: only where the step shrinks p too."""
    if isinstance(amount, Tensor):
        amount = amount.to(parameter.device)
    if cautious:  # 2510.12402: u·p ≥ 0
        shrinks = parameter * update >= 0
        shrinks = shrinks if active is None else shrinks & active
        parameter.copy_(torch.where(shrinks, parameter * (1 - amount), parameter))
    elif active is None:
        parameter.mul_(1 - amount)
    else:
        master = torch.promote_types(parameter.dtype, torch.float32)
        parameter.mul_(torch.ones_like(active, dtype=master).masked_fill_(active, 1 - amount))
