"""Dropless expert matrix products: rows sorted by expert, each expert's rows padded to a block.

The padding is what makes this fast on a CPU: oneDNN builds a kernel for every new matrix shape,
and unpadded expert loads are new shapes at every step. A GPU's grouped kernel needs it too. Padded
rows carry a gate of zero, so they change neither outputs nor gradients.

Shapes: N tokens, K experts a token, E experts, D width, S slots (rows after padding).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from muonlab.model import sizes
from muonlab.model.layers import FEW_ROWS, linear


@dataclass(frozen=True, slots=True)
class Slots:
    """Which padded row serves which token."""

    slot_of: Tensor  # (N, K) row of each assignment
    token_at: Tensor  # (S,) token in each row; token 0 in padding rows
    ends: Tensor  # (E,) int32, one past the last row of each expert
    tokens_per_expert: Tensor  # (E,) int64


def assign_slots(expert_of: Tensor, num_experts: int) -> Slots:
    """Lay out the assignments ``expert_of`` (N, K) in blocks by expert.

    How many rows that takes is only read where this costs nothing. A GPU would have to wait for the
    host; it gets the largest number that is possible, and the last expert gets the rows left over.
    """
    device = expert_of.device
    chosen = sizes.of(device)
    num_assignments = expert_of.numel()
    block = chosen.slot_block(num_assignments // num_experts)
    experts, order = expert_of.flatten().sort(stable=True)
    counts = torch.zeros(num_experts, dtype=torch.int64, device=device)  # bincount would be read
    counts.scatter_add_(0, experts, torch.ones_like(experts))
    padded = (counts + block - 1) // block * block
    ends = padded.cumsum(0)
    shift = (ends - padded) - (counts.cumsum(0) - counts)  # padding rows before each expert
    slots = torch.arange(num_assignments, device=device) + shift[experts]
    slot_of = torch.empty_like(order).index_copy_(0, order, slots)
    if chosen.count_slots:
        num_slots = int(ends[-1])
    else:
        num_slots = (num_assignments + num_experts * (block - 1)) // block * block
        ends[-1].fill_(num_slots)
    token_at = order.new_zeros(num_slots).index_copy_(0, slots, order // expert_of.shape[1])
    return Slots(slot_of.view_as(expert_of), token_at, ends.int(), counts)


def expected_slots(num_tokens: int, top_k: int, num_experts: int) -> int:
    """Mean number of rows after padding on a CPU, as if an expert's last block were half full."""
    num_assignments = num_tokens * top_k
    block = sizes.CPU.slot_block(num_assignments // num_experts)
    return num_assignments + num_experts * (block // 2)


def dispatch(x: Tensor, slots: Slots) -> Tensor:
    """Copy each token's row to its slots: (N, D) -> (S, D)."""
    return _Dispatch.apply(x, slots)


def combine(rows: Tensor, gates: Tensor, slots: Slots) -> Tensor:
    """Sum each token's rows weighted by ``gates`` (N, K): (S, D) -> (N, D)."""
    return _Combine.apply(rows, gates, slots)


def grouped_linear(x: Tensor, weight: Tensor, slots: Slots) -> Tensor:
    """``x[rows of e] @ weight[e]ᵀ`` for every expert: (S, D), (E, F, D) -> (S, F).

    Multiplied in the dtype of ``x``; the gradient of ``weight`` has the dtype of ``weight``. On a
    GPU it is one launch where torch's grouped kernel takes the shapes: bf16, and widths that are
    multiples of 16 bytes. Everything else goes expert by expert, and reads ``ends`` on the host.
    """
    aligned = all(width * x.element_size() % 16 == 0 for width in weight.shape[1:])
    if x.is_cuda and x.dtype == torch.bfloat16 and aligned:
        return torch.nn.functional.grouped_mm(x, weight.to(x.dtype).mT, offs=slots.ends)
    return _GroupedLinear.apply(x, weight, slots.ends.tolist())


class _Dispatch(torch.autograd.Function):
    """Both directions are gathers; autograd's own would scatter-add row by row."""

    @staticmethod
    def forward(ctx, x: Tensor, slots: Slots) -> Tensor:
        ctx.slots = slots
        return x.index_select(0, slots.token_at)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        first, *others = ctx.slots.slot_of.unbind(1)
        grad_x = grad.index_select(0, first)
        for slot in others:
            grad_x.add_(grad.index_select(0, slot))
        return grad_x, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, gates: Tensor, slots: Slots) -> Tensor:
        ctx.save_for_backward(rows, gates)
        ctx.slots = slots
        weights = gates.to(rows.dtype).split(1, dim=1)  # K of (N, 1)
        first, *others = slots.slot_of.unbind(1)
        out = rows.index_select(0, first).mul_(weights[0])
        for slot, weight in zip(others, weights[1:], strict=True):
            out.addcmul_(rows.index_select(0, slot), weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, gates = ctx.saved_tensors
        slots: Slots = ctx.slots
        grad_gates = torch.stack(
            [
                torch.linalg.vecdot(rows.index_select(0, slot), grad)
                for slot in slots.slot_of.unbind(1)
            ],
            dim=1,
        ).to(gates.dtype)
        gate_at = rows.new_zeros(rows.shape[0])
        gate_at.index_copy_(0, slots.slot_of.flatten(), gates.flatten().to(rows.dtype))
        grad_rows = grad.index_select(0, slots.token_at).mul_(gate_at.unsqueeze(1))
        return grad_rows, grad_gates, None


class _GroupedLinear(torch.autograd.Function):
    """Casts one expert's weight at a time, forward and backward, so that its copy in the compute
    precision stays in cache and is never kept; its gradient is cast back the same way."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, ends: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.ends = ends
        out = x.new_empty(x.shape[0], weight.shape[1])
        for expert, rows in _rows_of_experts(ends):
            if rows.start == rows.stop:
                continue
            if rows.stop - rows.start < FEW_ROWS:
                out[rows] = linear(x[rows], weight[expert])
            else:
                torch.mm(x[rows], weight[expert].to(x.dtype).T, out=out[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = torch.empty_like(x)
        grad_weight = torch.empty_like(weight)
        product = x.new_empty(weight.shape[1:])
        for expert, rows in _rows_of_experts(ctx.ends):
            if rows.start == rows.stop:
                grad_weight[expert].zero_()
                continue
            torch.mm(grad[rows], weight[expert].to(x.dtype), out=grad_x[rows])
            # written transposed: oneDNN's faster orientation of this product
            torch.mm(x[rows].T, grad[rows], out=product.T)
            grad_weight[expert].copy_(product)
        return grad_x, grad_weight, None


def _rows_of_experts(ends: list[int]) -> Iterator[tuple[int, slice]]:
    return enumerate(slice(start, end) for start, end in pairwise([0, *ends]))
