"""Latents that summarise the past: what `causal_mhla` and `prefix_mhla` have in common.

Every head has K latents. A token shares itself out among them by a softmax; a latent keeps the mass
it was given and the mass-weighted sums of keys and values. These statistics only ever add up, so
chunks of tokens can be summed in parallel, and decoding needs no more than the sums.

Shapes: H heads, C tokens, Dh head width, K latents; … any leading dimensions.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from muonlab.model.layers import RMSNorm

# mass of a latent that nothing was written to: e^-69 of a token, nothing beside any real one
NO_MASS = 1e-30


class Latents(nn.Module):
    """Where tokens are written: K directions a head, compared with the normalised keys.

    Normalised vectors make the first shares sharp (scores of random keys have std √Dh): each latent
    starts as a cell of the key space, and the norms' weights learn how sharp to be.
    """

    def __init__(self, num_heads: int, num_latents: int, head_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(num_heads, num_latents, head_dim))
        self.vector_norm = RMSNorm(head_dim, eps=norm_eps)
        self.key_norm = RMSNorm(head_dim, eps=norm_eps)

    @staticmethod
    def num_parameters(num_heads: int, num_latents: int, head_dim: int) -> int:
        return num_heads * num_latents * head_dim + 2 * head_dim

    def muon_layout(self) -> dict[str, dict]:
        """Directions, no linear map."""
        return {"vectors": {"role": "latents"}}

    def shares(self, keys: Tensor) -> Tensor:
        """How each token divides itself among the latents: (…, H, C, Dh) -> (…, H, C, K)."""
        vectors = self.vector_norm(self.vectors).to(keys.dtype)
        return (self.key_norm(keys) @ vectors.mT).softmax(-1)


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
