"""Latents that summarise the past: what `causal_mhla` and `prefix_mhla` have in common.

Every head has K latents. A token shares itself out among them by a softmax; a latent keeps the mass
it was given and the mass-weighted sums of keys and values. These statistics only ever add up, so
chunks of tokens can be summed in parallel, and decoding needs no more than the sums.

Shapes: H heads, C tokens, Dh head width, K latents; … any leading dimensions.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

# mass of a latent that nothing was written to: e^-69 of a token, nothing beside any real one
NO_MASS = 1e-30
SHORT = 0.1  # differences of directions below this norm are not scaled up to one


class Latents(nn.Module):
    """Where tokens are written: K fixed random directions a head, compared with those of keys.

    Dh times the cosine (std √Dh for random keys) makes most shares sharp: each latent is a cell of
    the key space. Training moves keys, and with them tokens from cell to cell, but no latents:
    trained ones put more and more tokens in one cell while attention was still an average of
    everything, and recall did not start (results/recall).
    """

    def __init__(self, num_heads: int, num_latents: int, head_dim: int) -> None:
        super().__init__()
        vectors = torch.empty(num_heads, num_latents, head_dim)
        self.vectors = nn.Parameter(vectors, requires_grad=False)

    @staticmethod
    def num_parameters(num_heads: int, num_latents: int, head_dim: int) -> int:
        return num_heads * num_latents * head_dim

    def shares(self, x: Tensor) -> Tensor:
        """How tokens divide themselves among the latents: (…, H, C, Dh) -> (…, H, C, K).

        ``x`` are `directions` or `differences` of keys.
        """
        scaled = normalize(self.vectors, dim=-1) * x.shape[-1]
        return (x @ scaled.to(x.dtype).mT).softmax(-1)


def directions(keys: Tensor) -> Tensor:
    """Keys over their norm."""
    return _Directions.apply(keys, False)


def differences(keys: Tensor) -> Tensor:
    """Directions in which the keys of a chunk differ from their mean: (…, C, Dh) -> (…, C, Dh).

    What keys have in common would send all tokens to the same latents. Keys that hardly differ stay
    short, lest rounding tell them apart.
    """
    return _Directions.apply(keys, True)


class _Directions(torch.autograd.Function):
    """In fp32 or wider, half the passes of torch's ``normalize``; keeps keys, result and norms."""

    @staticmethod
    def forward(ctx, keys: Tensor, centred: bool) -> Tensor:
        wide = keys.to(torch.promote_types(keys.dtype, torch.float32), copy=True)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_(min=1e-6)
        wide /= norm
        length = None
        if centred:
            wide -= wide.mean(-2, keepdim=True)
            length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_(min=SHORT)
            wide /= length
        out = wide.to(keys.dtype)
        ctx.save_for_backward(keys, norm, out, length)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        keys, norm, out, length = ctx.saved_tensors
        grad = grad.to(norm.dtype, copy=True)
        if length is not None:
            along = (grad * out).sum(-1, keepdim=True).masked_fill_(length <= SHORT, 0.0)
            grad.addcmul_(out.to(grad.dtype), along, value=-1).div_(length)
            grad -= grad.mean(-2, keepdim=True)
        unit = keys / norm
        along = (grad * unit).sum(-1, keepdim=True)
        return grad.addcmul_(unit, along, value=-1).div_(norm).to(keys.dtype), None


def add_up(shares: Tensor, keys_and_values: Tensor) -> tuple[Tensor, Tensor]:
    """What tokens add to the sums (…, K, 2·Dh), and to the mass (…, K, 1) in fp32 or wider.

    Shapes: shares (…, C, K), keys_and_values (…, C, 2·Dh).
    """
    wide = torch.promote_types(shares.dtype, torch.float32)
    return shares.mT @ keys_and_values, shares.sum(-2, dtype=wide).unsqueeze(-1)


def sum_of_earlier(x: Tensor) -> Tensor:
    """Sum over the earlier chunks: (B, N, …) -> (B, N, …)."""
    return torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1].cumsum(1)), dim=1)


def means_of_earlier(sums: Tensor, mass: Tensor) -> Tensor:
    """Sums over the earlier chunks divided by their mass; zero where there is none.

    Shapes: sums (B, N, …, 2·Dh) of each chunk, mass (B, N, …, 1) of all chunks before it.
    """
    return _MeansOfEarlier.apply(sums, mass)


class _MeansOfEarlier(torch.autograd.Function):
    """One pass with a running sum in fp32 or wider that stays in cache, where ``cumsum``, a
    division and their gradients would each go through memory."""

    @staticmethod
    def forward(ctx, sums: Tensor, mass: Tensor) -> Tensor:
        means = torch.zeros_like(sums)
        running = torch.zeros_like(sums[:, 0], dtype=mass.dtype)
        for chunk in range(1, sums.shape[1]):
            running += sums[:, chunk - 1]
            torch.div(running, mass[:, chunk], out=means[:, chunk])
        ctx.save_for_backward(means, mass)
        return means

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        means, mass = ctx.saved_tensors
        grad_sums = torch.zeros_like(means)
        grad_mass = torch.zeros_like(mass)
        running = torch.zeros_like(means[:, 0], dtype=mass.dtype)
        for chunk in reversed(range(1, means.shape[1])):
            of_running = grad[:, chunk] / mass[:, chunk]
            running += of_running
            grad_sums[:, chunk - 1] = running
            grad_mass[:, chunk] = (of_running * means[:, chunk]).sum(-1, keepdim=True).neg_()
        return grad_sums, grad_mass
