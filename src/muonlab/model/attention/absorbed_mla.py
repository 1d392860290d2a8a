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

from muonlab.model.attention.rotary import Rotary
from muonlab.model.attention.softmax import cached_attention, causal_attention
from muonlab.model.cache import Chunk, LatentCache
from muonlab.model.layers import linear


class AbsorbedMLA(nn.Module):
    """(B, S, D) -> (B, S, D) for `MLA` without query rank and norm; decodes, does not train."""

    down: Tensor
    out: Tensor

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
        self.register_buffer("down", down.to(dtype))
        mixed = out.unflatten(1, (self.num_heads, -1)).transpose(0, 1) @ (up_values * latent_scale)
        self.register_buffer("out", mixed.transpose(0, 1).flatten(1).to(dtype))  # (D, H·R)

    def new_state(self, batch: int, capacity: int, like: Tensor) -> LatentCache:
        return LatentCache(batch, capacity, self.kv_rank + self.rotary.head_dim, like)

    def decode(self, x: Tensor, state: LatentCache, chunk: Chunk) -> Tensor:
        """The next tokens (B, S, D) -> (B, S, D), given and extending ``state``."""
        H, R, P = self.num_heads, self.kv_rank, self.rotary.head_dim
        plain, rotated, latents = linear(x, self.down).split_with_sizes(
            (H * R, (H + 1) * P, R), dim=-1
        )
        rotated = self.rotary(rotated.unflatten(-1, (H + 1, P)), chunk.places)  # (B, H + 1, S, P)
        latents = nn.functional.rms_norm(latents, (R,), None, self.norm_eps)
        queries = torch.cat((plain.unflatten(-1, (H, R)).transpose(1, 2), rotated[:, :H]), dim=-1)
        new = torch.cat((latents, rotated[:, H]), dim=-1)
        cache = state.append(new, chunk)
        out = self._attend(queries, new, cache, state, chunk)  # (B, H, S, R + P)
        return linear(out[..., :R].transpose(1, 2).flatten(2), self.out)

    def _attend(
        self, queries: Tensor, new: Tensor, cache: Tensor, state: LatentCache, chunk: Chunk
    ) -> Tensor:
        if chunk.start == 0:
            keys = new.unsqueeze(1)
            return causal_attention(queries, keys, keys, scale=1.0)
        if queries.shape[2] > 1:
            keys = cache.unsqueeze(1)
            return cached_attention(queries, keys, keys, chunk.visible, scale=1.0)
        return _attend_once(queries.squeeze(2), cache, state.latents, chunk.visible).unsqueeze(2)


def _attend_once(
    queries: Tensor, cache: Tensor, buffer: Tensor, visible: Tensor | None
) -> Tensor:
    """One token's queries (B, H, W) over a cache (B, T, W) that is the start of ``buffer``."""
    if buffer.shape[0] == 1 and visible is None:
        return torch.mm(torch.mm(queries[0], cache[0].T).softmax(-1), cache[0]).unsqueeze(0)
    if buffer.dtype == torch.bfloat16 and 4 * cache.shape[1] >= 3 * buffer.shape[1]:
        # two batched products where their matrices lie together (a slice of rows would be copied)
        # are faster on matrix units than the flash kernel with its many small ones (measured 1.2 x)
        scores = torch.bmm(buffer, queries.mT)  # (B, C, H)
        if visible is None:
            scores[:, cache.shape[1] :] = -math.inf
        else:
            scores.masked_fill_(~nn.functional.pad(visible, (0, 9)).mT, -math.inf)
        return torch.bmm(scores.mT.softmax(-1), buffer)
    keys = cache.unsqueeze(1)
    mask = None if visible is None else visible.unsqueeze(1)
    return cached_attention(queries.unsqueeze(1), keys, keys, mask, scale=1.0).squeeze(1)
