"""Latent attention with its up-projections multiplied into their neighbours: the form that runs.

A query reaches the latents by W_q and then W_uk, the mixed latents reach the output by W_uv and
then W_o. Each pair is one linear map of a latent's width, so that a token costs two products with
weights in all: one for queries, latent and rotary key, one for the output. Heads then differ in
their queries only, and read the one cache.

Shapes: B batch, S new tokens, D model width, H heads, R latent rank, P rotary width, C capacity of
the cache.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from muonlab.model import native
from muonlab.model.attention.rotary import Rotary
from muonlab.model.attention.softmax import causal_attention
from muonlab.model.cache import Chunk, LatentCache
from muonlab.model.layers import linear, rms_norm


class AbsorbedMLA(nn.Module):
    """(B, S, D) -> (B, S, D) for `MLA` without query rank and norm; decodes, does not train."""

    def __init__(
        self,
        query: Tensor,  # (H, N + P, D)
        kv_down: Tensor,  # (R + P, D)
        latent_scale: Tensor,  # (R,)
        up_keys: Tensor,  # (H, N, R)
        up_values: Tensor,  # (H, W, R)
        out: Tensor,  # (D, H·W)
        *,
        scale: float,
        norm_eps: float,
        rotary: Rotary,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.num_heads, head_dim, self.kv_rank = up_keys.shape
        self.norm_eps = norm_eps
        self.rotary = rotary
        plain, rotated = query.split((head_dim, query.shape[1] - head_dim), dim=1)
        latent, rotary_key = kv_down.split((self.kv_rank, kv_down.shape[0] - self.kv_rank))
        absorbed = (up_keys.mT @ plain) * latent_scale.unsqueeze(1)  # (H, R, D)
        rows = (absorbed * scale, rotated * scale, rotary_key, latent)
        down = torch.cat([block.flatten(0, -2) for block in rows])
        self.down = nn.Parameter(down.to(dtype), requires_grad=False)
        mixed = out.unflatten(1, (self.num_heads, -1)).transpose(0, 1) @ (up_values * latent_scale)
        mixed = mixed.transpose(0, 1).flatten(1)  # (D, H·R)
        self.out = nn.Parameter(mixed.to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        queries, new = self._project(x, None)
        return self._write_out(_attend_new(queries, new))

    def new_state(self, batch: int, capacity: int, like: Tensor) -> LatentCache:
        return LatentCache(batch, capacity, self.kv_rank + self.rotary.head_dim, like)

    def decode(self, x: Tensor, state: LatentCache, chunk: Chunk) -> Tensor:
        """The next tokens (B, S, D) -> (B, S, D), given and extending ``state``."""
        queries, new = self._project(x, chunk.places)
        cache = state.append(new, chunk)
        if chunk.start == 0:
            mixed = _attend_new(queries, new)
        elif x.shape[1] == 1 and native.serves_latents(cache, self.kv_rank):
            lengths = [length + 1 for length in chunk.lengths]
            mixed = native.attend_latents(queries.squeeze(2), state.latents, lengths, self.kv_rank)
            return linear(mixed.flatten(1).unsqueeze(1), self.out)
        else:
            mixed = _attend_cache(queries, cache, state.latents, chunk.visible)
        return self._write_out(mixed)

    def _project(self, x: Tensor, positions: Tensor | slice | None) -> tuple[Tensor, Tensor]:
        """Scaled queries (B, H, S, R + P), and what is cached of the tokens (B, S, R + P)."""
        H, R, P = self.num_heads, self.kv_rank, self.rotary.head_dim
        plain, rotated, latents = linear(x, self.down).split_with_sizes(
            (H * R, (H + 1) * P, R), dim=-1
        )
        rotated = self.rotary(rotated.unflatten(-1, (H + 1, P)), positions)  # (B, H + 1, S, P)
        latents = rms_norm(latents, None, self.norm_eps)
        plain = plain.unflatten(-1, (H, R)).transpose(1, 2)
        queries = torch.cat((plain, rotated[:, :H]), dim=-1)
        return queries, torch.cat((latents, rotated[:, H]), dim=-1)

    def _write_out(self, mixed: Tensor) -> Tensor:
        """Mixed latents and rotary keys (B, H, S, R + P) -> (B, S, D)."""
        return linear(mixed[..., : self.kv_rank].transpose(1, 2).flatten(2), self.out)


def _attend_new(queries: Tensor, new: Tensor) -> Tensor:
    """Attention of the tokens among themselves."""
    keys = new.unsqueeze(1)
    return causal_attention(queries, keys, keys, scale=1.0)


def _attend_cache(queries: Tensor, cache: Tensor, buffer: Tensor, visible: Tensor | None) -> Tensor:
    """Attention of queries (B, H, S, W) over a cache (B, T, W), the first T slots of ``buffer``."""
    B, H, S, _ = queries.shape
    T, C = cache.shape[1], buffer.shape[1]
    rows = queries.transpose(1, 2).flatten(1, 2)  # (B, S·H, W): all read the same keys
    if S == B == 1 and cache.dtype != torch.bfloat16:
        # one row: threads share the work of two products, not that of the flash kernel
        mixed = torch.mm(torch.mm(rows[0], cache[0].T).softmax(-1), cache[0])
    elif S == 1 < B and cache.dtype == torch.bfloat16 and 3 * C <= 4 * T:
        # matrices that lie together (of a slice, torch would make a copy) are read faster in two
        # batched products than in the many small ones of the flash kernel (measured: 1.2 x)
        scores = torch.bmm(buffer, rows.mT)  # (B, C, H)
        if visible is None:
            scores[:, T:] = -math.inf
        else:
            scores.masked_fill_(pad(~visible, (0, C - T), value=True).mT, -math.inf)
        mixed = torch.bmm(scores.mT.softmax(-1), buffer)
    else:
        keys = cache.unsqueeze(1)
        mask = None
        if visible is not None:
            mask = visible.repeat_interleave(H, dim=1).unsqueeze(1)  # (B, 1, S·H, T)
        mixed = scaled_dot_product_attention(
            rows.unsqueeze(1), keys, keys, attn_mask=mask, scale=1.0
        )
    return mixed.view(B, S, H, -1).transpose(1, 2)
