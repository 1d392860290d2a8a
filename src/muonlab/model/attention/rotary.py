"""Rotary position embedding (2104.09864), in the half-split layout of Llama.

Shapes: B batch, T tokens, H heads, Dh head width.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def rotary_head_dim(dim: int, num_heads: int) -> int:
    """The width of a head; raises ValueError unless the heads fit ``dim`` and are of even width."""
    if dim % num_heads or (dim // num_heads) % 2:
        raise ValueError(
            f"num_heads is {num_heads}; model width {dim} must be an even multiple of it"
        )
    return dim // num_heads


class Rotary(nn.Module):
    """Rotates queries and keys by their position; holds the tables for ``max_length`` tokens."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, head_dim: int, max_length: int, base: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.base = base
        self.extend(max_length)

    def extend(self, max_length: int) -> None:
        """Compute the tables for ``max_length`` tokens."""
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        positions = torch.arange(max_length, dtype=torch.float64)
        angle = torch.outer(positions, self.base**-exponent)  # (T, Dh/2)
        cosine, sine = angle.cos().float(), angle.sin().float()
        # of both halves: rotated = x·cosine + (x with its halves swapped)·sine
        self.register_buffer("cosine", torch.cat((cosine, cosine), -1), persistent=False)  # (T, Dh)
        self.register_buffer("sine", torch.cat((-sine, sine), -1), persistent=False)

    def forward(self, x: Tensor, positions: Tensor | slice | None = None) -> Tensor:
        """(B, T, H, Dh) -> (B, H, T, Dh), rotated.

        ``positions`` are (B, T), or the range of all rows; by default 0…T-1.
        """
        if not isinstance(positions, Tensor | slice):
            positions = slice(x.shape[1])
        cosine, sine = self.cosine[positions], self.sine[positions]
        if isinstance(positions, Tensor):
            cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)  # (B, 1, T, Dh)
        cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
        if torch.is_grad_enabled():
            return _Rotate.apply(x.transpose(1, 2), cosine, sine)
        return _rotated(x.transpose(1, 2), cosine, sine)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(x, cosine, sine)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        cosine, sine = ctx.saved_tensors
        return _rotated(grad, cosine, -sine), None, None


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    # contiguous first: on a CPU the strided halves of heads cost three times as much
    out = x.clone(memory_format=torch.contiguous_format)
    first, second = out.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    return out.mul_(cosine).addcmul_(swapped, sine)
