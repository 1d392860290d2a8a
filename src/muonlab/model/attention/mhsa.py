"""Multi-head self-attention, with fewer key-value heads on request (GQA, 2305.13245).

Shapes: B batch, T tokens, D model width, H query heads, G key-value heads, Dh head width.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from muonlab.model.attention.rotary import Rotary, rotary_head_dim
from muonlab.model.attention.softmax import (
    cached_attention,
    causal_attention,
    kept_probabilities,
)
from muonlab.model.cache import Chunk, KVCache
from muonlab.model.layers import Linear, RMSNorm


@dataclass(frozen=True, kw_only=True, slots=True)
class MHSAConfig:
    """Multi-head self-attention with rotary positions; ``num_kv_heads`` below ``num_heads``: GQA.

    ``head_dim`` defaults to model width / heads; ``qk_norm`` normalises every query and key head.
    """

    causal: ClassVar[bool] = True
    warnings: ClassVar[tuple[str, ...]] = ()

    kind: Literal["mhsa"] = "mhsa"
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_dim: int | None = None
    rope_base: float = 10_000.0
    qk_norm: bool = False

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"num_heads is {self.num_heads}; it must be at least 1")
        if self.num_kv_heads is not None and (
            self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads
        ):
            raise ValueError(
                f"num_kv_heads is {self.num_kv_heads}; it must divide num_heads {self.num_heads}"
            )
        if self.head_dim is not None and (self.head_dim < 2 or self.head_dim % 2):
            raise ValueError(f"head_dim is {self.head_dim}; rotary needs an even width >= 2")
        if self.rope_base <= 1:
            raise ValueError(f"rope_base is {self.rope_base}; it must be above 1")

    @property
    def weights_set_logits(self) -> bool:
        """Whether scaling query and key weights scales the logits, as QK-clip does."""
        return not self.qk_norm

    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    def width_of_head(self, dim: int) -> int:
        """Head width at model width ``dim``; raises ValueError if the heads do not fit."""
        if self.head_dim is not None:
            return self.head_dim
        return rotary_head_dim(dim, self.num_heads)

    def build(self, dim: int, max_length: int, norm_eps: float, dropout: float) -> "MHSA":
        return MHSA(self, dim, max_length, norm_eps, dropout)

    def num_parameters(self, dim: int) -> int:
        width = self.width_of_head(dim)
        projections = dim * width * (2 * self.num_heads + 2 * self.kv_heads())
        return projections + (2 * width if self.qk_norm else 0)

    def projection_flops(self, dim: int) -> int:
        """Forward FLOPs of one token's projections."""
        width = self.width_of_head(dim)
        return 2 * dim * width * (2 * self.num_heads + 2 * self.kv_heads())

    def mixing_flops(self, dim: int, length: int) -> int:
        """Forward FLOPs of scores and mixing, mean over the tokens of a sequence."""
        return 2 * self.num_heads * self.width_of_head(dim) * (length + 1)

    def kept_values(self, dim: int, batch: int, length: int) -> int:
        """Values that the backward pass keeps of one layer, without its input."""
        width = self.width_of_head(dim)
        kept = 4 * self.num_heads * width * length  # keys and values repeated to all heads
        if self.qk_norm:
            kept += (self.num_heads + 2 * self.kv_heads()) * width * length
        return batch * (kept + self.num_heads * kept_probabilities(length))

    def state_bytes(self, dim: int, batch: int, capacity: int, bytes_per_value: int) -> int:
        """Bytes of one layer's decoding state."""
        return 2 * batch * self.kv_heads() * self.width_of_head(dim) * capacity * bytes_per_value


class MHSA(nn.Module):
    """(B, T, D) -> (B, T, D), causal."""

    def __init__(
        self, config: MHSAConfig, dim: int, max_length: int, norm_eps: float, dropout: float
    ) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_kv_heads = config.kv_heads()
        self.head_dim = config.width_of_head(dim)
        self.dropout = dropout
        self.qkv = Linear(dim, self.head_dim * (self.num_heads + 2 * self.num_kv_heads))
        self.out = Linear(self.head_dim * self.num_heads, dim)
        self.rotary = Rotary(self.head_dim, max_length, config.rope_base)
        self.query_norm = RMSNorm(self.head_dim, eps=norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(self.head_dim, eps=norm_eps) if config.qk_norm else nn.Identity()
        self.max_logits: Tensor | None = None  # (H,): raised by forward passes in training

    def muon_layout(self) -> dict[str, dict]:
        """The fused projection is three matrices to an optimizer that cares."""
        kv = self.num_kv_heads * self.head_dim
        rows = (self.num_heads * self.head_dim, kv, kv)
        return {"qkv.weight": {"role": "hidden", "row_blocks": rows}}

    def qk_weights(self) -> tuple[Tensor, Tensor]:
        """Views of the weights of queries (H, Dh, D) and of keys (G, Dh, D)."""
        heads = self.qkv.weight.detach().unflatten(0, (-1, self.head_dim))
        return heads[: self.num_heads], heads[self.num_heads :][: self.num_kv_heads]

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self._project(x, None)
        out = causal_attention(
            queries,
            keys,
            values,
            scale=self.head_dim**-0.5,
            dropout=self.dropout if self.training else 0.0,
            max_logits=self.max_logits if self.training else None,
        )
        return self.out(out.transpose(1, 2).flatten(2))

    def new_state(self, batch: int, capacity: int, like: Tensor) -> KVCache:
        return KVCache(batch, self.num_kv_heads, capacity, self.head_dim, like)

    def decode(self, x: Tensor, state: KVCache, chunk: Chunk) -> Tensor:
        """The next tokens (B, S, D) -> (B, S, D), given and extending ``state``."""
        queries, keys, values = self._project(x, chunk.places)
        keys, values = state.append(keys, values, chunk)
        out = cached_attention(queries, keys, values, chunk.visible, scale=self.head_dim**-0.5)
        return self.out(out.transpose(1, 2).flatten(2))

    def _project(
        self, x: Tensor, positions: Tensor | slice | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        fused = self.qkv(x).unflatten(-1, (-1, self.head_dim))  # (B, T, H + 2G, Dh)
        queries, keys, values = fused.split_with_sizes(heads, dim=2)
        queries = self.rotary(self.query_norm(queries), positions)  # (B, H, T, Dh)
        keys = self.rotary(self.key_norm(keys), positions)  # (B, G, T, Dh)
        return queries, keys, values.transpose(1, 2)
