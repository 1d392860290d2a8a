"""Multi-head latent attention of DeepSeek-V2 (2405.04434): a compressed cache for all heads.

Each token leaves one normalised latent c and one rotary key k^R; every head's keys and values are
linear in c. Training expands them; decoding never does: the up-projection of the keys is absorbed
into the query and that of the values into the output, and all heads read the one cache.

Shapes: B batch, T tokens, D model width, H heads, R latent rank, N plain and P rotary width of a
query and key head, W value width of a head, S cached tokens.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from muonlab.model.attention.absorbed_mla import AbsorbedMLA
from muonlab.model.attention.rotary import Rotary
from muonlab.model.attention.softmax import causal_attention, kept_probabilities
from muonlab.model.cache import Chunk, LatentCache
from muonlab.model.layers import Linear, RMSNorm


@dataclass(frozen=True, kw_only=True, slots=True)
class MLAConfig:
    """Latent attention with a cache of ``kv_rank + rope_dim`` values a token.

    ``head_dim`` (default model width / heads) is the width of values and of the part of queries
    and keys without positions; ``query_rank`` compresses queries too. ``qk_norm`` normalises every
    query head and the shared rotary key; the latent, and with it the rest of the key, always is.
    """

    causal: ClassVar[bool] = True
    warnings: ClassVar[tuple[str, ...]] = ()

    kind: Literal["mla"] = "mla"
    num_heads: int = 4
    kv_rank: int = 32
    query_rank: int | None = None
    head_dim: int | None = None
    rope_dim: int = 16
    rope_base: float = 10_000.0
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("num_heads", "kv_rank", "query_rank", "head_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.rope_dim < 2 or self.rope_dim % 2:
            raise ValueError(f"rope_dim is {self.rope_dim}; rotary needs an even width >= 2")
        if self.rope_base <= 1:
            raise ValueError(f"rope_base is {self.rope_base}; it must be above 1")

    @property
    def weights_set_logits(self) -> bool:
        """Whether scaling query and key weights scales the logits, as QK-clip does."""
        return not self.qk_norm

    def width_of_head(self, dim: int) -> int:
        """Head width at model width ``dim``; raises ValueError if heads or ranks do not fit."""
        for name in ("kv_rank", "query_rank"):
            rank = getattr(self, name)
            if rank is not None and rank > dim:
                raise ValueError(f"{name} is {rank}; it must not exceed the model width {dim}")
        if self.head_dim is not None:
            return self.head_dim
        if dim % self.num_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}; model width {dim} must be a multiple of it"
            )
        return dim // self.num_heads

    def build(self, dim: int, max_length: int, norm_eps: float, dropout: float) -> "MLA":
        return MLA(self, dim, max_length, norm_eps, dropout)

    def num_parameters(self, dim: int) -> int:
        norms = self.kv_rank + (self.query_rank or 0)
        if self.qk_norm:
            norms += self.width_of_head(dim) + 2 * self.rope_dim
        return self.projection_flops(dim) // 2 + norms

    def projection_flops(self, dim: int) -> int:
        """Forward FLOPs of one token's projections."""
        width = self.width_of_head(dim)
        queries = self.num_heads * (width + self.rope_dim)
        query = dim * queries
        if self.query_rank is not None:
            query = self.query_rank * (dim + queries)
        down = dim * (self.kv_rank + self.rope_dim)
        up = self.kv_rank * 2 * self.num_heads * width
        return 2 * (query + down + up + self.num_heads * width * dim)

    def mixing_flops(self, dim: int, length: int) -> int:
        """Forward FLOPs of scores and mixing, mean over the tokens of a sequence."""
        return self.num_heads * (2 * self.width_of_head(dim) + self.rope_dim) * (length + 1)

    def kept_values(self, dim: int, batch: int, length: int) -> int:
        """Values that the backward pass keeps of one layer, without its input."""
        width = self.width_of_head(dim)
        per_token = 2 * self.num_heads * (2 * width + self.rope_dim)
        per_token += 2 * self.kv_rank + self.rope_dim + 2 * (self.query_rank or 0)
        if self.qk_norm:
            per_token += self.num_heads * (width + self.rope_dim)
        return batch * (length * per_token + self.num_heads * kept_probabilities(length))

    def state_bytes(self, dim: int, batch: int, capacity: int, bytes_per_value: int) -> int:
        """Bytes of one layer's decoding state."""
        return batch * capacity * (self.kv_rank + self.rope_dim) * bytes_per_value


class MLA(nn.Module):
    """(B, T, D) -> (B, T, D), causal."""

    def __init__(
        self, config: MLAConfig, dim: int, max_length: int, norm_eps: float, dropout: float
    ) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = config.width_of_head(dim)
        self.rope_dim = config.rope_dim
        self.kv_rank = config.kv_rank
        self.norm_eps = norm_eps
        self.dropout = dropout
        self.scale = (self.head_dim + self.rope_dim) ** -0.5
        queries = self.num_heads * (self.head_dim + self.rope_dim)
        if config.query_rank is None:
            self.query = Linear(dim, queries)
        else:
            self.query = nn.Sequential(
                Linear(dim, config.query_rank),
                RMSNorm(config.query_rank, eps=norm_eps),
                Linear(config.query_rank, queries),
            )
        self.kv_down = Linear(dim, self.kv_rank + self.rope_dim)
        self.latent_norm = RMSNorm(self.kv_rank, eps=norm_eps)
        self.kv_up = Linear(self.kv_rank, 2 * self.num_heads * self.head_dim)
        self.out = Linear(self.num_heads * self.head_dim, dim)
        self.rotary = Rotary(self.rope_dim, max_length, config.rope_base)
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.query_norm = RMSNorm(self.head_dim + self.rope_dim, eps=norm_eps)
            self.key_norm = RMSNorm(self.rope_dim, eps=norm_eps)
        self.max_logits: Tensor | None = None  # (H,): raised by forward passes in training

    def muon_layout(self) -> dict[str, dict]:
        """Up-projections are one matrix a head, keys before values; the latent's and the rotary
        key's down-projections are two."""
        width = self.num_heads * self.head_dim
        up = {"role": "hidden", "row_blocks": (width, width), "heads": self.num_heads}
        down = {"role": "hidden", "row_blocks": (self.kv_rank, self.rope_dim)}
        query = "query.weight" if isinstance(self.query, Linear) else "query.2.weight"
        return {
            query: {"role": "hidden", "heads": self.num_heads},
            "kv_down.weight": down,
            "kv_up.weight": up,
        }

    def qk_weights(self) -> tuple[Tensor, Tensor]:
        """Views of the weights of queries (H, N + P, …) and of plain keys (H, N, R).

        The rotary key is not among them: all heads share it.
        """
        query: Any = self.query if isinstance(self.query, Linear) else self.query[-1]
        queries = query.weight.detach().unflatten(0, (self.num_heads, -1))
        return queries, self.kv_up.weight.detach().view(2, self.num_heads, -1, self.kv_rank)[0]

    def for_inference(self, dtype: torch.dtype) -> "MLA | AbsorbedMLA":
        """The form that runs fastest: absorbed, unless a norm stands between or it reads more."""
        query = self.query
        if not isinstance(query, Linear) or not isinstance(self.query_norm, nn.Identity):
            return self
        if self.kv_rank > 2 * self.head_dim:
            return self
        H = self.num_heads
        up_keys, up_values = self.kv_up.weight.view(2, H, -1, self.kv_rank).unbind(0)
        return AbsorbedMLA(
            query=query.weight.view(H, -1, query.in_features),
            kv_down=self.kv_down.weight,
            latent_scale=self.latent_norm.weight,
            up_keys=up_keys,
            up_values=up_values,
            out=self.out.weight,
            scale=self.scale,
            norm_eps=self.norm_eps,
            rotary=self.rotary,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._attend_expanded(*self._project(x, None))

    def new_state(self, batch: int, capacity: int, like: Tensor) -> LatentCache:
        return LatentCache(batch, capacity, self.kv_rank + self.rope_dim, like)

    def decode(self, x: Tensor, state: LatentCache, chunk: Chunk) -> Tensor:
        """The next tokens (B, S, D) -> (B, S, D), given and extending ``state``."""
        plain, rotary, latents, keys = self._project(x, chunk.places)
        cache = state.append(torch.cat((latents, keys.squeeze(1)), dim=-1), chunk)
        if chunk.start == 0:  # nothing is cached yet: expanding costs fewer FLOPs
            return self._attend_expanded(plain, rotary, latents, keys)
        return self._attend_absorbed(plain, rotary, cache, chunk)

    def _project(
        self, x: Tensor, positions: Tensor | slice | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries (B, H, T, N) and (B, H, T, P), latents (B, T, R), rotary keys (B, 1, T, P)."""
        queries = self.query_norm(self.query(x).unflatten(-1, (self.num_heads, -1)))
        plain, rotary = queries.split_with_sizes((self.head_dim, self.rope_dim), dim=-1)
        latents, keys = self.kv_down(x).split_with_sizes((self.kv_rank, self.rope_dim), dim=-1)
        keys = self.rotary(self.key_norm(keys).unsqueeze(2), positions)
        return (
            plain.transpose(1, 2),
            self.rotary(rotary, positions),
            self.latent_norm(latents),
            keys,
        )

    def _attend_expanded(
        self, plain: Tensor, rotary: Tensor, latents: Tensor, rotary_keys: Tensor
    ) -> Tensor:
        """Attention of the tokens among themselves, with every head's keys and values formed."""
        keys, values = self.kv_up(latents).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        rotary_keys = rotary_keys.expand_as(rotary)
        out = causal_attention(
            torch.cat((plain, rotary), dim=-1),
            torch.cat((keys.transpose(1, 2), rotary_keys), dim=-1),
            values.transpose(1, 2),
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
            max_logits=self.max_logits if self.training else None,
        )
        return self.out(out.transpose(1, 2).flatten(2))

    def _attend_absorbed(
        self, plain: Tensor, rotary: Tensor, cache: Tensor, chunk: Chunk
    ) -> Tensor:
        """Attention over the cache (B, S, R + P) as it is: all heads are queries of one head."""
        B, H, T, _ = plain.shape
        up = self.kv_up.weight.to(plain.dtype).view(2, H, -1, self.kv_rank)
        up_keys, up_values = up.unbind(0)  # (H, N, R), (H, W, R)
        absorbed = torch.bmm(plain.transpose(0, 1).reshape(H, B * T, -1), up_keys)
        absorbed = absorbed.view(H, B, T, -1).permute(1, 2, 0, 3)  # (B, T, H, R)
        queries = torch.cat((absorbed, rotary.transpose(1, 2)), dim=-1).view(B, 1, T * H, -1)
        mask = None
        if chunk.visible is not None:
            mask = chunk.visible.repeat_interleave(H, dim=1).unsqueeze(1)  # (B, 1, T·H, S)
        keys = cache.unsqueeze(1)
        # values as wide as the keys: the surplus is cheaper than attention without a flash kernel
        mixed = scaled_dot_product_attention(queries, keys, keys, attn_mask=mask, scale=self.scale)
        mixed = mixed[..., : self.kv_rank].reshape(B * T, H, -1).transpose(0, 1)
        out = torch.bmm(mixed, up_values.mT)  # (H, B·T, W)
        return self.out(out.transpose(0, 1).reshape(B, T, -1))
