"""Block-causal latent attention: exact attention inside a chunk, latents for everything before it.

The sequence is cut into chunks of C tokens. In every head, K latents summarise all earlier chunks
(see `latents`). A token attends with one softmax to the K
summaries of the chunks before its own and to the tokens of its own chunk up to itself. The log of
the mass is added to a summary's score, so that it counts as many times as the tokens it stands
for: were the tokens of a latent all alike, this would be full attention.

Cost per token O(C + K), decoding state O(C + K), whatever the length.

Shapes: B batch, T tokens, N chunks of C tokens, G = B·N, D model width, H heads, Dh head width,
K latents.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from muonlab.model.attention.latents import (
    NO_MASS,
    Latents,
    add_up,
    differences,
    means_of_earlier,
    sum_of_earlier,
)
from muonlab.model.attention.rotary import Rotary, rotary_head_dim
from muonlab.model.cache import Chunk
from muonlab.model.dropout import dropout_mask
from muonlab.model.layers import Linear


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalMHLAConfig:
    """Block-causal latent attention with ``num_latents`` a head and chunks of ``chunk`` tokens.

    ``num_latents`` 0 is attention within chunks alone: the control that shows what latents carry.
    """

    causal: ClassVar[bool] = True
    warnings: ClassVar[tuple[str, ...]] = ()
    weights_set_logits: ClassVar[bool] = False  # of heads alone: latents are shared

    kind: Literal["causal_mhla"] = "causal_mhla"
    num_heads: int = 4
    num_latents: int = 64
    chunk: int = 128
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        for name, least in (("num_heads", 1), ("num_latents", 0), ("chunk", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.rope_base <= 1:
            raise ValueError(f"rope_base is {self.rope_base}; it must be above 1")

    def width_of_head(self, dim: int) -> int:
        """Head width at model width ``dim``; raises ValueError if the heads do not fit."""
        return rotary_head_dim(dim, self.num_heads)

    def build(self, dim: int, max_length: int, norm_eps: float, dropout: float) -> "CausalMHLA":
        return CausalMHLA(self, dim, dropout)

    def num_parameters(self, dim: int) -> int:
        latents = 0
        if self.num_latents:
            width = self.width_of_head(dim)
            latents = Latents.num_parameters(self.num_heads, self.num_latents, width)
        return 4 * dim * dim + latents

    def projection_flops(self, dim: int) -> int:
        """Forward FLOPs of one token's projections."""
        return 2 * 4 * dim * dim

    def mixing_flops(self, dim: int, length: int) -> int:
        """Forward FLOPs of scores and mixing, mean over the tokens of a sequence.

        Writing costs a score, a key and a value for each latent, reading a score and a value.
        """
        whole, rest = divmod(length, self.chunk)
        in_chunk = whole * self.chunk * (self.chunk + 1) + rest * (rest + 1)  # 2 · pairs
        return 10 * self.num_latents * dim + 2 * dim * in_chunk // length

    def kept_values(self, dim: int, batch: int, length: int) -> int:
        """Values that the backward pass keeps of one layer, without its input."""
        chunk = min(self.chunk, length)
        chunks = -(-length // chunk)
        H, K = self.num_heads, self.num_latents
        per_token = (8 if K else 7) * dim + H * (chunk + 2 * K + 2)
        per_chunk = K * (4 * dim + H)
        return batch * chunks * (chunk * per_token + per_chunk)

    def state_bytes(self, dim: int, batch: int, capacity: int, bytes_per_value: int) -> int:
        """Bytes of one layer's decoding state; sums are never below fp32."""
        sums = self.num_latents * (2 * dim + self.num_heads) * max(bytes_per_value, 4)
        return batch * (3 * (self.chunk + 1) * dim * bytes_per_value + sums)


class LatentState:
    """The current chunk's keys (plain and rotated) and values, and the sums of all chunks before.

    A row's chunk is added to the sums, and its slots reused, as soon as it is complete.
    """

    def __init__(self, batch: int, heads: int, chunk: int, latents: int, width: int, like: Tensor):
        wide = torch.promote_types(like.dtype, torch.float32)
        # plain keys, values, rotated keys
        self.tokens = like.new_zeros(batch, heads, chunk + 1, 3 * width)  # the last for padding
        self.sums = like.new_zeros(batch, heads, latents, 2 * width, dtype=wide)
        self.mass = like.new_zeros(batch, heads, latents, 1, dtype=wide)

    def num_bytes(self) -> int:
        return self.tokens.nbytes + self.sums.nbytes + self.mass.nbytes


class CausalMHLA(nn.Module):
    """(B, T, D) -> (B, T, D), causal."""

    def __init__(self, config: CausalMHLAConfig, dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_latents = config.num_latents
        self.head_dim = config.width_of_head(dim)
        self.chunk = config.chunk
        self.dropout = dropout
        self.scale = self.head_dim**-0.5
        self.qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)
        self.rotary = Rotary(self.head_dim, config.chunk, config.rope_base)
        self.latents = None
        if self.num_latents:
            self.latents = Latents(self.num_heads, self.num_latents, self.head_dim)

    def muon_layout(self) -> dict[str, dict]:
        """The fused projection is three matrices to an optimizer that cares."""
        D = self.out.weight.shape[0]
        return {"qkv.weight": {"role": "hidden", "row_blocks": (D, D, D)}}

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        C = min(self.chunk, T)
        fused = pad(self.qkv(x), (0, 0, 0, -T % C))  # only the last chunk's end, read by none
        fused = fused.view(-1, C, 3, self.num_heads, self.head_dim)  # (G, C, 3, H, Dh)
        queries, keys, values = fused.unbind(2)
        rotated_queries, rotated_keys = self.rotary(queries), self.rotary(keys)  # (G, H, C, Dh)
        queries, keys, values = (t.transpose(1, 2) for t in (queries, keys, values))
        sums, mass = (
            total.unflatten(0, (B, -1))  # (B, N, H, K, …)
            for total in self._write(torch.cat((keys, values), dim=-1))
        )
        mass = sum_of_earlier(mass) + NO_MASS
        means = means_of_earlier(sums, mass).flatten(0, 1)
        summary_keys, summary_values = means.chunk(2, dim=-1)  # (G, H, K, Dh)
        log_mass = mass.log().to(x.dtype).flatten(0, 1).mT  # (G, H, 1, K)
        out = _ChunkAttention.apply(
            queries,
            summary_keys,
            log_mass,
            rotated_queries,
            rotated_keys,
            torch.cat((summary_values, values), dim=2),
            self.scale,
            self.dropout if self.training else 0.0,
        )
        out = out.transpose(1, 2).reshape(B, -1, x.shape[-1])
        return self.out(out[:, :T])

    def _write(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What a chunk's keys and values (G, H, C, 2·Dh) add to sums (G, H, K, 2·Dh) and mass."""
        keys = tokens[..., : self.head_dim]
        shares = self.latents.shares(differences(keys)) if self.latents else keys[..., :0]
        return add_up(shares, tokens)

    def new_state(self, batch: int, capacity: int, like: Tensor) -> LatentState:
        return LatentState(batch, self.num_heads, self.chunk, self.num_latents, self.head_dim, like)

    def decode(self, x: Tensor, state: LatentState, chunk: Chunk) -> Tensor:
        """The next tokens (B, S, D) -> (B, S, D), given and extending ``state``."""
        C, S = self.chunk, x.shape[1]
        fused = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        queries, keys, values = fused.unbind(2)
        positions = chunk.positions % C
        rotated = self.rotary(queries, positions)
        queries = queries.transpose(1, 2)
        tokens = torch.cat((keys, values, self.rotary(keys, positions).transpose(1, 2)), dim=-1)
        padding = torch.arange(S) >= torch.tensor(chunk.num_valid).unsqueeze(1)
        slots = positions.masked_fill(padding.to(x.device), C)  # the last slot is read by none
        rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        opens_chunk = {
            token
            for length, valid in zip(chunk.lengths, chunk.num_valid, strict=True)
            for token in range(C - length % C, valid, C)
        }
        outputs = []
        for start, end in pairwise(sorted(opens_chunk | {0, S})):
            part = slice(start, end)
            state.tokens[rows, :, slots[:, part]] = tokens[:, part]
            outputs.append(
                self._read(queries[:, :, part], rotated[:, :, part], positions[:, part], state)
            )
            self._close_chunks(state, chunk, start, end)
        return self.out(torch.cat(outputs, dim=2).transpose(1, 2).flatten(2))

    def _read(
        self, queries: Tensor, rotated: Tensor, positions: Tensor, state: LatentState
    ) -> Tensor:
        """Attention over ``state`` of queries (B, H, S, Dh) at ``positions`` of their chunk."""
        _, values, keys = state.tokens[:, :, :-1].chunk(3, dim=-1)  # (B, H, C, Dh)
        mass = state.mass + NO_MASS
        summary_keys, summary_values = (state.sums / mass).to(queries.dtype).chunk(2, dim=-1)
        log_mass = mass.log().to(queries.dtype).mT
        hidden = torch.arange(self.chunk, device=keys.device) > positions[:, None, :, None]
        scores = torch.cat(
            (
                queries @ summary_keys.mT * self.scale + log_mass,
                (rotated @ keys.mT * self.scale).masked_fill(hidden, -math.inf),
            ),
            dim=-1,
        )
        from_summaries, from_tokens = scores.softmax(-1).split(
            (self.num_latents, self.chunk), dim=-1
        )
        return from_summaries @ summary_values + from_tokens @ values

    def _close_chunks(self, state: LatentState, chunk: Chunk, start: int, end: int) -> None:
        """Add to the sums what tokens start…end completed; no row completes two chunks there."""
        rows = [
            row
            for row, (length, valid) in enumerate(zip(chunk.lengths, chunk.num_valid, strict=True))
            if start < valid and (length + min(valid, end)) % self.chunk == 0
        ]
        if rows:
            keys_and_values = state.tokens[rows, :, :-1, : 2 * self.head_dim]
            sums, mass = self._write(keys_and_values)
            state.sums[rows] += sums
            state.mass[rows] += mass


class _ChunkAttention(torch.autograd.Function):
    """One softmax over K summaries and, causally, C tokens; keeps the probabilities.

    All chunks at once in batched products: linear in length, and no mask or score of a pair in
    different chunks is ever formed.
    """

    @staticmethod
    def forward(
        ctx,
        queries: Tensor,  # (G, H, C, Dh)
        summary_keys: Tensor,  # (G, H, K, Dh)
        log_mass: Tensor,  # (G, H, 1, K)
        rotated_queries: Tensor,  # (G, H, C, Dh)
        rotated_keys: Tensor,  # (G, H, C, Dh)
        values: Tensor,  # (G, H, K + C, Dh)
        scale: float,
        dropout: float,
    ) -> Tensor:
        shape = queries.shape
        q, sk, log_mass, rq, rk, v = (
            x.flatten(0, 1)
            for x in (queries, summary_keys, log_mass, rotated_queries, rotated_keys, values)
        )
        C, K = q.shape[1], sk.shape[1]
        scores = q.new_empty(q.shape[0], C, K + C)
        if K:
            torch.baddbmm(log_mass, q, sk.mT, alpha=scale, out=scores[:, :, :K])
        future = q.new_full((C, C), -math.inf).triu_(1)
        torch.baddbmm(future, rq, rk.mT, alpha=scale, out=scores[:, :, K:])
        probabilities = torch.softmax(scores, dim=-1)
        kept = dropout_mask(probabilities, dropout) if dropout else None
        out = torch.bmm(probabilities if kept is None else probabilities * kept, v)
        ctx.save_for_backward(q, sk, rq, rk, v, probabilities, kept)
        ctx.scale = scale
        return out.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, sk, rq, rk, v, probabilities, kept = ctx.saved_tensors
        G, H = grad.shape[:2]
        K = sk.shape[1]
        grad = grad.reshape(q.shape)
        weights = probabilities if kept is None else probabilities * kept
        grad_v = torch.bmm(weights.mT, grad)
        grad_weights = torch.bmm(grad, v.mT)
        if kept is not None:
            grad_weights.mul_(kept)
        grad_scores = torch.ops.aten._softmax_backward_data(
            grad_weights, probabilities, -1, q.dtype
        )
        of_summaries, of_tokens = grad_scores[:, :, :K], grad_scores[:, :, K:]
        grads = (
            torch.bmm(of_summaries, sk).mul_(ctx.scale),
            torch.bmm(of_summaries.mT, q).mul_(ctx.scale),
            of_summaries.sum(1, keepdim=True),
            torch.bmm(of_tokens, rk).mul_(ctx.scale),
            torch.bmm(of_tokens.mT, rq).mul_(ctx.scale),
            grad_v,
        )
        return *(x.unflatten(0, (G, H)) for x in grads), None, None
