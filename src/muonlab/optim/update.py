"""One Muon update for the matrices of all groups, batched by shape.

Legend: B matrices of a batch, each m × n; *piece*, *batch*, *wave* as in `muonlab.optim.batches`.
On a CPU a batch is small enough to stay in cache, and each core works on batches of its own.
Elsewhere a wave of batches is queued before the host asks, once, whether some matrices must be done
again in fp32.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch import Tensor

from muonlab.optim.batches import Batch, Options, Piece, batches, dtype_of, num_workers, waves
from muonlab.optim.diagnostics import Collector
from muonlab.optim.options import update_scale
from muonlab.optim.polar import Workspace, normalise_, polar_iterations, repair_, svd_polar
from muonlab.optim.schedules import resolve_schedule
from muonlab.optim.sizes import sizes_for
from muonlab.optim.workers import parallel_map


class Update:
    """One update of every piece, in two halves around one question of the host to the device.

    On a CPU the first half does nothing and asks nothing. Elsewhere it queues the directions of the
    first wave of batches, and changes nothing that lasts: the host can ask ``questions`` together
    with whether to go on at all, and then calls `finish`, or lets the update be.
    """

    def __init__(
        self,
        found: list[tuple[list[Piece], Options]],
        workspaces: list[Workspace],
        max_bytes: int,
        *,
        diagnostics: bool,
    ) -> None:
        """``workspaces`` is kept between steps and bounded by ``max_bytes``."""
        pieces = [piece for same, _ in found for piece in same]
        in_waves = any(sizes_for(piece.parameter.device).host_waits for piece in pieces)
        workers = min((num_workers(*each, max_bytes) for each in found), default=1)
        if in_waves:
            workers, max_bytes = 1, max_bytes // 2  # the other half is for a wave's directions
        if len(workspaces) != workers:
            workspaces[:] = [Workspace() for _ in range(workers)]
        self._workspaces = workspaces
        self._work: list[Batch] = []
        shapes = set()
        for same, options in found:
            for batch in batches(same, options, max_bytes // workers, workers):
                shape = batch[0].parameter.shape[1:]
                collector = Collector(sample=shape not in shapes) if diagnostics else None
                shapes.add(shape)
                self._work.append(Batch(batch, options, collector))
        self._waves = list(waves(self._work, max_bytes)) if in_waves else []
        self._first = [_started(batch, workspaces[0]) for wave in self._waves[:1] for batch in wave]
        self.questions = _questions(self._first)

    def finish(self, answers: Sequence[float]) -> Collector:
        """Move momentum and parameters; ``answers`` are the values of ``questions``."""
        if not self._waves:
            update_side_by_side(self._work, self._workspaces)
        started = self._first
        for number, wave in enumerate(self._waves):
            if number > 0:
                started = [_started(batch, self._workspaces[0]) for batch in wave]
                answers = read_together(_questions(started))
            _finish_wave(started, answers, self._workspaces[0])
        return Collector.joined(b.collector for b in self._work if b.collector is not None)


def read_together(values: Sequence[Tensor]) -> list[float]:
    """0-d tensors as numbers, by one read of the host."""
    values = [value.detach().to(values[0].device) for value in values]
    return torch.stack(values).tolist() if values else []


def update_side_by_side(work: list[Batch], workspaces: list[Workspace]) -> None:
    free: SimpleQueue[Workspace] = SimpleQueue()
    for workspace in workspaces:
        free.put(workspace)

    def finish(batch: Batch) -> None:
        workspace = free.get()
        try:
            directions, reliable = _orthogonalised(batch, workspace, move_momentum=True)
            if reliable is not None and not bool(reliable.all()):
                _repair_(batch, directions, reliable, workspace)
            _apply(batch, directions)
        finally:
            free.put(workspace)

    parallel_map(finish, work, len(workspaces))


@dataclass(frozen=True, slots=True)
class Started:
    """A batch whose directions (B, m, n) are queued on its device; nothing has moved yet."""

    batch: Batch
    directions: Tensor
    reliable: Tensor | None  # (B,)


def _started(batch: Batch, workspace: Workspace) -> Started:
    directions, reliable = _orthogonalised(batch, workspace, move_momentum=False)
    return Started(batch, directions.clone(), reliable)


def _questions(wave: list[Started]) -> list[Tensor]:
    """Whether to rely on all matrices, for each batch that may have some not to rely on."""
    return [each.reliable.all() for each in wave if each.reliable is not None]


def _finish_wave(wave: list[Started], answers: Sequence[float], workspace: Workspace) -> None:
    answer = iter(answers)
    for each in wave:
        for piece in each.batch.pieces:
            _lerp_(piece.momentum, piece.gradient, 1 - each.batch.options["momentum"], piece.active)
        if each.reliable is not None and not next(answer):
            _repair_(each.batch, each.directions, each.reliable, workspace)
        _apply(each.batch, each.directions)


def _orthogonalised(
    batch: Batch, workspace: Workspace, *, move_momentum: bool
) -> tuple[Tensor, Tensor | None]:
    """The directions (B, m, n), in ``workspace``, and on which of them to rely, (B,).

    They are those of the momentum after this step; it stays as it is unless ``move_momentum``.
    """
    options, first = batch.options, batch.pieces[0]
    x = workspace.take("x", batch.shape, dtype_of(first, options), first.parameter.device)
    # The range of fp16 is too small for squares of raw gradients.
    raw = x if x.dtype != torch.float16 else torch.empty_like(x, dtype=first.master)
    for piece, slot in zip(batch.pieces, _by_piece(batch, raw), strict=True):
        _accumulate(piece, slot, options, move_momentum=move_momentum)
    if options["schedule"] == "none":
        return x, None
    if options["schedule"] == "svd":
        return svd_polar(normalise_(x)), None
    if raw is not x:
        x.copy_(normalise_(raw))
    return polar_iterations(x, resolve_schedule(options["schedule"]), workspace)


def _repair_(batch: Batch, directions: Tensor, reliable: Tensor, workspace: Workspace) -> None:
    schedule = resolve_schedule(batch.options["schedule"])
    repair_(directions, reliable, schedule, workspace, normalise_(_master(batch)))


def _apply(batch: Batch, directions: Tensor) -> None:
    """Second moment, scale, weight decay and step."""
    _, m, n = batch.shape
    scale = update_scale(batch.options["scale"], m, n)
    if batch.collector is not None:
        first = batch.pieces[0]
        batch.collector.before(
            _direction(first.gradient[0], first.momentum[0], first.master, batch.options)
        )
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


def _accumulate(piece: Piece, out: Tensor, options: Options, *, move_momentum: bool) -> None:
    """M ← μM + (1 − μ)G, and the direction into ``out``; an idle matrix keeps its M exactly."""
    for gradient, momentum, target in _rows(piece, piece.gradient, piece.momentum, out):
        momentum = momentum if move_momentum else momentum.clone()
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
