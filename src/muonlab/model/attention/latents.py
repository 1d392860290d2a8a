"""Latents that summarise the past: what `causal_mhla` and `prefix_mhla` have in common.

Every head has K latents. A token shares itself out among them by a softmax; a latent keeps the mass
it was given and the mass-weighted sums of keys and values. These statistics only ever add up, so
chunks of tokens can be summed in parallel, and decoding needs no more than the sums.

Shapes: H heads, C tokens, Dh head width, K latents; … any leading dimensions.
"""

import torch
from torch import Tensor, nn

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
    """What tokens add to the sums (…, K, 2·Dh) and the mass (…, K, 1), in fp32 or wider.

    Shapes: shares (…, C, K), keys_and_values (…, C, 2·Dh).
    """
    wide = torch.promote_types(shares.dtype, torch.float32)
    return (shares.mT @ keys_and_values).to(wide), shares.sum(-2, dtype=wide).unsqueeze(-1)


def sum_of_earlier(x: Tensor) -> Tensor:
    """Sum over the earlier chunks: (B, N, …) -> (B, N, …)."""
    return torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1].cumsum(1)), dim=1)
