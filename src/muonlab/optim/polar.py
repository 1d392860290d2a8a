"""Batched orthogonalisation of matrices by polynomial iteration on the small Gram matrix.

Legend: B matrices in a batch, each m × n; k = min(m, n). X is the matrix, R = XXᵀ (or XᵀX when
tall) the k × k Gram matrix, P = aI + bR + cR² one step's polynomial, Q the product of the P's.
"""

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from muonlab.optim.processor import bf16_is_native, full_fp32
from muonlab.optim.schedules import Coefficients, Schedule, resolve_schedule
from muonlab.optim.sizes import sizes_for

# Rounding errors in R grow by a² a step until R is computed anew from X; once they make it clearly
# indefinite, they explode. That is how much growth bf16 bears on the way, and where no step follows
# (docs/decisions/0003).
MAX_GROWTH = 20.0
MAX_LAST_GROWTH = 150.0
# Half precision adds directions of some 1e-4 of the norm. A matrix whose σ², after the smallest σ
# have grown a hundredfold, have a mean below this has few directions that stand out of them
# (docs/decisions/0003). A schedule of a total gain above LONG amplifies the added directions to the
# size of the others: then about half of the directions must stand out.
JUDGED_GAIN = 100.0
RESOLVED = 0.1
LONG = 5000.0
RESOLVED_LONG = 0.45
# No schedule leaves a σ above 2 on its way: a larger mean of σ² has come of rounding.
DIVERGED = 4.0
# bf16 products of smaller matrices are no faster than fp32 ones (docs/decisions/0014).
LARGE = 64
Dtype = Literal["auto", "fp32", "bf16", "bf16_large", "fp16"]


class Workspace:
    """Named buffers that are reused by every batch of every step."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """An uninitialised tensor; valid until the same name is taken again."""
        size = 1
        for length in shape:
            size *= length
        key = (name, dtype, device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[key] = torch.empty(size, dtype=dtype, device=device)
        return buffer[:size].view(shape)

    @property
    def num_bytes(self) -> int:
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())


def orthogonalise(
    matrices: Tensor, schedule: str | Sequence[Sequence[float]] = "keller5", *, dtype: str = "auto"
) -> Tensor:
    """Map the singular values of each (…, m, n) matrix to about 1; the input is left unchanged.

    ``dtype`` is that of the matrix products: ``auto``, ``fp32``, ``bf16``, ``bf16_large``, ``fp16``
    (fp64 input is always computed in fp64). Returns the input's shape and dtype; zero matrices stay
    zero.
    """
    if matrices.ndim < 2 or not matrices.is_floating_point():
        raise ValueError(
            f"matrices {tuple(matrices.shape)} of {matrices.dtype} must be real, (…, m, n)"
        )
    if not matrices.numel():
        return matrices.clone()
    master = torch.promote_types(matrices.dtype, torch.float32)
    exact = normalise_(matrices.reshape(-1, *matrices.shape[-2:]).to(master, copy=True))
    if schedule == "svd":
        out = svd_polar(exact)
    else:
        steps, workspace = resolve_schedule(schedule), Workspace()
        work = work_dtype(dtype, master, exact.device, min(matrices.shape[-2:]))
        with full_fp32():
            out, reliable = polar_iterations(exact.to(work, copy=True), steps, workspace)
            if not bool(reliable.all()):
                repair_(out, reliable, steps, workspace, exact)
    return out.to(matrices.dtype).reshape(matrices.shape)


def resolve_dtype(name: str, device: torch.device) -> str:
    """``auto`` as what it means on ``device``: ``bf16_large`` where bf16 is native, else ``fp32``.

    Raises ValueError on a name that is not legal.
    """
    if name == "auto":
        return "bf16_large" if bf16_is_native(device) else "fp32"
    legal = get_args(Dtype)
    if name not in legal:
        raise ValueError(f"dtype {name!r} is unknown: legal are {', '.join(legal)}")
    return name


def work_dtype(
    name: str, master: torch.dtype, device: torch.device, smaller_side: int
) -> torch.dtype:
    """The dtype of the matrix products for values in ``master`` (fp32 or fp64)."""
    name = resolve_dtype(name, device)
    if master == torch.float64:
        return torch.float64
    if name == "bf16" or (name == "bf16_large" and smaller_side >= LARGE):
        return torch.bfloat16
    return torch.float16 if name == "fp16" else torch.float32


def normalise_(matrices: Tensor) -> Tensor:
    """Divide each of (B, m, n) by its Frobenius norm in place, whatever its scale; 0 stays 0."""
    largest = matrices.abs().amax(dim=(1, 2), keepdim=True)
    matrices.div_(largest.masked_fill_(largest == 0, 1.0))  # now the squares are in range
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    return matrices.div_(norms.masked_fill_(norms == 0, 1.0))


def svd_polar(matrices: Tensor) -> Tensor:
    """The exact polar factor UVᵀ of (B, m, n), by SVD; directions of σ = 0 are left out."""
    u, sigma, vh = torch.linalg.svd(matrices, full_matrices=False)
    cutoff = sigma[:, :1] * torch.finfo(matrices.dtype).eps * max(matrices.shape[1:])
    return (u * ((sigma > cutoff) & (sigma > 0)).to(u.dtype).unsqueeze(1)) @ vh


def segments(schedule: Schedule, m: int, n: int) -> list[int]:
    """How many steps each Gram iteration takes before R is computed anew.

    A segment of s steps costs 4αk³ + (8s − 6)k³ FLOPs for α = max(m, n) / k, against s(4α + 2)k³
    one by one (the standard form), so longer ones pay exactly when α > 1.5. They have two steps,
    the last one three, where the growth of rounding errors allows it.
    """
    if max(m, n) <= 1.5 * min(m, n):
        return [1] * len(schedule)
    lengths = []
    growths = [a * a for a, _, _ in schedule]
    while growths:
        if lengths and len(growths) == 3 and growths[0] * growths[1] <= MAX_LAST_GROWTH:
            length = 3
        else:
            length = 2 if len(growths) > 1 and growths[0] <= MAX_GROWTH else 1
        lengths.append(length)
        del growths[:length]
    return lengths


def polar_flops(schedule: Schedule, m: int, n: int) -> int:
    """FLOPs of `polar_iterations` on one m × n matrix (matrix products only)."""
    k, long = min(m, n), max(m, n)
    return sum(4 * k * k * long + (8 * steps - 6) * k**3 for steps in segments(schedule, m, n))


def step_flops(block_shapes: Iterable[tuple[int, int, int]], schedule: Any) -> int:
    """FLOPs of one step's matrix products over blocks of (batch, m, n), from shapes alone."""
    if schedule in ("none", "svd"):
        return 0
    steps = resolve_schedule(schedule)
    return sum(batch * polar_flops(steps, m, n) for batch, m, n in block_shapes)


def repair_(
    out: Tensor, reliable: Tensor, schedule: Schedule, workspace: Workspace, exact: Tensor
) -> None:
    """Do the matrices of ``out`` (B, m, n) that are not ``reliable`` again, in fp32 or fp64.

    ``exact``: all B matrices as `normalise_` leaves them. Zero matrices stay. Waits for the device.
    """
    unreliable = ~reliable & (out.abs().amax(dim=(1, 2)) != 0)  # NaN is not 0 either
    spare = Workspace() if exact.dtype == out.dtype else workspace  # out may live in workspace
    _, m, n = out.shape
    count = max(1, sizes_for(out.device).per_repair // (m * n))
    for index in unreliable.nonzero().squeeze(1).split(count):
        out[index] = polar_iterations(exact[index], schedule, spare)[0].to(out.dtype)


def workspace_bytes(
    count: int, m: int, n: int, master: torch.dtype, work: torch.dtype, device: torch.device
) -> int:
    """What a batch of ``count`` m × n matrices may take, the fp32 path included.

    Counts k × k buffers as m × n ones, so that the bound also holds for the buffers that batches of
    different shapes share.
    """
    buffers = count * m * n * (master.itemsize + 6 * work.itemsize)  # x, y, r, p, q, w
    if work.itemsize < 4:  # once more in fp32, for some matrices at a time, and a copy of them
        buffers += 7 * max(m * n, sizes_for(device).per_repair) * master.itemsize
    return buffers


def matrices_within(
    max_bytes: int, m: int, n: int, master: torch.dtype, work: torch.dtype, device: torch.device
) -> int:
    """How many m × n matrices a workspace of ``max_bytes`` can serve; at least one."""
    none, one = (workspace_bytes(count, m, n, master, work, device) for count in (0, 1))
    return max(1, (max_bytes - none) // (one - none))


def polar_iterations(x: Tensor, schedule: Schedule, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """Apply ``schedule`` to the singular values of (B, m, n) of any scale, over their norm.

    Also returns on which of the B matrices to rely (bool): not on those whose squares leave the
    range of fp32 nor, in half precision, on those most of whose directions are lost in rounding
    (`repair_` does them again). Zero matrices stay zero. The result has the dtype of ``x``, which
    is overwritten, and lives in it or in ``workspace``. Never waits for the device.
    """
    batch, m, n = x.shape
    k, wide, dtype = min(m, n), m <= n, x.dtype

    def take(name: str, *shape: int) -> Tensor:
        return workspace.take(name, (batch, *shape), dtype, x.device)

    y = take("y", m, n)
    r, p, q, w = (take(name, k, k) for name in "rpqw")
    reliable = norm = torch.empty(0)
    judged = _judged_step(schedule) if dtype.itemsize < 4 else None
    resolved = RESOLVED if math.prod([a for a, _, _ in schedule]) <= LONG else RESOLVED_LONG
    step = 0
    for length in segments(schedule, m, n):
        torch.bmm(x, x.mT, out=r) if wide else torch.bmm(x.mT, x, out=r)
        if step == 0:
            norm, reliable = _normalise_gram_(r)
        for position in range(length):
            if step == judged:
                reliable &= _energies(r) >= resolved * k
            if step == len(schedule) - 1:  # rounding can make long schedules diverge
                reliable &= _energies(r) <= DIVERGED * k
            if step == 0:
                _first_polynomial(r, schedule[step], p)
            else:
                shifted = r if position == length - 1 else w.copy_(r)  # R is needed again, or not
                _polynomial(shifted, schedule[step], p)
            if position == 0:
                q, p = p, q
                factor = q
            else:
                torch.bmm(q, p, out=w)
                factor = p
                q, w = w, q
            if position < length - 1:
                torch.bmm(r, factor, out=w)
                torch.bmm(factor, w, out=r)
            step += 1
        if step == length:  # the first segment began from R / ‖X‖², but from X itself
            q.div_(norm)
        torch.bmm(q, x, out=y) if wide else torch.bmm(x, q, out=y)
        x, y = y, x
    return x, reliable


def _judged_step(schedule: Schedule) -> int | None:
    """Before which step the smallest singular values have grown by `JUDGED_GAIN`; None: never."""
    gains = itertools.accumulate((a for a, _, _ in schedule[:-1]), operator.mul)
    return next((step for step, gain in enumerate(gains, 1) if gain >= JUDGED_GAIN), None)


def _energies(r: Tensor) -> Tensor:
    """Σσ² of each of the B matrices, from R's trace in fp32 or fp64."""
    master = torch.promote_types(r.dtype, torch.float32)
    return r.diagonal(dim1=1, dim2=2).sum(dim=1, dtype=master)


def _normalise_gram_(r: Tensor) -> tuple[Tensor, Tensor]:
    """R ← R / ‖X‖²; returns ‖X‖ as (B, 1, 1), and (B,) whether it is in range."""
    squares = _energies(r)
    smallest = max(1e-20, torch.finfo(r.dtype).tiny)
    reliable = (squares > smallest) & (squares < 1 / smallest)
    squares = squares.clamp(smallest, 1 / smallest).view(-1, 1, 1)
    norms = squares.sqrt().to(r.dtype)
    r.div_(squares.to(r.dtype))
    return norms, reliable


def _first_polynomial(r: Tensor, coefficients: Coefficients, out: Tensor) -> None:
    """P into ``out``, without the shift of `_polynomial`, in which R / ‖X‖² would lose digits."""
    a, b, c = coefficients
    torch.baddbmm(r, r, r, beta=b, alpha=c, out=out).diagonal(dim1=1, dim2=2).add_(a)


def _polynomial(r: Tensor, coefficients: Coefficients, out: Tensor) -> None:
    """P into ``out``, as c(R + b/2c·I)² + (a − b²/4c)·I; ``r`` is overwritten.

    Adding bR in the product, or after it, costs as much as the product itself where k is small.
    From the second step on, the shift loses nothing: R has entries of the order of 1.
    """
    a, b, c = coefficients
    if c == 0:
        torch.mul(r, b, out=out).diagonal(dim1=1, dim2=2).add_(a)
        return
    r.diagonal(dim1=1, dim2=2).add_(b / (2 * c))
    torch.baddbmm(out, r, r, beta=0, alpha=c, out=out)
    out.diagonal(dim1=1, dim2=2).add_(a - b * b / (4 * c))
