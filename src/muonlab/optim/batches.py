"""What is updated together: pieces of parameters in batches, and batches in waves.

Legend: B matrices of a batch, each m × n. A *piece* is one block (B, m, n) of one parameter; pieces
of one shape and of equal options, from any parameters, share a *batch*. A *wave* is the batches of
which an accelerator holds all directions at once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from muonlab.optim.diagnostics import Collector
from muonlab.optim.gradients import Sweep
from muonlab.optim.layout import MatrixSpec
from muonlab.optim.polar import matrices_within, work_dtype, workspace_bytes
from muonlab.optim.sizes import sizes_for
from muonlab.optim.state import names_of, new_muon_state

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


def pieces_of(
    groups: Iterable[dict[str, Any]],
    option_names: Iterable[str],
    state: dict[Tensor, dict[str, Tensor]],
    sweep: Sweep,
    copies: list[tuple[Tensor, Tensor]],
) -> list[tuple[list[Piece], Options]]:
    """Muon's pieces by their options: groups of equal options are one, whatever their layouts.

    Of a parameter that is not contiguous they are pieces of a copy, which goes into ``copies``.
    """
    found: dict[Any, tuple[list[Piece], Options]] = {}
    names = list(option_names)
    for group in groups:
        if group["algorithm"] == "muon":
            options = {name: group[name] for name in names if name in group}
            key = tuple(
                (k, id(v) if isinstance(v, Tensor) else repr(v)) for k, v in options.items()
            )
            pieces, _ = found.setdefault(key, ([], options))
            pieces += _pieces_of_group(group, state, sweep, copies)
    return list(found.values())


def _pieces_of_group(
    group: dict[str, Any],
    state: dict[Tensor, dict[str, Tensor]],
    sweep: Sweep,
    copies: list[tuple[Tensor, Tensor]],
) -> Iterator[Piece]:
    for name, parameter in zip(names_of(group), group["params"], strict=True):
        if parameter.grad is None or not parameter.numel():
            continue
        spec = MatrixSpec.from_layout(parameter.shape, group["layout"])
        own = state[parameter]
        if not own:
            own.update(new_muon_state(parameter, spec, group["second_moment"]))
        values = parameter
        if not parameter.is_contiguous():
            values = parameter.detach().contiguous()
            copies.append((parameter, values))
        parameters = spec.blocks(values)
        gradients = spec.blocks(parameter.grad)
        momenta = spec.blocks(own["momentum"])
        moments = [None] * len(parameters)
        if "second_moment" in own:
            moments = spec.split(own["second_moment"])
        squares = sweep.squares[parameter]
        for index, gradient in enumerate(gradients):
            active = _active(gradient, squares[index]) if spec.is_stack else None
            yield Piece(name, parameters[index], gradient, momenta[index], moments[index], active)


def _active(gradient: Tensor, squares: Tensor) -> Tensor | None:
    """Of (B, m, n), which matrices have a gradient, as (B, 1, 1); None if all do, or are said to.

    Off the CPU the answer is never read, so it is always a tensor.
    """
    idle = squares == 0
    if gradient.device.type == "cpu" and not bool(idle.any()):
        return None
    idle &= gradient.abs().amax(dim=(1, 2)) == 0  # tiny values have a square of 0 too
    return idle.logical_not_().view(-1, 1, 1)


def waves(work: list[Batch], max_bytes: int) -> Iterator[list[Batch]]:
    """Batches of one device whose directions take at most ``max_bytes`` together."""
    wave: list[Batch] = []
    used = 0
    for batch in work:
        count, m, n = batch.shape
        size = count * m * n * dtype_of(batch.pieces[0], batch.options).itemsize
        device = batch.pieces[0].parameter.device
        if wave and (used + size > max_bytes or wave[0].pieces[0].parameter.device != device):
            yield wave
            wave, used = [], 0
        wave.append(batch)
        used += size
    if wave:
        yield wave


def num_workers(pieces: Iterable[Piece], options: Options, max_bytes: int) -> int:
    """How many batches to work on at a time: as many as there are CPU cores and workspaces for."""
    workers = torch.get_num_threads()
    for piece in pieces:
        _, m, n = piece.parameter.shape
        dtype, device = dtype_of(piece, options), piece.parameter.device
        workers = min(workers, max_bytes // workspace_bytes(1, m, n, piece.master, dtype, device))
    return max(1, workers)


def batches(
    pieces: Iterable[Piece], options: Options, max_bytes: int, workers: int
) -> Iterator[list[Piece]]:
    """Pieces of equal (m, n) and dtype, cut and joined into batches of bounded workspace."""
    by_shape: dict[tuple[Any, ...], list[Piece]] = {}
    for piece in pieces:
        key = (*piece.parameter.shape[1:], piece.parameter.dtype, piece.parameter.device)
        by_shape.setdefault(key, []).append(piece)
    for (m, n, _, device), same in by_shape.items():
        dtype, sizes = dtype_of(same[0], options), sizes_for(device)
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


def dtype_of(piece: Piece, options: Options) -> torch.dtype:
    """Of the matrix products."""
    if options["schedule"] in ("svd", "none"):
        return piece.master
    _, m, n = piece.parameter.shape
    return work_dtype(options["dtype"], piece.master, piece.parameter.device, min(m, n))
