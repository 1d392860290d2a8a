"""P2's multi-head latent attention, as published: learned latents between tokens. Not causal.

Stage 1: K latents attend to all tokens. Stage 2: the tokens attend to the K updated latents. Every
output depends on every input, so its loss is not a language model's. It is here to reproduce P2,
and as the control that every test of causality must catch.

Shapes: B batch, T tokens, D model width, H heads, Dh head width, K latents.
"""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from muonlab.errors import UserError
from muonlab.model.attention.rotary import Rotary, rotary_head_dim
from muonlab.model.cache import Chunk, LayerState
from muonlab.model.dropout import Dropout
from muonlab.model.layers import Linear

NOT_CAUSAL = (
    "attention kind mhla is not causal: every token sees the future, its loss is not that of a "
    "language model, and it cannot generate"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MHLAConfig:
    """P2's latent attention: ``num_latents`` learned latents of model width, shared by the heads.

    Not causal; `causal_mhla` is the causal attention made of the same idea.
    """

    causal: ClassVar[bool] = False
    warnings: ClassVar[tuple[str, ...]] = (NOT_CAUSAL,)
    weights_set_logits: ClassVar[bool] = False  # of heads alone: latents are shared

    kind: Literal["mhla"] = "mhla"
    num_heads: int = 4
    num_latents: int = 64
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_latents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.rope_base <= 1:
            raise ValueError(f"rope_base is {self.rope_base}; it must be above 1")

    def width_of_head(self, dim: int) -> int:
        """Head width at model width ``dim``; raises ValueError if the heads do not fit."""
        return rotary_head_dim(dim, self.num_heads)

    def build(self, dim: int, max_length: int, norm_eps: float, dropout: float) -> "MHLA":
        warnings.warn(NOT_CAUSAL, stacklevel=2)
        return MHLA(self, dim, max_length, dropout)

    def num_parameters(self, dim: int) -> int:
        self.width_of_head(dim)
        return 7 * dim * dim + self.num_latents * dim

    def projection_flops(self, dim: int) -> int:
        """Forward FLOPs of one token's projections."""
        return 2 * 4 * dim * dim

    def mixing_flops(self, dim: int, length: int) -> int:
        """Forward FLOPs of both stages and of the latents' projections, mean over the tokens."""
        return 8 * self.num_latents * dim + 6 * self.num_latents * dim * dim // length

    def kept_values(self, dim: int, batch: int, length: int) -> int:
        """Values that the backward pass keeps of one layer, without its input."""
        per_token = 7 * dim + self.num_heads  # projections 3, rotated 2, output 2; log-sums
        per_latent = 4 * dim + self.num_heads
        return batch * (length * per_token + self.num_latents * per_latent)

    def state_bytes(self, dim: int, batch: int, capacity: int, bytes_per_value: int) -> int:
        """Raises UserError: there is no decoding state."""
        raise UserError(NOT_CAUSAL)


class MHLA(nn.Module):
    """(B, T, D) -> (B, T, D), every output a function of every input."""

    def __init__(self, config: MHLAConfig, dim: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.head_dim = config.width_of_head(dim)
        self.dropout = Dropout(dropout)
        self.latents = nn.Parameter(torch.empty(config.num_latents, dim))
        self.latent_query = Linear(dim, dim)
        self.qkv = Linear(dim, 3 * dim)  # keys and values of stage 1, queries of stage 2
        self.latent_kv = Linear(dim, 2 * dim)
        self.out = Linear(dim, dim)
        self.rotary = Rotary(self.head_dim, max_length, config.rope_base)

    def muon_layout(self) -> dict[str, dict]:
        """Seven square matrices, and the latents, which P2 gives to Muon too."""
        D = self.out.weight.shape[0]
        return {
            "latents": {"role": "latents"},
            "qkv.weight": {"role": "hidden", "row_blocks": (D, D, D)},
            "latent_kv.weight": {"role": "hidden", "row_blocks": (D, D)},
        }

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x).unflatten(-1, (3, -1, self.head_dim)).unbind(2)
        latent_queries = self.latent_query(self.latents.to(x.dtype))  # (K, D)
        latent_queries = latent_queries.unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
        latent_queries = latent_queries.expand(x.shape[0], -1, -1, -1)  # (B, H, K, Dh)
        updated = self._attend(latent_queries, self.rotary(keys), values.transpose(1, 2))
        latent_keys, latent_values = (
            self.latent_kv(updated).unflatten(-1, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        )
        return self.out(self._attend(self.rotary(queries), latent_keys, latent_values))

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention over all keys: (B, H, T, Dh) of each -> (B, T, D)."""
        if self.training and self.dropout.p:
            scores = queries @ keys.mT * self.head_dim**-0.5
            out = self.dropout(scores.softmax(-1)) @ values
        else:
            out = scaled_dot_product_attention(queries, keys, values)
        return out.transpose(1, 2).flatten(2)

    def new_state(self, batch: int, capacity: int, like: Tensor) -> LayerState:
        """Raises UserError: there is no decoding state."""
        raise UserError(NOT_CAUSAL)

    def decode(self, x: Tensor, state: Any, chunk: Chunk) -> Tensor:
        """Raises UserError: there is no next token to compute."""
        raise UserError(NOT_CAUSAL)
