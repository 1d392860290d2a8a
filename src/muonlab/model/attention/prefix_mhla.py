"""Prefix latent attention: every token reads latents that hold all tokens up to itself.

The causal form nearest to P2's: tokens attend to nothing but K latents a head, in the state that
they have just after that token was written. `causal_mhla` keeps the last chunk's tokens beside
them. There are no positions but what the order of writing leaves in the sums.

With shares p (see `latents`), mass z_t = Σ p_i, A_t = Σ p_i k_i, V_t = Σ p_i v_i over i <= t:

    r_tj = q_t·A_tj / (z_tj √Dh) + log z_tj,   o_t = Σ_j softmax_j(r_t) · V_tj / z_tj

Chunks run in parallel: inside one, sums over i <= t are masked products of C × C and C × K.

Shapes: B batch, T tokens, N chunks of C tokens, D model width, H heads, Dh head width, K latents.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from muonlab.model.attention.latents import NO_MASS, Latents, add_up, directions, sum_of_earlier
from muonlab.model.cache import Chunk
from muonlab.model.dropout import Dropout
from muonlab.model.layers import Linear

CHUNK = 64  # tokens computed together; changes the speed, not the result


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixMHLAConfig:
    """Causal attention to ``num_latents`` running summaries a head and to nothing else."""

    causal: ClassVar[bool] = True
    warnings: ClassVar[tuple[str, ...]] = ()
    weights_set_logits: ClassVar[bool] = False  # of heads alone: latents are shared

    kind: Literal["prefix_mhla"] = "prefix_mhla"
    num_heads: int = 4
    num_latents: int = 64

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_latents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def width_of_head(self, dim: int) -> int:
        """Head width at model width ``dim``; raises ValueError if the heads do not fit."""
        if dim % self.num_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}; model width {dim} must be a multiple of it"
            )
        return dim // self.num_heads

    def build(self, dim: int, max_length: int, norm_eps: float, dropout: float) -> "PrefixMHLA":
        return PrefixMHLA(self, dim, dropout)

    def num_parameters(self, dim: int) -> int:
        width = self.width_of_head(dim)
        return 4 * dim * dim + Latents.num_parameters(self.num_heads, self.num_latents, width)

    def projection_flops(self, dim: int) -> int:
        """Forward FLOPs of one token's projections."""
        return 2 * 4 * dim * dim

    def mixing_flops(self, dim: int, length: int) -> int:
        """Forward FLOPs of writing and reading, mean over the tokens of a sequence.

        Per latent: shares, a key's and a value's sum, two reads; per pair in a chunk: a score of
        tokens, its mix into latents, and the same for values.
        """
        chunk, H, K = min(CHUNK, length), self.num_heads, self.num_latents
        return 10 * K * dim + chunk * (4 * dim + 4 * H * K)

    def kept_values(self, dim: int, batch: int, length: int) -> int:
        """Values that the backward pass keeps of one layer, without its input."""
        chunk = min(CHUNK, length)
        chunks = -(-length // chunk)
        H, K = self.num_heads, self.num_latents
        per_token = 6 * dim + H * (5 * K + 2 * chunk + 1)
        return batch * chunks * (chunk * per_token + 3 * K * dim)

    def state_bytes(self, dim: int, batch: int, capacity: int, bytes_per_value: int) -> int:
        """Bytes of one layer's decoding state; sums are never below fp32."""
        sums = self.num_latents * (2 * dim + self.num_heads)
        return batch * sums * max(bytes_per_value, 4)


class PrefixState:
    """The sums (B, H, K, 2·Dh) and the mass (B, H, K, 1) of all tokens read."""

    def __init__(self, batch: int, heads: int, latents: int, width: int, like: Tensor) -> None:
        wide = torch.promote_types(like.dtype, torch.float32)
        self.sums = like.new_zeros(batch, heads, latents, 2 * width, dtype=wide)
        self.mass = like.new_zeros(batch, heads, latents, 1, dtype=wide)

    def num_bytes(self) -> int:
        return self.sums.nbytes + self.mass.nbytes


class PrefixMHLA(nn.Module):
    """(B, T, D) -> (B, T, D), causal."""

    def __init__(self, config: PrefixMHLAConfig, dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_latents = config.num_latents
        self.head_dim = config.width_of_head(dim)
        self.dropout = Dropout(dropout)
        self.qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)
        self.latents = Latents(self.num_heads, self.num_latents, self.head_dim)

    def muon_layout(self) -> dict[str, dict]:
        """The fused projection is three matrices to an optimizer that cares."""
        D = self.out.weight.shape[0]
        return {"qkv.weight": {"role": "hidden", "row_blocks": (D, D, D)}}

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        C = min(CHUNK, T)
        fused = pad(self.qkv(x), (0, 0, 0, -T % C)).unflatten(1, (-1, C))  # (B, N, C, 3·D)
        queries, tokens = self._heads(fused)
        shares = self._shares(tokens)
        wide = torch.promote_types(x.dtype, torch.float32)
        sums, mass = (sum_of_earlier(x.to(wide)) for x in add_up(shares, tokens))
        out = self._read(queries, tokens, shares, sums, mass)
        return self.out(out.transpose(2, 3).flatten(1, 2).flatten(2)[:, :T])

    def new_state(self, batch: int, capacity: int, like: Tensor) -> PrefixState:
        return PrefixState(batch, self.num_heads, self.num_latents, self.head_dim, like)

    def decode(self, x: Tensor, state: PrefixState, chunk: Chunk) -> Tensor:
        """The next tokens (B, S, D) -> (B, S, D), given and extending ``state``."""
        queries, tokens = self._heads(self.qkv(x))
        padding = torch.arange(x.shape[1]) >= torch.tensor(chunk.num_valid).unsqueeze(1)
        padding = padding[:, None, :, None].to(x.device)
        shares = self._shares(tokens).masked_fill(padding, 0)
        out = self._read(queries, tokens, shares, state.sums, state.mass)
        sums, mass = add_up(shares, tokens)
        state.sums += sums
        state.mass += mass
        return self.out(out.transpose(1, 2).flatten(2))

    def _heads(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """(…, C, 3·D) -> queries (…, H, C, Dh), keys with values (…, H, C, 2·Dh)."""
        heads = fused.unflatten(-1, (3, self.num_heads, self.head_dim)).transpose(-4, -2)
        queries, keys, values = heads.unbind(-3)  # (…, H, C, Dh)
        return queries, torch.cat((keys, values), dim=-1)

    def _shares(self, tokens: Tensor) -> Tensor:
        """Of keys with values (…, H, C, 2·Dh) among the latents: (…, H, C, K)."""
        return self.latents.shares(directions(tokens[..., : self.head_dim]))

    def _read(
        self, queries: Tensor, tokens: Tensor, shares: Tensor, sums: Tensor, mass: Tensor
    ) -> Tensor:
        """What C tokens read after ``sums`` and ``mass`` of all chunks before: (…, H, C, Dh)."""
        keys, values = tokens.chunk(2, dim=-1)
        sum_keys, sum_values = sums.to(tokens.dtype).chunk(2, dim=-1)
        mass = mass.mT + shares.cumsum(-2, dtype=mass.dtype) + NO_MASS  # (…, H, C, K)
        scores = queries @ sum_keys.mT + (queries @ keys.mT).tril() @ shares
        weights = (scores * self.head_dim**-0.5 / mass + mass.log()).softmax(-1)
        weights = (self.dropout(weights) / mass).to(tokens.dtype)
        return weights @ sum_values + (weights @ shares.mT).tril() @ values
