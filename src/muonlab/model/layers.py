"""The two layers that every block is made of, computing in the dtype of their input.

Parameters are held in fp32; activations may be bf16. Each layer casts its own weight, so there is
no autocast context and no hidden precision rule: what comes in as bf16 is multiplied in bf16.

Shapes: B batch, T tokens, D features.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from muonlab.model import native

FEW_ROWS = 128
FEW_ROWS_OF = {torch.bfloat16: FEW_ROWS, torch.float32: 32}
FEW_VALUES = 1 << 15  # that one thread normalises sooner than torch's chain of operations starts


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weightᵀ`` in the dtype of ``x``: (…, in), (out, in) -> (…, out).

    Few rows, as in decoding, are bound by reading the weight; on a CPU these forms read it faster
    than torch's linear (measured: one row in bf16 1.0-1.4 x, by the native kernel 1.1-2.0 x that;
    2 to 128 rows 1.3-2.1 x in bf16; 2 to 32 rows 1.2-1.9 x in fp32).
    """
    if weight.dtype != x.dtype:
        weight = weight.to(x.dtype)
    num_rows = x.numel() // x.shape[-1]
    if x.is_cuda or torch.is_grad_enabled() or num_rows > FEW_ROWS_OF.get(x.dtype, 0):
        return nn.functional.linear(x, weight)
    if num_rows > 1:
        columns = x.reshape(num_rows, -1).T.contiguous()  # another 1.0-1.3 x
        return torch.mm(weight, columns).T.reshape(*x.shape[:-1], -1)
    if x.dtype == torch.float32:
        return nn.functional.linear(x, weight)
    row = x.view(-1)
    out = native.matvec(weight, row) if native.serves(x) else torch.mv(weight, row)
    return out.view(*x.shape[:-1], -1)


def add_product(out: Tensor, weight: Tensor, x: Tensor, scale: float = 1.0) -> None:
    """``out += scale · weight @ x`` for one row: (out,), (out, in), (in,), all of one dtype."""
    if x.dtype == torch.bfloat16 and native.serves(x):
        native.add_matvec(out, weight, x, scale)
    else:
        out.addmv_(weight, x, alpha=scale)


class Linear(nn.Linear):
    """``x @ weightᵀ`` without bias, in the dtype of ``x``; weight (out, in)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        return linear(input, self.weight)


class RMSNorm(nn.RMSNorm):
    """``x / rms(x) * weight`` over the last dimension, statistics in fp32 (1910.07467)."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.eps is not None
        assert self.weight is not None
        if torch.is_grad_enabled():
            return _RMSNorm.apply(x, self.weight, self.eps)
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`RMSNorm` without gradients, by the shortest way."""
    if native.serves(x) and x.numel() <= FEW_VALUES:
        return native.rms_norm(x, weight, eps)
    wide = _statistics_dtype(x)  # one native chain: half the calls of our own
    return nn.functional.rms_norm(x.to(wide), x.shape[-1:], weight, eps).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """One pass for the statistics, few for the rest: torch's CPU version is a chain of ops,
    which made a tenth of a training step at width 384."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(_statistics_dtype(x), copy=True)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse_rms = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse_rms)
        return wide.mul_(inverse_rms).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, inverse_rms = ctx.saved_tensors
        dtype = _statistics_dtype(x)
        normed = x.to(dtype, copy=True).mul_(inverse_rms)
        grad_x = grad.to(dtype, copy=True)
        product = normed * grad_x
        grad_weight = product.flatten(0, -2).sum(0)
        # dx = (w·g - normed · mean(w·g·normed)) / rms
        mean = product.matmul(weight.to(dtype)).unsqueeze(-1).div_(x.shape[-1])
        grad_x.mul_(weight).addcmul_(normed, mean, value=-1).mul_(inverse_rms)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
